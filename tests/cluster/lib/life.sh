# shellcheck shell=bash
# Starting and stopping a cluster.

readonly START_TIMEOUT=240

# One command at a time changes a cluster.
take_lock() {
	mkdir -p /run/lock
	exec 9>"/run/lock/$(cgroup_name)"
	if ! flock -n 9; then
		say "waiting for another command on this cluster …"
		flock 9
	fi
}

# What the running cluster was made from; another answer means a new cluster.
fingerprint() { key "$(printf '%s\n' "${PART_DIR[@]}" | sort)" "$RIG_DIR/lib/node.sh" "$RIG_DIR/lib/common.sh" "$RIG_DIR/manifests"; }

healthy() {
	find_init && [[ -e $RUN_DIR/ready ]] || return 1
	kube get --request-timeout=5s --raw=/readyz >/dev/null 2>&1 || return 1
	kube wait --for=condition=Ready "node/$NODE_NAME" --timeout=1s >/dev/null 2>&1 || return 1
	kube wait -n ingress-nginx --for=condition=Available deployment/ingress-nginx-controller --timeout=1s >/dev/null 2>&1
}

cluster_up() {
	[[ $(id -u) == 0 ]] || check_machine
	take_lock
	if [[ $(cat "$CLUSTER_DIR/fingerprint" 2>/dev/null) == "$(fingerprint)" ]] && healthy; then
		say "the cluster in $CLUSTER_DIR is running"
		return
	fi
	check_machine
	install_packages
	build_missing
	remove_cluster
	start_cluster
}

start_cluster() {
	local begin=$SECONDS shown=0 line
	say "starting the cluster in $CLUSTER_DIR …"
	mkdir -p "$RUN_DIR" "$LOG_DIR"
	touch "$CLUSTER_DIR/.canary-cluster" "$RUN_DIR/progress"
	link_commands
	make_cgroups
	CANARY_CLUSTER_DIR=$CLUSTER_DIR CANARY_CACHE_DIR=$CACHE_DIR setsid "$RIG_DIR/cluster" _keep "$RIG_DIR" \
		"${PART_DIR[ingress-nginx]}/chart" "$(cni_dir)" "${PART_DIR[images-system]}" "${PART_DIR[images-app]}" "${PART_DIR[images-prometheus]}" \
		</dev/null >"$LOG_DIR/node.log" 2>&1 8>&- 9>&- &
	local keeper=$!
	while true; do
		while IFS= read -r line; do
			((++shown))
			say "  $line after $((SECONDS - begin)) s"
			[[ $line != failed:* ]] || start_failed
		done < <(tail -n "+$((shown + 1))" "$RUN_DIR/progress" 2>/dev/null)
		[[ ! -e $RUN_DIR/ready ]] || break
		kill -0 "$keeper" 2>/dev/null || start_failed
		((SECONDS - begin < START_TIMEOUT)) || {
			say "not ready after $START_TIMEOUT s"
			start_failed
		}
		sleep 0.1
	done
	fingerprint >"$CLUSTER_DIR/fingerprint"
	say "the cluster is up after $((SECONDS - begin)) s; ingress-nginx answers at http://$INGRESS_IP inside its namespaces"
}

# The logs stay for whoever looks into it; the processes do not.
start_failed() {
	local file
	for file in node deploy; do
		[[ ! -s $LOG_DIR/$file.log ]] || { say "--- $file.log" && tail -n 15 "$LOG_DIR/$file.log" >&2; }
	done
	while read -r file; do
		say "--- $file.log" && tail -n 15 "$LOG_DIR/$file.log" >&2
	done < <(sed -n 's/^failed: \([a-z-]*\) ended.*/\1/p' "$RUN_DIR/progress")
	stop_processes
	remove_cgroups
	die "the cluster did not start; all its logs are in $LOG_DIR."
}

# Runs for as long as the cluster does, and clears its cgroups when the first
# process has ended, however that came about.
keep_cluster() {
	unshare --net --mount --pid --fork --kill-child --uts --ipc "$RIG_DIR/lib/node.sh" "$@" || true
	remove_cgroups
}

cluster_down() {
	[[ $(id -u) == 0 ]] || check_machine
	take_lock
	if [[ ! -e $CLUSTER_DIR ]]; then
		remove_cgroups
		say "no cluster in $CLUSTER_DIR"
		return
	fi
	remove_cluster
	say "the cluster in $CLUSTER_DIR is gone"
}

# Ends what runs and deletes what is left, of a whole cluster or of a killed one.
remove_cluster() {
	stop_processes
	remove_cgroups
	[[ -e $CLUSTER_DIR ]] || return 0
	if [[ ! -e $CLUSTER_DIR/.canary-cluster && -n $(ls -A "$CLUSTER_DIR") ]]; then
		die "$CLUSTER_DIR holds other files than a cluster's: choose an empty or new folder with CANARY_CLUSTER_DIR."
	fi
	rm -rf --one-file-system "$CLUSTER_DIR"
	# The parent too, when this was the last one in it.
	[[ -n ${CANARY_CLUSTER_DIR:-} ]] || rmdir --ignore-fail-on-non-empty "${CLUSTER_DIR%/*}"
}

stop_processes() {
	local i
	find_init || return 0
	# The kernel ends every process of the namespaces with the first one.
	kill -KILL "$INIT_PID"
	for ((i = 0; i < 300; i++)); do
		find_init || return 0
		sleep 0.1
	done
	die "process $INIT_PID of the cluster does not end."
}

make_cgroups() {
	local folder parent controller setting
	for folder in $(cgroup_folders); do
		parent=${folder%/*}
		mkdir -p "$folder"
		if [[ $(cgroup_version) == 2 ]]; then
			# Below a container's root cgroup, controllers can be handed down only
			# when no process is left in it.
			if [[ -e $parent/cgroup.type && -s $parent/cgroup.procs ]]; then
				mkdir -p "$parent/init"
				while read -r pid; do echo "$pid" >"$parent/init/cgroup.procs" || true; done <"$parent/cgroup.procs"
			fi
			for controller in $(<"$parent/cgroup.controllers"); do
				echo "+$controller" >"$parent/cgroup.subtree_control" || true
				echo "+$controller" >"$folder/cgroup.subtree_control" || true
			done
		elif [[ -e $folder/cpuset.cpus ]]; then
			# A new v1 cpuset is empty and takes no process.
			cat "$parent/cpuset.cpus" >"$folder/cpuset.cpus"
			cat "$parent/cpuset.mems" >"$folder/cpuset.mems"
		fi
		# All pods together would else get as much of a busy machine's processors as
		# a single process beside them: tests would measure the machine.
		for setting in cpu.shares=16384 cpu.weight=1600; do
			[[ ! -e $folder/${setting%=*} ]] || echo "${setting#*=}" >"$folder/${setting%=*}" || true
		done
	done 2>/dev/null
}

remove_cgroups() {
	local folder i
	for folder in $(cgroup_folders); do
		# Processes that were killed leave their cgroups a moment later.
		for ((i = 0; i < 100; i++)); do
			[[ -d $folder ]] || break
			find "$folder" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
		done
		[[ ! -d $folder ]] || say "the cgroup $folder could not be removed"
	done
}

# shellcheck shell=bash
# shellcheck disable=SC2034 # most of these names are for the files that source this one
# Names, paths and small helpers shared by every part of the rig.

readonly EXIT_FAILURE=1
readonly EXIT_PREREQUISITE=2

readonly KUBERNETES_VERSION=1.34.4
readonly INGRESS_NGINX_VERSION=1.11.0

# Addresses inside the cluster's own network namespace; two clusters may use
# the same ones without meeting.
readonly NODE_NAME=node-1
readonly NODE_IP=10.10.0.1
readonly POD_CIDR=10.244.0.0/16
readonly NODE_POD_CIDR=10.244.0.0/24
readonly SERVICE_CIDR=10.96.0.0/16
readonly API_SERVICE_IP=10.96.0.1
readonly DNS_IP=10.96.0.10
readonly INGRESS_IP=10.96.0.80

# The cache folder of each part, by the part's name; see find_parts.
declare -gA PART_DIR=()

say() { printf '%s\n' "$*" >&2; }

# One sentence and the remedy; callers tell "cannot run here" from "broke" by
# the exit code.
die_prerequisite() {
	say "cluster: $*"
	exit "$EXIT_PREREQUISITE"
}

die() {
	say "cluster: $*"
	exit "$EXIT_FAILURE"
}

set_paths() {
	RIG_DIR=$1
	CACHE_DIR=${CANARY_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/canary-operator}
	CLUSTER_DIR=${CANARY_CLUSTER_DIR:-/var/tmp/canary-operator/default}
	[[ $CACHE_DIR == /* ]] || CACHE_DIR=$PWD/$CACHE_DIR
	[[ $CLUSTER_DIR == /* ]] || CLUSTER_DIR=$PWD/$CLUSTER_DIR
	CLUSTER_DIR=${CLUSTER_DIR%/}
	# A unix socket's path holds 107 bytes, and containerd's sockets lie below.
	((${#CLUSTER_DIR} <= 70)) ||
		die_prerequisite "CANARY_CLUSTER_DIR is ${#CLUSTER_DIR} characters long, and unix sockets below it need it to be 70 at most: choose a shorter folder."
	BIN_DIR=$CLUSTER_DIR/bin
	RUN_DIR=$CLUSTER_DIR/run
	LOG_DIR=$CLUSTER_DIR/log
	KUBECONFIG_FILE=$CLUSTER_DIR/kubeconfig
	CONTAINERD_SOCKET=$RUN_DIR/containerd.sock
	readonly RIG_DIR CACHE_DIR CLUSTER_DIR BIN_DIR RUN_DIR LOG_DIR KUBECONFIG_FILE CONTAINERD_SOCKET
}

# Each cluster has a cgroup root of its own: a kubelet removes the pod cgroups
# below its root that it does not know.
cgroup_name() {
	local sum
	sum=$(printf '%s' "$CLUSTER_DIR" | sha256sum)
	printf 'canary-%s' "${sum:0:10}"
}

cgroup_version() {
	if [[ -f /sys/fs/cgroup/cgroup.controllers ]]; then echo 2; else echo 1; fi
}

# Every folder in which this cluster's cgroup has to exist: one for v2, one a
# controller for v1.
cgroup_folders() {
	local name mount
	name=$(cgroup_name)
	if [[ $(cgroup_version) == 2 ]]; then
		echo "/sys/fs/cgroup/$name"
		return
	fi
	while read -r _ mount _; do
		[[ $mount != /sys/fs/cgroup/* ]] || echo "$mount/$name"
	done < <(grep -E '^[^ ]+ [^ ]+ cgroup2? ' /proc/mounts)
}

# --- progress ---------------------------------------------------------------

# step TEXT COMMAND…: runs the command with its output in a log, and prints the
# text, a line every half minute while it lasts, and the time it took.
step() {
	local text=$1 log begin=$SECONDS ticker status=0
	shift
	mkdir -p "$CACHE_DIR/log"
	log=$CACHE_DIR/log/${1//[^a-zA-Z0-9_]/-}-$BASHPID.log
	say "$text …"
	# The last `sleep` outlives the loop: it must hold neither the caller's pipe
	# nor the locks.
	(while sleep 30 >/dev/null 2>&1; do say "  … still at it after $((SECONDS - begin)) s"; done) 8>&- 9>&- &
	ticker=$!
	# A subshell with its own errexit: bash ignores `set -e` in a command whose
	# status is tested here, so the command runs untested and is waited for.
	(
		trap - EXIT
		set -e
		"$@"
	) >"$log" 2>&1 9>&- &
	wait "$!" || status=$?
	kill "$ticker" 2>/dev/null || true
	wait "$ticker" 2>/dev/null || true
	if ((status != 0)); then
		say "  failed after $((SECONDS - begin)) s; the last lines of $log:"
		tail -n 30 "$log" >&2
		exit "$status"
	fi
	rm -f "$log"
	say "  done in $((SECONDS - begin)) s"
}

# --- the cluster's first process ------------------------------------------------

# Start time of a process in clock ticks: with the number, it tells a process
# from a later one that got the same number.
start_time() {
	local stat
	stat=$(<"/proc/$1/stat") 2>/dev/null || return 1
	# The name in parentheses may hold blanks; field 22 is the 20th after it.
	read -r -a stat <<<"${stat##*) }"
	printf '%s' "${stat[19]}"
}

# Sets INIT_PID to the host's number of the first process in the namespaces;
# fails when the cluster does not run.
find_init() {
	local started
	[[ -r $CLUSTER_DIR/init.pid ]] || return 1
	read -r INIT_PID started <"$CLUSTER_DIR/init.pid" || return 1
	[[ -n $INIT_PID && -e /proc/$INIT_PID/ns/net && $(start_time "$INIT_PID" 2>/dev/null) == "$started" ]]
}

need_running() {
	[[ $(id -u) == 0 ]] || die_prerequisite "the namespaces can be entered by root only: run this as root."
	find_init || die "no cluster runs in $CLUSTER_DIR: start one with 'cluster up'."
}

# enter COMMAND…: replaces this process by the command inside the namespaces,
# with the same working directory and environment.
enter() {
	# nsenter goes to / with the mount namespace, hence the cd.
	# shellcheck disable=SC2016
	exec nsenter -t "$INIT_PID" -n -m -p -u -i -- \
		/bin/sh -c 'cd "$1" 2>/dev/null || cd /; shift; exec "$@"' sh "$PWD" "$@"
}

kube() { nsenter -t "$INIT_PID" -n -m -p -u -i -- "$BIN_DIR/kubectl" --kubeconfig "$KUBECONFIG_FILE" "$@"; }

containerd_ctr() {
	nsenter -t "$INIT_PID" -n -m -p -u -i -- ctr -a "$CONTAINERD_SOCKET" -n k8s.io "$@"
}

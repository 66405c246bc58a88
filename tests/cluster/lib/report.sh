# shellcheck shell=bash
# What a cluster tells about itself.

print_help() {
	cat <<-'END'
		Usage: cluster COMMAND

		  up                     build what is missing, start, wait until ingress-nginx is ready
		  down                   stop, and leave nothing behind
		  check                  tell whether this machine can run a cluster (exit 2 with a reason if not)
		  build                  only build what is missing
		  status                 whether the cluster runs, and its addresses
		  env                    shell exports: KUBECONFIG, addresses, paths of tools
		  shell                  a shell inside the cluster's namespaces
		  exec -- COMMAND…       a command inside the namespaces
		  kubectl|helm ARGS…     for this cluster
		  load-image FILE.tar    import an image archive (OCI or Docker)
		  images                 list the node's images
		  app-image BINARY TAG   make and import localhost/canary-operator:TAG
		  logs DIR               write everything that helps to find a fault to DIR

		CANARY_CLUSTER_DIR  the cluster's folder, one for each cluster (/var/tmp/canary-operator/default)
		CANARY_CACHE_DIR    what was built (~/.cache/canary-operator)

		Exit code 2: the machine lacks something; 1: something failed.
	END
}

print_status() {
	if [[ $(id -u) != 0 ]] || ! find_init; then
		echo "no cluster runs in $CLUSTER_DIR"
		return 1
	fi
	echo "folder          $CLUSTER_DIR"
	echo "first process   $INIT_PID"
	if [[ -e $RUN_DIR/ready ]]; then echo "state           up"; else echo "state           starting"; fi
	echo "ingress-nginx   http://$INGRESS_IP (inside the namespaces)"
	echo "KUBECONFIG      $KUBECONFIG_FILE"
	kube get nodes,pods -A -o wide --request-timeout=5s
}

print_env() {
	local name
	need_running
	for name in \
		KUBECONFIG="$KUBECONFIG_FILE" \
		CANARY_CLUSTER="$RIG_DIR/cluster" \
		CANARY_CLUSTER_DIR="$CLUSTER_DIR" \
		CANARY_CLUSTER_PID="$INIT_PID" \
		CANARY_CLUSTER_BIN="$BIN_DIR" \
		KUBECTL="$BIN_DIR/kubectl" \
		HELM="$BIN_DIR/helm" \
		VEGETA="$BIN_DIR/vegeta" \
		AB="$(command -v ab)" \
		INGRESS_ADDRESS="$INGRESS_IP" \
		INGRESS_METRICS_SERVICE=ingress-nginx-controller-metrics.ingress-nginx.svc:10254 \
		AUDIT_LOG="$LOG_DIR/audit.log"; do
		printf 'export %s=%q\n' "${name%%=*}" "${name#*=}"
	done
}

collect_logs() {
	local dir=$1 kind namespace pod phase ready file
	mkdir -p "$dir/components" "$dir/pods"
	for file in "$LOG_DIR"/*.log; do
		# The audit log alone may be larger than all the rest.
		[[ ! -e $file ]] || tail -c 20000000 "$file" >"$dir/components/${file##*/}"
	done
	if ! find_init; then
		say "no cluster runs in $CLUSTER_DIR; its components' logs are in $dir/components"
		return
	fi
	kube get all,ingress,events -A -o wide >"$dir/resources.txt" 2>&1 || true
	kube describe nodes >"$dir/nodes.txt" 2>&1 || true
	for kind in $(kube get crd -o jsonpath='{range .items[*]}{.spec.names.plural}.{.spec.group}{"\n"}{end}' 2>/dev/null | grep '^canaryreleases\.'); do
		kube get "$kind" -A -o yaml >"$dir/canaryreleases.yaml" 2>&1 || true
	done
	while read -r namespace pod phase ready; do
		kube logs -n "$namespace" "$pod" --all-containers --prefix --tail=20000 >"$dir/pods/$namespace.$pod.log" 2>&1 || true
		kube logs -n "$namespace" "$pod" --all-containers --prefix --previous >"$dir/pods/$namespace.$pod.previous.log" 2>/dev/null ||
			rm -f "$dir/pods/$namespace.$pod.previous.log"
		if [[ $phase != Succeeded && $ready != True ]]; then
			kube describe pod -n "$namespace" "$pod" >"$dir/pods/$namespace.$pod.describe.txt" 2>&1 || true
		fi
	done < <(kube get pods -A -o jsonpath='{range .items[*]}{.metadata.namespace} {.metadata.name} {.status.phase} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}' 2>/dev/null)
	say "logs are in $dir"
}

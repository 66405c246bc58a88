#!/usr/bin/env bash
# The first process inside the cluster's namespaces: sets up the node, starts
# every component, installs CoreDNS and ingress-nginx, and then ends as soon as
# one component ends. All it makes goes away with its namespaces.
#
# Used by `up`: node.sh RIG CHART CNI_DIR SYSTEM_IMAGES TEST_IMAGES…, each a folder.
# shellcheck disable=SC2317 # functions that until_true calls
set -euo pipefail

# shellcheck source=lib/common.sh
source "$1/lib/common.sh"
set_paths "$1"
CHART=$2
CNI_DIR=$3
SYSTEM_IMAGES=$4
TEST_IMAGES=("${@:5}")

# The machine's /proc is still mounted here, so this tells the machine's number
# of this process: whoever stops the cluster needs it, hence before all else.
read -r -a self </proc/self/stat
echo "${self[0]} ${self[21]}" >"$CLUSTER_DIR/init.pid"

progress() { echo "$*" >>"$RUN_DIR/progress"; }

mkdir -p "$RUN_DIR"/{pki,cni,sysctl} "$LOG_DIR"

# --- mounts -----------------------------------------------------------------

mount -t proc proc /proc
# Pods may ask for mount propagation, which a private root refuses.
mount --make-rshared /
# Paths that containerd, the CNI plugins and the kubelet have built in.
mkdir -p /var/lib/cni /var/lib/kubelet
for folder in /run /var/log /var/lib/cni /var/lib/kubelet; do
	# The cluster's own folder must stay in sight, wherever it was put.
	[[ $CLUSTER_DIR/ != "$folder"/* && $CACHE_DIR/ != "$folder"/* && $RIG_DIR/ != "$folder"/* ]] || continue
	mount -t tmpfs -o mode=755 tmpfs "$folder"
done
mkdir -p /run/lock

# The kubelet sets these for the whole machine, or refuses to start. It gets
# files of its own that already say what it wants.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
	kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
	name=${setting%=*}
	echo "${setting#*=}" >"$RUN_DIR/sysctl/${name//\//.}"
	[[ ! -e /proc/sys/$name ]] || mount --bind "$RUN_DIR/sysctl/${name//\//.}" "/proc/sys/$name"
done

# --- network ----------------------------------------------------------------

hostname "$NODE_NAME"
ip link set lo up
# A bridge without ports, because not every kernel has dummy devices. The
# default route leads nowhere: it lets packets to Service addresses get as far
# as the NAT rules.
ip link add node0 type bridge
ip addr add "$NODE_IP/24" dev node0
ip link set node0 up
ip route add default via 10.10.0.254 dev node0
echo 1 >/proc/sys/net/ipv4/ip_forward

# --- certificates ---------------------------------------------------------------

cd "$RUN_DIR/pki"

new_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }

# certificate NAME SUBJECT [EXTENSION]
certificate() {
	new_key "$1"
	openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
	openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -set_serial "0x$(openssl rand -hex 8)" -days 3650 \
		-out "$1.crt" -extfile <(echo "${3:-keyUsage=digitalSignature}") 2>/dev/null
}

kubeconfig() {
	certificate "$1" "$2"
	cat >"$1.kubeconfig" <<-END
		apiVersion: v1
		kind: Config
		clusters:
		- name: canary
		  cluster:
		    server: https://$NODE_IP:6443
		    certificate-authority-data: $(base64 -w 0 ca.crt)
		users:
		- name: $1
		  user:
		    client-certificate-data: $(base64 -w 0 "$1.crt")
		    client-key-data: $(base64 -w 0 "$1.key")
		contexts:
		- name: canary
		  context: {cluster: canary, user: $1}
		current-context: canary
	END
}

new_key ca
openssl req -x509 -key ca.key -days 3650 -subj /CN=canary-cluster -out ca.crt
new_key service-account
names=subjectAltName=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:$NODE_NAME,IP:127.0.0.1,IP:$API_SERVICE_IP,IP:$NODE_IP
certificate apiserver /CN=kube-apiserver "$names"
certificate kubelet "/CN=$NODE_NAME" "$names"
certificate kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
kubeconfig admin /O=system:masters/CN=admin
kubeconfig controller-manager /CN=system:kube-controller-manager
kubeconfig scheduler /CN=system:kube-scheduler
kubeconfig node "/O=system:nodes/CN=system:node:$NODE_NAME"
kubeconfig proxy /CN=system:kube-proxy
install -m 0600 admin.kubeconfig "$KUBECONFIG_FILE"

# --- components -------------------------------------------------------------

declare -A components=()

start() {
	local name=$1
	shift
	"$@" >"$LOG_DIR/$name.log" 2>&1 &
	components[$!]=$name
}

# until_true SECONDS WHAT COMMAND…
until_true() {
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		((SECONDS < end)) || {
			progress "failed: $what"
			exit "$EXIT_FAILURE"
		}
		sleep 0.1
	done
}

start etcd "$BIN_DIR/etcd" --data-dir "$RUN_DIR/etcd" --unsafe-no-fsync --log-level warn \
	--listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380

cat >"$RUN_DIR/audit.yaml" <<'END'
apiVersion: audit.k8s.io/v1
kind: Policy
omitManagedFields: true
rules:
- level: None
  nonResourceURLs: ["/healthz*", "/livez*", "/readyz*", "/openapi*", "/version"]
- level: Metadata
  namespaces: [kube-node-lease, kube-system]
  omitStages: [RequestReceived]
# An API server that is killed says no more than that it was asked for these, and may have done them.
- level: RequestResponse
  verbs: [patch, delete]
  resources:
  - {group: networking.k8s.io, resources: [ingresses]}
# What releases are made of, and what their order is judged by (tests/e2e/src/audit).
- level: RequestResponse
  verbs: [create, update, patch, delete]
  resources:
  - {group: canary-operator.dev, resources: [canaryreleases, canaryreleases/status]}
  - {group: networking.k8s.io, resources: [ingresses]}
  - {group: apps, resources: [deployments, deployments/status]}
  - {group: "", resources: [services]}
  - {group: discovery.k8s.io, resources: [endpointslices]}
  - {group: coordination.k8s.io, resources: [leases]}
  omitStages: [RequestReceived]
- level: Metadata
  omitStages: [RequestReceived]
END
# A test that kills it finds it started again, as a kubelet would; where it ends by itself, so does the cluster.
api_server() {
	local status=$((128 + 9))
	while ((status == 128 + 9)); do
		status=0
		"$BIN_DIR/kube-apiserver" "$@" || status=$?
	done
	return "$status"
}
# Old parts of the audit log stay: tests read all of it.
start kube-apiserver api_server --etcd-servers=http://127.0.0.1:2379 \
	--advertise-address="$NODE_IP" --secure-port=6443 --service-cluster-ip-range="$SERVICE_CIDR" \
	--tls-cert-file=apiserver.crt --tls-private-key-file=apiserver.key --client-ca-file=ca.crt \
	--service-account-key-file=service-account.key --service-account-signing-key-file=service-account.key \
	--service-account-issuer=https://kubernetes.default.svc.cluster.local \
	--authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged \
	--kubelet-client-certificate=kubelet-client.crt --kubelet-client-key=kubelet-client.key \
	--kubelet-certificate-authority=ca.crt --kubelet-preferred-address-types=InternalIP \
	--audit-policy-file="$RUN_DIR/audit.yaml" --audit-log-path="$LOG_DIR/audit.log" --audit-log-maxsize=200

# overlayfs cannot lie on overlayfs, which is what a container's own folders are.
snapshotter=overlayfs
[[ $(stat -f -c %T "$RUN_DIR") != overlayfs ]] || snapshotter=native
echo "$snapshotter" >"$RUN_DIR/snapshotter"

# restrict_oom_score_adj: without CAP_SYS_RESOURCE no sandbox would start.
# enable_unprivileged_ports: ingress-nginx listens on port 80 as an ordinary user.
cat >"$RUN_DIR/containerd.toml" <<END
version = 2
root = "$RUN_DIR/containerd"
state = "$RUN_DIR/containerd-state"
[grpc]
  address = "$CONTAINERD_SOCKET"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:v1"
  restrict_oom_score_adj = true
  enable_unprivileged_ports = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "$snapshotter"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$CNI_DIR"
    conf_dir = "$RUN_DIR/cni"
END
# Pods are routed and not bridged, so that nothing depends on br_netfilter.
cat >"$RUN_DIR/cni/10-pods.conflist" <<END
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipMasq": true, "ipam": {"type": "host-local", "dataDir": "$RUN_DIR/cni-addresses",
    "ranges": [[{"subnet": "$NODE_POD_CIDR"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
start containerd containerd -c "$RUN_DIR/containerd.toml"

import() {
	local file
	for file in "$1"/*.tar; do
		ctr -a "$CONTAINERD_SOCKET" -n k8s.io images import --snapshotter "$snapshotter" "$file"
	done
}
containerd_answers() { ctr -a "$CONTAINERD_SOCKET" version; }
import_system_images() {
	until_true 60 "containerd does not answer" containerd_answers
	import "$SYSTEM_IMAGES"
	touch "$RUN_DIR/system-imported"
}
import_system_images >"$LOG_DIR/import-system.log" 2>&1 &

api_ready() { curl -fsS --max-time 5 --cacert ca.crt --cert admin.crt --key admin.key "https://$NODE_IP:6443/readyz"; }
until_true 120 "kube-apiserver does not become ready" api_ready
progress "API server ready"

# A test that stalls the API server keeps the kubelet from reporting. Where that goes on for longer than this, the only node is
# NotReady as soon as the API server is back, and with it all pods of both versions: nginx answered 503 for 7 s, whatever the
# operator did.
start kube-controller-manager "$BIN_DIR/kube-controller-manager" --kubeconfig controller-manager.kubeconfig \
	--node-monitor-grace-period=30m \
	--service-account-private-key-file=service-account.key --root-ca-file=ca.crt --use-service-account-credentials \
	--cluster-signing-cert-file=ca.crt --cluster-signing-key-file=ca.key \
	--leader-elect=false --cluster-cidr="$POD_CIDR" --allocate-node-cidrs=false --bind-address=127.0.0.1
start kube-scheduler "$BIN_DIR/kube-scheduler" --kubeconfig scheduler.kubeconfig --leader-elect=false --bind-address=127.0.0.1

# No eviction and no image removal: a test machine's disk is often nearly full,
# and an image that is removed cannot be pulled again.
cat >"$RUN_DIR/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, x509: {clientCAFile: $RUN_DIR/pki/ca.crt}, webhook: {enabled: true}}
authorization: {mode: Webhook}
tlsCertFile: $RUN_DIR/pki/kubelet.crt
tlsPrivateKeyFile: $RUN_DIR/pki/kubelet.key
containerRuntimeEndpoint: unix://$CONTAINERD_SOCKET
cgroupDriver: cgroupfs
cgroupRoot: /$(cgroup_name)
failCgroupV1: false
failSwapOn: false
clusterDNS: [$DNS_IP]
clusterDomain: cluster.local
resolvConf: ""
volumePluginDir: $RUN_DIR/volume-plugins
podLogsDir: $RUN_DIR/pod-logs
imageGCHighThresholdPercent: 100
evictionHard: {nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%", memory.available: "1Mi"}
nodeStatusUpdateFrequency: 4s
syncFrequency: 10s
END
until_true 60 "containerd does not answer" containerd_answers
start kubelet "$BIN_DIR/kubelet" --config "$RUN_DIR/kubelet.yaml" --kubeconfig node.kubeconfig --root-dir "$RUN_DIR/kubelet" \
	--node-ip "$NODE_IP" --hostname-override "$NODE_NAME"

cat >"$RUN_DIR/proxy.yaml" <<END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $RUN_DIR/pki/proxy.kubeconfig}
mode: iptables
clusterCIDR: $POD_CIDR
hostnameOverride: $NODE_NAME
conntrack: {maxPerCore: 0}
END
start kube-proxy "$BIN_DIR/kube-proxy" --config "$RUN_DIR/proxy.yaml"

# --- what runs on the cluster ---------------------------------------------------

export KUBECONFIG=$KUBECONFIG_FILE
kubectl=$BIN_DIR/kubectl

node_known() { "$kubectl" get node "$NODE_NAME"; }

deploy() {
	# A pod that starts before its image is there waits out a back-off.
	until_true 120 "the system images cannot be imported; see import-system.log" test -e "$RUN_DIR/system-imported"
	sed -e "s/@DNS_IP@/$DNS_IP/" "$RIG_DIR/manifests/coredns.yaml" | "$kubectl" apply -f - &
	local coredns=$!
	HELM_CACHE_HOME=$RUN_DIR/helm HELM_CONFIG_HOME=$RUN_DIR/helm HELM_DATA_HOME=$RUN_DIR/helm \
		"$BIN_DIR/helm" install ingress-nginx "$CHART" --namespace ingress-nginx --create-namespace \
		--values "$RIG_DIR/manifests/ingress-nginx.yaml" --set "controller.service.clusterIP=$INGRESS_IP"
	wait "$coredns"
	until_true 60 "the node does not register" node_known
	"$kubectl" wait --for=condition=Ready "node/$NODE_NAME" --timeout=120s
	progress "node ready"
	"$kubectl" rollout status --namespace kube-system deployment/coredns --timeout=120s
	progress "CoreDNS ready"
	"$kubectl" rollout status --namespace ingress-nginx deployment/ingress-nginx-controller --timeout=120s
	progress "ingress-nginx ready"
}
bring_up() {
	local status=0
	(
		set -e
		deploy
	) >"$LOG_DIR/deploy.log" 2>&1 &
	local deploying=$!
	until_true 120 "the system images cannot be imported; see import-system.log" test -e "$RUN_DIR/system-imported"
	local folder
	for folder in "${TEST_IMAGES[@]}"; do
		import "$folder" || status=1
	done >"$LOG_DIR/import-test.log" 2>&1
	wait "$deploying" || status=1
	if ((status == 0)); then
		touch "$RUN_DIR/ready"
	else
		progress "failed: the deployments did not become ready; see deploy.log and import-test.log"
	fi
}
bring_up &

# The cluster lives as long as each of its components does.
ended=
while wait -n -p ended "${!components[@]}" || true; do
	[[ -z $ended ]] || break
done
progress "failed: ${components[$ended]} ended; see $LOG_DIR/${components[$ended]}.log"
exit "$EXIT_FAILURE"

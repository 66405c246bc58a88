# shellcheck shell=bash
# What the machine must offer. Each thing that lacks ends with one sentence.

# command:package, one a line; a command that is there is not installed again
# (containerd may well come from another vendor's package).
apt_wanted() {
	cat <<-'END'
		containerd:containerd
		runc:runc
		iptables:iptables
		conntrack:conntrack
		ip:iproute2
		nsenter:util-linux
		openssl:openssl
		curl:curl
		mmdebstrap:mmdebstrap
		umoci:umoci
		busybox:busybox-static
		ab:apache2-utils
		pgrep:procps
		mount:mount
		awk:mawk
	END
}

cni_dir() {
	local dir
	for dir in /usr/lib/cni /opt/cni/bin; do
		if [[ -x $dir/bridge && -x $dir/portmap && -x $dir/host-local ]]; then
			echo "$dir"
			return
		fi
	done
	return 1
}

missing_packages() {
	local line
	while read -r line; do
		command -v "${line%%:*}" >/dev/null || echo "${line##*:}"
	done < <(apt_wanted)
	cni_dir >/dev/null || echo containernetworking-plugins
}

check_machine() {
	[[ $(uname -s) == Linux ]] ||
		die_prerequisite "the cluster lives in Linux namespaces, and this is $(uname -s): run it on a Linux machine or in a virtual one."
	[[ $(id -u) == 0 ]] ||
		die_prerequisite "the cluster makes namespaces, mounts and cgroups, which root alone may: run this as root."

	command -v unshare >/dev/null ||
		die_prerequisite "the command unshare is missing: install the package util-linux."
	unshare --net --mount --pid --fork --mount-proc --uts --ipc true 2>/dev/null ||
		die_prerequisite "this machine does not let root unshare namespaces: run it on a machine of its own or in a privileged container (CAP_SYS_ADMIN)."
	unshare --net --mount --pid --fork --mount-proc sh -c '
		mount -t tmpfs tmpfs /mnt && echo 1 > /proc/sys/net/ipv4/ip_forward' 2>/dev/null ||
		die_prerequisite "mounts and network settings are refused inside new namespaces: run it on a machine of its own or in a privileged container."
	if command -v ip >/dev/null; then
		unshare --net sh -c 'ip link add b0 type bridge && ip link add v0 type veth peer name v1' 2>/dev/null ||
			die_prerequisite "the kernel has no network bridges or no veth devices: load the modules 'bridge' and 'veth'."
	fi
	if command -v iptables >/dev/null; then
		unshare --net iptables -t nat -L -n >/dev/null 2>&1 ||
			die_prerequisite "the kernel has no NAT tables for iptables: load the modules 'ip_tables' and 'iptable_nat', or 'nf_tables'."
	fi

	# The first one alone; a pipe to `head` may end in a broken pipe.
	local folder=
	read -r folder < <(cgroup_folders) || true
	[[ -n $folder ]] ||
		die_prerequisite "no cgroups are mounted below /sys/fs/cgroup: mount them."
	mkdir "$folder.check" 2>/dev/null ||
		die_prerequisite "cgroups cannot be made in ${folder%/*}: run it on a machine of its own or in a privileged container with writable cgroups."
	rmdir "$folder.check"

	local missing
	missing=$(missing_packages | paste -sd ' ')
	if [[ -n $missing ]] && ! command -v apt-get >/dev/null; then
		die_prerequisite "apt-get is not there to install what is missing: install these yourself: $missing."
	fi

	if something_to_build; then
		command -v apt-get >/dev/null ||
			die_prerequisite "the images' file systems come from Debian packages and apt-get is missing: use Debian, or bring the cache folder $CACHE_DIR from a machine that has built."
		command -v go >/dev/null ||
			die_prerequisite "Go is missing and Kubernetes has to be built: install Go 1.26 or newer and have it on PATH."
		check_go_modules
	fi
}

# One small question to whichever module proxy this machine's Go is set to.
check_go_modules() {
	local scratch status=0
	scratch=$(mktemp -d)
	(
		cd "$scratch" &&
			GOFLAGS='' GOWORK=off GOMODCACHE=$scratch/mod timeout 30 go list -m -json golang.org/x/xerrors@v0.0.0-20200804184101-5ec99f83aff1
	) >/dev/null 2>&1 || status=$?
	GOMODCACHE=$scratch/mod go clean -modcache 2>/dev/null || true
	rm -rf "$scratch"
	((status == 0)) ||
		die_prerequisite "the Go module proxy does not answer and Kubernetes has to be built: connect to the network or set GOPROXY to one that answers."
}

install_packages() {
	local -a missing
	mapfile -t missing < <(missing_packages)
	((${#missing[@]} > 0)) || return 0
	step "installing by apt: ${missing[*]}" apt_install "${missing[@]}"
}

apt_install() {
	export DEBIAN_FRONTEND=noninteractive
	if ! apt-get update -qq || ! apt-get install -y --no-install-recommends "$@"; then
		say "packages cannot be installed by apt-get (no network, or a package source is wrong): make 'apt-get install $*' work."
		exit "$EXIT_PREREQUISITE"
	fi
}

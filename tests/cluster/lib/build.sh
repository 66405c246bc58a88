# shellcheck shell=bash
# Builds what registries offer as source, each part into a folder of the cache
# that is named after the content of everything the part is made from.

readonly GO_PARTS=(kubernetes etcd helm coredns ingress-nginx vegeta)

# key STRING|FILE|FOLDER…: a short hash over the contents.
key() {
	local input
	for input in "$@"; do
		if [[ $input == "$RIG_DIR"/* && -e $input ]]; then
			find "$input" -type f -printf '%P\n' | LC_ALL=C sort
			find "$input" -type f -print0 | LC_ALL=C sort -z | xargs -0 cat
		else
			echo "$input"
		fi
	done | sha256sum | cut -c 1-16
}

go_packages() {
	case $1 in
	kubernetes) printf 'k8s.io/kubernetes/cmd/%s\n' kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl ;;
	etcd) echo go.etcd.io/etcd/server/v3 ;;
	helm) echo helm.sh/helm/v4/cmd/helm ;;
	coredns) echo . ;;
	ingress-nginx) echo k8s.io/ingress-nginx/cmd/nginx ;;
	vegeta) echo github.com/tsenart/vegeta/v12 ;;
	esac
}

go_ldflags() {
	local version component=k8s.io/component-base/version
	case $1 in
	kubernetes)
		version=v$KUBERNETES_VERSION
		printf -- '-s -w -X %s.gitVersion=%s -X %s.gitMajor=1 -X %s.gitMinor=%s -X %s.gitTreeState=clean' \
			"$component" "$version" "$component" "$component" "$(cut -d . -f 2 <<<"$version")" "$component"
		;;
	helm)
		version=$(awk '$1 == "helm.sh/helm/v4" || $2 == "helm.sh/helm/v4" { print $NF == "indirect" ? $(NF - 2) : $NF; exit }' "$RIG_DIR/build/helm/go.mod")
		printf -- '-s -w -X helm.sh/helm/v4/internal/version.version=%s' "$version"
		;;
	ingress-nginx)
		printf -- '-s -w -X k8s.io/ingress-nginx/version.RELEASE=v%s' "$INGRESS_NGINX_VERSION"
		;;
	*) printf -- '-s -w' ;;
	esac
}

# How long the first build took on two cores, for the progress line.
go_duration() {
	case $1 in
	kubernetes) echo "7 min" ;;
	etcd | vegeta) echo "40 s" ;;
	coredns) echo "1 min" ;;
	helm) echo "1.5 min" ;;
	ingress-nginx) echo "3 min" ;;
	esac
}

part_title() {
	case $1 in
	kubernetes) echo "Kubernetes $KUBERNETES_VERSION" ;;
	coredns) echo "CoreDNS" ;;
	helm) echo "Helm" ;;
	ingress-nginx) echo "ingress-nginx $INGRESS_NGINX_VERSION" ;;
	*) echo "$1" ;;
	esac
}

find_parts() {
	local part
	for part in "${GO_PARTS[@]}"; do
		# shellcheck disable=SC2004 # an associative array
		PART_DIR[$part]=$CACHE_DIR/$part-$(key "$RIG_DIR/build/$part" "$(go_packages "$part")" "$(go_ldflags "$part")" "$(declare -f build_go_part)")
	done
	find_images
}

something_to_build() {
	local part
	for part in "${!PART_DIR[@]}"; do
		[[ -d ${PART_DIR[$part]} ]] || return 0
	done
	return 1
}

build_missing() {
	local part
	mkdir -p "$CACHE_DIR"
	# Two first runs at once must not build everything twice.
	exec 8>"$CACHE_DIR/lock"
	if ! flock -n 8; then
		say "waiting for another build in $CACHE_DIR …"
		flock 8
	fi
	# What a build that was killed has left behind.
	find "$CACHE_DIR" -maxdepth 1 -name '*.part' -exec chmod -R u+w {} + -exec rm -rf {} +
	for part in "${GO_PARTS[@]}"; do
		[[ -d ${PART_DIR[$part]} ]] ||
			step "building $(part_title "$part") (about $(go_duration "$part") the first time)" build_go_part "$part"
	done
	build_missing_images
	# Each change of an input leaves the older folder behind.
	touch "${PART_DIR[@]}"
	find "$CACHE_DIR" -mindepth 1 -maxdepth 1 -type d -name '*-*' -mtime +30 -exec rm -rf {} +
	exec 8>&-
}

build_go_part() {
	local part=$1 target=${PART_DIR[$1]} module
	local out=$target.part
	local -a packages
	mapfile -t packages < <(go_packages "$part")
	mkdir -p "$out/bin"
	cd "$RIG_DIR/build/$part" || return
	# What runs inside an image has no C library of the machine's to link with.
	case $part in coredns | ingress-nginx) export CGO_ENABLED=0 ;; esac
	GOFLAGS='' GOWORK=off go build -trimpath -buildvcs=false -ldflags "$(go_ldflags "$part")" -o "$out/bin/" "${packages[@]}"
	case $part in
	etcd) mv "$out/bin/server" "$out/bin/etcd" ;;
	vegeta) [[ -f $out/bin/vegeta ]] || mv "$out/bin/v12" "$out/bin/vegeta" ;;
	ingress-nginx)
		# The chart and the files of the image come out of the same module, so
		# that they fit the controller. The module cache is read-only.
		mv "$out/bin/nginx" "$out/bin/nginx-ingress-controller"
		module=$(GOFLAGS='' GOWORK=off go list -m -f '{{.Dir}}' k8s.io/ingress-nginx)
		cp -r "$module/charts/ingress-nginx" "$out/chart"
		cp -r "$module/rootfs/etc/nginx" "$out/nginx"
		chmod -R u+w "$out"
		rm -rf "$out/nginx/lua/test"
		;;
	esac
	mv "$out" "$target"
}

# One folder with every command that the cluster and its tests use.
link_commands() {
	local part
	mkdir -p "$BIN_DIR"
	for part in "${GO_PARTS[@]}"; do
		ln -sf "${PART_DIR[$part]}"/bin/* "$BIN_DIR/"
	done
}

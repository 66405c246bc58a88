# shellcheck shell=bash
# shellcheck disable=SC2154,SC2004 # PART_DIR is an associative array of common.sh
# The images, made without a registry: file systems from Debian packages, laid
# out as OCI images by umoci.

readonly DEBIAN_SUITE=bookworm
readonly COREDNS_TAG=v1
readonly PROMETHEUS_TAG=v2

readonly BASES=(runtime python nginx prometheus)

# NAME: packages of a base file system.
base_packages() {
	case $1 in
	runtime) echo libc6,libgcc-s1,ca-certificates ;;
	python) echo python3,busybox-static ;;
	prometheus) echo prometheus ;;
	nginx) echo ca-certificates,dumb-init,nginx,libnginx-mod-http-lua,libnginx-mod-http-ndk,libnginx-mod-http-headers-more-filter,libnginx-mod-http-set-misc,lua-resty-core,lua-resty-lrucache,lua-cjson,lua-nginx-cookie,lua-nginx-dns ;;
	esac
}

find_images() {
	local base
	for base in "${BASES[@]}"; do
		PART_DIR[base-$base]=$CACHE_DIR/base-$base-$(key "$DEBIAN_SUITE" "$(base_packages "$base")" "$(declare -f build_base)")
	done
	PART_DIR[images-system]=$CACHE_DIR/images-system-$(key "${PART_DIR[base-nginx]##*/}" "${PART_DIR[ingress-nginx]##*/}" "${PART_DIR[coredns]##*/}" \
		"$RIG_DIR/images/ingress-nginx" "$(declare -f build_system_images new_image add_folder)")
	PART_DIR[images-app]=$CACHE_DIR/images-app-$(key "${PART_DIR[base-python]##*/}" "$RIG_DIR/images/app" "$(declare -f build_app_images new_image add_folder)")
	PART_DIR[images-prometheus]=$CACHE_DIR/images-prometheus-$(key "${PART_DIR[base-prometheus]##*/}" "$PROMETHEUS_TAG" "$(declare -f build_prometheus_image new_image)")
}

build_missing_images() {
	local base
	for base in "${BASES[@]}"; do
		[[ -d ${PART_DIR[base-$base]} ]] ||
			step "unpacking Debian packages for the images: $base (about 20 s the first time)" build_base "$base"
	done
	[[ -d ${PART_DIR[images-system]} ]] ||
		step "making the images of the cluster itself (about 20 s the first time)" build_system_images
	[[ -d ${PART_DIR[images-app]} ]] ||
		step "making the images of the test application (about 20 s the first time)" build_app_images
	[[ -d ${PART_DIR[images-prometheus]} ]] ||
		step "making the image of Prometheus (about 10 s the first time)" build_prometheus_image
}

# A base is an OCI layout with one image, `base`, of one layer.
build_base() {
	local base=$1
	local target=${PART_DIR[base-$base]}
	local out=$target.part
	mkdir -p "$out"
	# The packages are unpacked and not set up: what their scripts would make and
	# the images need is made here. Certificates are bundled by such a script.
	# shellcheck disable=SC2016
	mmdebstrap --variant=extract --include="$(base_packages "$base")" \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
		--extract-hook='set -e
			mkdir -p "$1/etc" "$1/tmp" && chmod 1777 "$1/tmp"
			printf "root:x:0:0:root:/:/bin/sh\nwww-data:x:101:33::/:/bin/false\nnonroot:x:65532:65532::/:/bin/false\n" >"$1/etc/passwd"
			printf "root:x:0:\nwww-data:x:33:\nnonroot:x:65532:\n" >"$1/etc/group"
			if [ -d "$1/usr/share/ca-certificates/mozilla" ]; then
				mkdir -p "$1/etc/ssl/certs"
				cat "$1"/usr/share/ca-certificates/mozilla/*.crt >"$1/etc/ssl/certs/ca-certificates.crt"
			fi
			if [ -e "$1/usr/bin/python3" ]; then
				ln -s python3 "$1/usr/bin/python"
				find "$1/usr/lib/python3"* -depth "(" -name test -o -name idlelib -o -name lib2to3 ")" -exec rm -rf "{}" +
			fi
			rm -rf "$1/usr/bin/promtool" "$1/usr/share/javascript" "$1/usr/share/fonts"
			if [ -x "$1/bin/busybox" ] && [ ! -e "$1/bin/sh" ]; then ln -s busybox "$1/bin/sh"; fi' \
		--skip=output/dev "$DEBIAN_SUITE" "$out/layer.tar"
	umoci init --layout "$out/oci"
	umoci new --image "$out/oci:base"
	umoci raw add-layer --image "$out/oci:base" "$out/layer.tar"
	rm "$out/layer.tar"
	mv "$out" "$target"
}

# new_image LAYOUT NAME: starts NAME in LAYOUT from its `base`, or from nothing.
new_image() {
	if umoci ls --layout "$1" | grep -x base >/dev/null; then
		umoci tag --image "$1:base" "$2"
	else
		umoci new --image "$1:$2"
	fi
}

# add_folder LAYOUT NAME FOLDER [UID:GID]: adds the folder's content as a layer.
add_folder() {
	local owner=${4:-0:0}
	tar -C "$3" --sort=name --numeric-owner --owner="${owner%:*}" --group="${owner#*:}" -cf "$3.tar" .
	umoci raw add-layer --image "$1:$2" "$3.tar"
	rm -rf "$3" "$3.tar"
}

# pack LAYOUT FILE: the layout as one archive, without the nameless base.
pack() {
	! umoci ls --layout "$1" | grep -x base >/dev/null || umoci rm --image "$1:base"
	umoci gc --layout "$1"
	tar -C "$1" -cf "$2" .
	rm -rf "$1"
}

build_system_images() {
	local target=${PART_DIR[images-system]} ingress=${PART_DIR[ingress-nginx]}
	local out=$target.part tree
	local tiny=$out/tiny nginx=$out/nginx
	mkdir -p "$out"

	# pause and CoreDNS: one static file each.
	umoci init --layout "$tiny"
	tree=$out/tree
	install -D "$(command -v busybox)" "$tree/bin/busybox"
	new_image "$tiny" localhost/pause:v1
	add_folder "$tiny" localhost/pause:v1 "$tree"
	umoci config --image "$tiny:localhost/pause:v1" --config.entrypoint /bin/busybox --config.cmd sleep --config.cmd infinity
	install -D "${PART_DIR[coredns]}/bin/coredns" "$tree/coredns"
	new_image "$tiny" "localhost/coredns:$COREDNS_TAG"
	add_folder "$tiny" "localhost/coredns:$COREDNS_TAG" "$tree"
	umoci config --image "$tiny:localhost/coredns:$COREDNS_TAG" --config.entrypoint /coredns --config.user 65532
	pack "$tiny" "$out/1-tiny.tar"

	# ingress-nginx: Debian's nginx with the controller's own Lua and template.
	cp -r "${PART_DIR[base-nginx]}/oci" "$nginx"
	mkdir -p "$tree/etc" "$tree"/etc/ingress-controller/{ssl,auth,geoip,telemetry} "$tree/tmp/nginx" "$tree/var/lib/nginx" "$tree/var/log/nginx"
	cp -r "$ingress/nginx" "$tree/etc/nginx"
	cp -r "$RIG_DIR/images/ingress-nginx/resty" "$tree/etc/nginx/lua/"
	awk -f "$RIG_DIR/images/ingress-nginx/template.awk" "$ingress/nginx/template/nginx.tmpl" >"$tree/etc/nginx/template/nginx.tmpl"
	ln -s /dev/stdout "$tree/var/log/nginx/access.log"
	ln -s /dev/stderr "$tree/var/log/nginx/error.log"
	install "$ingress/bin/nginx-ingress-controller" "$tree/nginx-ingress-controller"
	chmod 1777 "$tree/tmp"
	local image=localhost/ingress-nginx:v$INGRESS_NGINX_VERSION
	new_image "$nginx" "$image"
	add_folder "$nginx" "$image" "$tree" 101:33
	umoci config --image "$nginx:$image" --config.user 101 --config.env NGINX_BINARY=/usr/sbin/nginx \
		--config.entrypoint /usr/bin/dumb-init --config.entrypoint -- --config.cmd /nginx-ingress-controller
	pack "$nginx" "$out/2-ingress-nginx.tar"
	mv "$out" "$target"
}

build_app_images() {
	local target=${PART_DIR[images-app]}
	local out=$target.part version image start
	local layout=$out/oci tree=$out/tree
	mkdir -p "$out"
	cp -r "${PART_DIR[base-python]}/oci" "$layout"
	for version in v1 v2 v3; do
		image=localhost/challenge-app:$version
		start=app.py
		[[ $version != v2 ]] || start=server.py
		mkdir -p "$tree/app"
		install -m 0644 "$RIG_DIR"/images/app/*.py "$tree/app/"
		new_image "$layout" "$image"
		add_folder "$layout" "$image" "$tree"
		umoci config --image "$layout:$image" --config.workingdir /app --config.cmd python --config.cmd "$start" \
			--config.env "VERSION=$version" --config.env PYTHONUNBUFFERED=1 --config.env PYTHONDONTWRITEBYTECODE=1 \
			--config.env PATH=/usr/local/bin:/usr/bin:/bin --config.exposedports 8080
	done
	pack "$layout" "$out/1-challenge-app.tar"
	mv "$out" "$target"
}

# Debian's Prometheus as it is; whoever runs it brings the configuration. Its web pages are left out.
build_prometheus_image() {
	local target=${PART_DIR[images-prometheus]} image=localhost/prometheus:$PROMETHEUS_TAG
	local out=$target.part
	mkdir -p "$out"
	cp -r "${PART_DIR[base-prometheus]}/oci" "$out/oci"
	new_image "$out/oci" "$image"
	umoci config --image "$out/oci:$image" --config.user 65532:65532 --config.entrypoint /usr/bin/prometheus --config.exposedports 9090
	pack "$out/oci" "$out/1-prometheus.tar"
	mv "$out" "$target"
}

# import_image FILE: into the running cluster.
import_image() {
	containerd_ctr images import - <"$1"
}

# operator_image BINARY TAG: the image that users get from the Containerfile, on
# a base made of packages. Debug symbols are left as the binary has them.
operator_image() {
	local binary=$1 tag=$2 scratch image
	[[ -f $binary && -x $binary ]] || die "$binary is not an executable file: build the operator first."
	[[ $tag =~ ^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$ && $tag != latest ]] ||
		die "'$tag' cannot be the image's tag: use letters, digits, '.', '_', '-', and not 'latest', which a node would try to pull."
	image=localhost/canary-operator:$tag
	scratch=$(mktemp -d "$CLUSTER_DIR/image.XXXXXX")
	# shellcheck disable=SC2064
	trap "rm -rf '$scratch'" EXIT
	cp -r "${PART_DIR[base-runtime]}/oci" "$scratch/oci"
	install -D "$binary" "$scratch/tree/usr/local/bin/canary-operator"
	new_image "$scratch/oci" "$image"
	add_folder "$scratch/oci" "$image" "$scratch/tree"
	umoci config --image "$scratch/oci:$image" --config.user 65532:65532 --config.entrypoint /usr/local/bin/canary-operator
	pack "$scratch/oci" "$scratch/image.tar"
	import_image "$scratch/image.tar" >&2
	echo "$image: $(awk -v n="$(stat -c %s "$scratch/image.tar")" 'BEGIN { printf "%.1f MB compressed", n / 1e6 }')"
}

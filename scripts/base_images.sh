#!/bin/sh
# Provide the images that the Dockerfiles begin with: those that this machine has or a registry
# gives, and otherwise made here from Debian packages (as root, with debootstrap).
# Usage: scripts/base_images.sh DOCKERFILE...      DEBIAN_MIRROR: where the packages are.
set -eu

for image in $(sed -n 's/^FROM \([^ ]*\).*/\1/p' "$@" | sort -u); do
    if docker image inspect "$image" >/dev/null 2>&1 || docker pull --quiet "$image" 2>/dev/null; then
        continue
    fi
    suite=${image#debian:}
    suite=${suite%-slim}
    case "$image" in
    debian:*-slim) ;;
    *)
        echo "base_images: no registry gives $image, and only debian:SUITE-slim can be made here" >&2
        exit 1
        ;;
    esac
    if [ "$(id -u)" -ne 0 ] || ! command -v debootstrap >/dev/null; then
        echo "base_images: no registry gives $image; to make it here: apt-get install debootstrap," \
            "then run this as root" >&2
        exit 1
    fi
    echo "base_images: no registry gives $image; making it from Debian packages"
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    if ! debootstrap --variant=minbase "$suite" "$root/system" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} \
        >"$root/log" 2>&1; then
        tail -n 5 "$root/log" >&2
        exit 1
    fi
    # What this machine trusts, the image trusts: a registry may be reached through a proxy that
    # has an authority of its own.
    if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
        install -D -m 644 /etc/ssl/certs/ca-certificates.crt \
            "$root/system/usr/local/share/ca-certificates/host.crt"
    fi
    # As the official image: without manuals and translations, and apt keeps no packages.
    cat >"$root/system/etc/dpkg/dpkg.cfg.d/slim" <<SLIM
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
SLIM
    cat >"$root/system/etc/apt/apt.conf.d/clean" <<'CLEAN'
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
CLEAN
    rm -rf "$root/system/usr/share/locale" "$root/system/usr/share/man" \
        "$root/system/var/cache/apt" "$root/system/var/lib/apt/lists"
    find "$root/system/usr/share/doc" -type f ! -name copyright -delete
    mkdir -p "$root/system/var/cache/apt/archives/partial" "$root/system/var/lib/apt/lists/partial"
    tar -C "$root/system" -c . | docker import --change 'CMD ["bash"]' - "$image" >/dev/null
    rm -rf "$root"
    trap - EXIT
done

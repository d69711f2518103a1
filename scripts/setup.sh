#!/bin/sh
# Install what featherlb and its tests need: Debian packages (as root) and a virtual environment.
# With `bench`, what the benchmark needs as well: the peers, and a plotting library.
# Quick when everything is there. Usage: scripts/setup.sh [VENV [bench]]
set -eu
cd "$(dirname "$0")/.."
venv=${1:-.venv}

packages="iptables ipset nftables conntrack iproute2 iputils-ping procps tcpdump wrk iperf3 curl nginx-light
  dnsmasq-base bind9-dnsutils ethtool
  libnetfilter-queue-dev gcc python3-dev python3-venv"
extras=dev
if [ "${2:-}" = bench ]; then
    packages="$packages haproxy libnginx-mod-stream git"
    extras=dev,bench
fi

missing=
for package in $packages; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
        missing="$missing $package"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" -ne 0 ]; then
        echo "setup: not root, so these Debian packages stay missing:$missing" >&2
    else
        echo "setup: installing$missing"
        apt-get update -q
        # A service must not start on this machine just because its program is needed by a test.
        policy=/usr/sbin/policy-rc.d
        if [ ! -e "$policy" ]; then
            trap 'rm -f "$policy"' EXIT
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod +x "$policy"
        fi
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing
    fi
fi

stamp="$venv/.installed-$extras"
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ setup.py -nt "$stamp" ]; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "setup: Python 3.11 or newer is needed, this is $(python3 --version)" >&2
        exit 1
    }
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    FEATHERLB_PURE=1 "$venv/bin/pip" install --quiet --editable ".[$extras]"
    touch "$stamp"
fi

# The packet path is compiled beside its sources, again whenever one has changed.
if [ "${FEATHERLB_PURE:-}" != 1 ] &&
    ! "$venv/bin/python" -c 'import sys, featherlb.build as b; sys.exit(not b.up_to_date())'; then
    echo "setup: compiling the packet path"
    "$venv/bin/python" setup.py --quiet build_ext --inplace --parallel 2
fi

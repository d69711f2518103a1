#!/bin/sh
# Install what is needed here: Debian packages (as root), a virtual environment, and the packet path
# compiled beside its sources. Quick when everything is there.
# Usage: scripts/setup.sh [VENV [run|test|bench]]
#   run     for featherlb itself, its demo and the lab
#   test    for the tests and checks as well (the default)
#   bench   for the benchmarks as well: the peers, and a plotting library
set -eu
cd "$(dirname "$0")/.."
venv=${1:-.venv}
level=${2:-test}
export PIP_DISABLE_PIP_VERSION_CHECK=1

run="gcc iproute2 iptables libnetfilter-queue-dev python3-dev"
test="bind9-dnsutils clang conntrack curl dnsmasq-base ethtool iperf3 ipset iputils-ping nftables nginx-light
  procps tcpdump tshark wrk"
bench="git haproxy libnginx-mod-stream"
case "$level" in
run) packages="$run" extras="" levels="run" ;;
test) packages="$run $test" extras="[dev,bench]" levels="run test" ;;
bench) packages="$run $test $bench" extras="[dev,bench]" levels="run test bench" ;;
*)
    sed -n 's/^# //; /^Usage/,/^  bench/p' "$0" >&2
    exit 2
    ;;
esac

log=$(mktemp)
policy=
apt=
trap '[ -z "$apt" ] || wait "$apt"; rm -f "$log" $policy' EXIT

missing() {
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
            echo "$package"
    done
}

apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y "$@" >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        echo "setup: apt-get $* failed" >&2
        return 1
    }
}

# shellcheck disable=SC2046,SC2086
set -- $(missing $packages python3-venv)
if [ $# -gt 0 ] && [ "$(id -u)" -ne 0 ]; then
    echo "setup: not root, so these Debian packages stay missing: $*" >&2
elif [ $# -gt 0 ]; then
    echo "setup: installing $*"
    # A service must not start on this machine just because its program is needed by a test.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        policy=/usr/sbin/policy-rc.d
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    apt update
    # Python comes first: while the others are being installed, pip is at work.
    apt install --no-install-recommends python3-venv
    apt install --no-install-recommends "$@" &
    apt=$!
fi

stamp="$venv/.for-$level"
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ setup.py -nt "$stamp" ]; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "setup: Python 3.11 or newer is needed, this is $(python3 --version)" >&2
        exit 1
    }
    echo "setup: installing Python packages into $venv"
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    # What comes built, which is all but one package, needs no compiler.
    "$venv/bin/python" - "$extras" >"$venv/requirements.txt" <<'REQUIREMENTS'
import sys, tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
wanted = project["build-system"]["requires"] + project["project"]["dependencies"]
for extra in filter(None, sys.argv[1].strip("[]").split(",")):
    wanted += project["project"]["optional-dependencies"][extra]
print(*(one for one in wanted if not one.startswith("NetfilterQueue")), sep="\n")
REQUIREMENTS
    "$venv/bin/pip" install --quiet --requirement "$venv/requirements.txt"
    [ -z "$apt" ] || wait "$apt"
    apt=
    FEATHERLB_PURE=1 "$venv/bin/pip" install --quiet --no-build-isolation --editable ".$extras"
    for level in $levels; do touch "$venv/.for-$level"; done
fi
[ -z "$apt" ] || wait "$apt"

# What is no longer compiled would still run in its old compiled form.
find featherlb -name '*.so' ! -name '_cyutility.*' | while read -r binary; do
    [ -e "${binary%%.*}.pxd" ] || rm "$binary"
done

# Again whenever a source has changed.
if [ "${FEATHERLB_PURE:-}" != 1 ] &&
    ! "$venv/bin/python" -c 'import sys, featherlb.compiled as c; sys.exit(not c.up_to_date())'; then
    echo "setup: compiling the packet path"
    "$venv/bin/python" setup.py --quiet build_ext --inplace
fi

for source in featherlb/bpf/*.c; do
    command -v clang >/dev/null || break
    if [ -e "$source" ] && [ -n "$(find featherlb/bpf -newer "${source%.c}.o" -name '*.[ch]' 2>&1)" ]; then
        echo "setup: compiling the programs for the kernel"
        FEATHERLB_PURE=1 "$venv/bin/python" setup.py --quiet build_bpf --inplace
        break
    fi
done

#!/bin/sh
# Run a Python module with the packet path compiled for AddressSanitizer, which ends the process
# where it reads or writes beyond its memory. Usage: scripts/asan.sh VENV MODULE [ARGUMENT]...
# The build is one of its own, in build/asan.
set -eu
venv=$1
module=$2
shift 2

CFLAGS="-fsanitize=address -fno-omit-frame-pointer -g1 -O1" \
    "$venv/bin/python" setup.py --quiet build --build-base build/asan 2>&1 |
    grep -v '^warning: \|^no previously\|^$' >&2 || true
library=$(echo "$PWD"/build/asan/lib*)

# Python itself is not compiled for it, so the runtime has to be loaded first. It sees each object
# only if Python takes memory from malloc. Python frees little of what it has at its end.
export LD_PRELOAD="$(${CC:-gcc} -print-file-name=libasan.so)"
export ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc
export PYTHONSAFEPATH=1 PYTHONPATH="$library:$PWD"
"$venv/bin/python" - "$library" <<'CHECK'
import os, sys
import featherlb
from featherlb.core.path import balancer
from scripts import fuzz

assert featherlb.COMPILED and balancer.__file__.startswith(sys.argv[1]), "another build runs"
if os.fork() == 0:
    # A header beyond the buffer: who watches must see it.
    os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
    core = fuzz.balancer()
    core.attach(bytearray(b"\x45"))
    core.handle_packet(0, 4000, 0, 0, 1000.0)
    os._exit(0)
assert os.wait()[1], "AddressSanitizer doesn't watch"
CHECK
exec "$venv/bin/python" -m "$module" "$@"

"""What a confined process can't do any more, each tried in a process of its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from featherlb.system import ebpf, privileges

CODE = """
import ctypes, errno, os, socket, sys
from pathlib import Path
from featherlb.system import privileges
{before}
missing = privileges.confine([Path({directory!r})])
def refused(act, *numbers):
    try:
        act()
    except OSError as error:
        assert error.errno in (numbers or (errno.EPERM, errno.EACCES)), error
        return
    raise SystemExit("not refused")
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
{code}
"""


def confined(tmp_path: Path, code: str, before: str = "") -> str:
    """What the code prints in a confined process; code runs `before` it is confined."""
    (tmp_path / "state").mkdir()
    text = CODE.format(
        directory=str(tmp_path / "state"),
        code=textwrap.dedent(code),
        before=textwrap.dedent(before),
    )
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_program_is_run(tmp_path: Path) -> None:
    # In a fork as well; a fork itself is possible.
    confined(
        tmp_path,
        """
        refused(lambda: os.execv("/bin/true", ["true"]))
        if os.fork() == 0:
            refused(lambda: os.execv("/bin/true", ["true"]))
            os._exit(0)
        assert os.wait()[1] == 0
        """,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_nothing_of_root_is_left_but_two_capabilities(tmp_path: Path) -> None:
    status = confined(
        tmp_path,
        """
        refused(lambda: os.setuid(0))
        refused(lambda: os.chown("state", 0, 0))
        refused(lambda: os.chroot("/"))
        refused(lambda: call(272, 0x40000000))  # unshare
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
        print(open("/proc/self/status").read())
        """,
    )
    lines = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    # Before Linux 5.19, maps need CAP_BPF.
    kept = 0x3000 | (1 << privileges.CAP_BPF if ebpf.maps_need_capability() else 0)
    for name in ("CapEff", "CapPrm", "CapBnd"):
        assert int(lines[name], 16) == kept, name
    assert int(lines["CapInh"], 16) == int(lines["CapAmb"], 16) == 0
    assert (lines["NoNewPrivs"], lines["Seccomp"]) == ("1", "2")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_of_bpf_only_the_use_of_maps_is_left(tmp_path: Path) -> None:
    confined(
        tmp_path,
        """
        refused(lambda: ebpf.create_map(shape, "other"))
        refused(lambda: given.pin(Path("/sys/fs/bpf/any")))
        refused(lambda: ebpf.call(11, bytes(8)))  # the next program's id
        given = ebpf.adopt_map(os.dup(given.fd))
        given.update(bytes(4), b"abcd")
        assert given.look_up(bytes(4)) == b"abcd"
        assert given.update_batch(bytes(range(8)), bytes(8), 2) == 2
        assert [key for key in given.keys()]
        assert given.delete_batch(bytes(range(8)), 2) == 2
        assert given.delete(bytes(4))
        memory = array.memory()
        memory[0] = 1
        """,
        """
        from featherlb.system import ebpf
        from featherlb.system.elf import MapShape
        shape = MapShape(1, 4, 4, 8, 0)
        given = ebpf.create_map(shape, "given")
        array = ebpf.create_map(MapShape(2, 4, 8, 8, ebpf.MapFlag.MMAPABLE), "array")
        """,
    )


def test_the_other_numbers_of_the_same_calls_are_refused(tmp_path: Path) -> None:
    """x32's execve has a number of its own."""
    if os.uname().machine == "x86_64":
        confined(tmp_path, "refused(lambda: call(0x40000000 + 520, b'/bin/true', 0, 0))")


def test_files_change_only_where_they_may(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("kept")
    missing = confined(
        tmp_path,
        """
        if not any("Landlock" in one for one in missing):
            refused(lambda: open("other", "w"))
            refused(lambda: open("new", "w"))
            refused(lambda: os.unlink("other"))
            refused(lambda: os.mkdir("directory"))
        assert open("other").read() == "kept"
        state = Path("state/0-0.flows")
        state.with_suffix(".new").write_text("x")
        state.with_suffix(".new").rename(state)
        state.unlink()
        Path("state/net-1").mkdir()
        print(missing)
        """,
    )
    if "Landlock" in missing:
        pytest.skip("this kernel has no Landlock")

"""CPU time and memory, from files as proc(5) describes them, and from this process."""

import os
from pathlib import Path

import pytest

from scripts.bench.cost import TICK, lasting, memory, process_cpu, system_cpu

STAT = "{pid} (a (name) with) blanks) S 1 2 3 0 -1 4194560 9 0 0 0 {utime} {stime} 7 8 20 0 1 0 5"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    for pid, utime, stime in ((10, 100, 20), (11, 3, 4)):
        directory = tmp_path / str(pid)
        directory.mkdir()
        (directory / "stat").write_text(STAT.format(pid=pid, utime=utime, stime=stime))
        (directory / "smaps_rollup").write_text(f"0-1 ---p\nRss: 900 kB\nPss: {pid} kB\n")
        (directory / "status").write_text(f"Name:\tx\nVmHWM:\t{2 * pid} kB\nVmRSS:\t1 kB\n")
    (tmp_path / "stat").write_text("cpu  1 2 4 1000 2000 8 16 0 0 0\ncpu0 9 9 9 9 9 9 9 9 9 9\n")
    return tmp_path


def test_process_cpu_is_user_and_system_time_of_all(proc: Path) -> None:
    assert process_cpu([10, 11], proc) == pytest.approx(127 * TICK)
    assert process_cpu([], proc) == 0


def test_tools_that_a_balancer_runs_do_not_last(proc: Path) -> None:
    (proc / "10/exe").symlink_to("/usr/bin/python3.11")
    (proc / "11/exe").symlink_to("/usr/sbin/xtables-nft-multi")
    assert lasting([10, 11, 12], proc) == [10]


def test_system_cpu_leaves_out_idle_and_waiting(proc: Path) -> None:
    assert system_cpu(proc) == pytest.approx(31 * TICK)


def test_memory_is_the_sum_of_the_processes(proc: Path) -> None:
    assert memory([10, 11], proc) == (21 * 1024, 42 * 1024)


def test_this_process_costs_something() -> None:
    pid = os.getpid()
    pss, rss_peak = memory([pid])
    assert 1_000_000 < pss <= rss_peak
    assert 0 < process_cpu([pid]) < system_cpu()

"""What a host may be like: rp_filter, a closed FORWARD chain, conntrack, iptables' two kinds."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer
from tests.netns.command import Featherlb, run, worker_pids
from tests.netns.conftest import ONE_DRIVER, Up
from tests.netns.traffic import Session, ask

pytestmark = ONE_DRIVER

OPTIONS = ("--vip", f"{VIP}:80", "--backend", "10.0.1.2:8080")
NAT_MODES = pytest.mark.parametrize("nat", ["dnat", "full"])


@pytest.fixture
def lab() -> Iterator[Lab]:
    """With an HTTP server on port 8080 of the first backend."""
    with Lab(backends=1) as lab, HttpServer(lab.backends[0]):
        yield lab


def set_rp_filter(lab: Lab, value: int) -> None:
    for interface in ("all", "default", "front", "back"):
        lab.balancer.sysctl(f"net.ipv4.conf.{interface}.rp_filter", value)


BOTH_VIPS = ("--vip", f"{VIP}:80", "--vip", "10.0.0.1:80", "--backend", "10.0.1.2:8080")


@pytest.mark.parametrize("value", [0, 1, 2])
def test_dnat_with_every_rp_filter(lab: Lab, featherlb: Up, value: int) -> None:
    set_rp_filter(lab, value)
    with featherlb(lab, *BOTH_VIPS):
        for vip in (VIP, "10.0.0.1"):
            assert ask(lab.client, vip).peer == lab.client.address
            assert ask(lab.balancer, vip).backend == "backend1"
        assert lab.balancer.sysctl("net.ipv4.conf.all.rp_filter") == str(value)


@pytest.mark.parametrize("value", [0, 2])
def test_full_nat_with_a_lenient_rp_filter(lab: Lab, featherlb: Up, value: int) -> None:
    set_rp_filter(lab, value)
    with featherlb(lab, *BOTH_VIPS, "--nat", "full"):
        for vip in (VIP, "10.0.0.1"):
            assert ask(lab.client, vip).backend == "backend1"
            assert ask(lab.balancer, vip).backend == "backend1"


@NAT_MODES
@pytest.mark.parametrize("invalid", ["", "-A FORWARD -m conntrack --ctstate INVALID -j DROP\n"])
def test_a_forward_chain_that_drops(lab: Lab, featherlb: Up, nat: str, invalid: str) -> None:
    rules = f"*filter\n:FORWARD DROP\n{invalid}COMMIT\n"
    lab.balancer.run(["iptables-restore", "--noflush"], input=rules)
    with featherlb(lab, *OPTIONS, "--nat", nat):
        with Session(lab.client) as session:
            for _ in range(3):
                session.ask()
            session.close()
        # Only what was translated passes: the rest of the operator's policy stands.
        lab.client.run(["ping", "-c1", "-W1", "10.0.1.1"])
        assert lab.client.run(["ping", "-c1", "-W1", "10.0.1.2"], check=False).returncode == 1


@NAT_MODES
def test_a_host_whose_conntrack_drops_what_is_invalid(lab: Lab, featherlb: Up, nat: str) -> None:
    rule = "-m conntrack --ctstate INVALID -j DROP"
    chains = "".join(f"-A {chain} {rule}\n" for chain in ("INPUT", "FORWARD", "OUTPUT"))
    lab.balancer.run(["iptables-restore", "--noflush"], input=f"*filter\n{chains}COMMIT\n")
    with featherlb(lab, *OPTIONS, "--nat", nat):
        assert ask(lab.client).backend == "backend1"
        assert ask(lab.balancer).backend == "backend1"


@NAT_MODES
@pytest.mark.parametrize("kind", ["legacy", "nft"])
def test_either_kind_of_iptables(
    lab: Lab, featherlb: Up, nat: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As update-alternatives does it: the plain names are links to the programs of one kind.
    programs = tmp_path / "bin"
    programs.mkdir()
    for family in ("iptables", "ip6tables"):
        for suffix in ("", "-save", "-restore"):
            target = shutil.which(f"{family}-{kind}{suffix}")
            assert target
            (programs / f"{family}{suffix}").symlink_to(target)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    saves = {name: f"iptables-{name}-save" for name in ("legacy", "nft")}
    with featherlb(lab, *OPTIONS, "--nat", nat):
        assert ask(lab.client).backend == "backend1"
        rules = {name: lab.balancer.run([save]).stdout for name, save in saves.items()}
    assert "FEATHERLB" in rules.pop(kind)
    assert "FEATHERLB" not in "".join(rules.values())
    assert "FEATHERLB" not in lab.balancer.run([saves[kind]]).stdout


def test_code_in_the_working_directory_is_not_run(lab: Lab, driver: str, tmp_path: Path) -> None:
    """Modules with the names of Python's and of featherlb's own."""
    ran = tmp_path / "ran"
    (tmp_path / "featherlb").mkdir()
    names = [f"{name}.py" for name in sorted(sys.stdlib_module_names)]
    for name in (*names, "cython.py", "featherlb/__init__.py", "sitecustomize.py"):
        (tmp_path / name).write_text(f"open({str(ran)!r}, 'a').write({name!r})\n")
    with Featherlb(lab.balancer, ("up", "--driver", driver, *OPTIONS), tmp_path):
        assert ask(lab.client).backend == "backend1"
    assert run(lab.balancer, "doctor", cwd=tmp_path).returncode != 2
    assert not ran.exists(), ran.read_text()


def test_a_worker_can_do_nothing_but_its_work(lab: Lab, featherlb: Up) -> None:
    """What is refused to it is tried in the unit tests of `system/privileges.py`."""

    def status(pid: int) -> dict[str, str]:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines)

    with featherlb(lab, *OPTIONS) as running:
        assert ask(lab.client).backend == "backend1"
        assert int(status(running.pid)["CapEff"], 16) == int(status(running.pid)["CapBnd"], 16)
        assert int(status(running.pid)["CapEff"], 16).bit_count() == 9
        for pid in worker_pids(lab.balancer):
            lines = status(pid)
            assert int(lines["CapPrm"], 16) == int(lines["CapEff"], 16) == 0x3000
            assert (lines["NoNewPrivs"], lines["Seccomp"]) == ("1", "2")


def test_full_nat_says_what_a_strict_rp_filter_needs(lab: Lab, driver: str) -> None:
    set_rp_filter(lab, 1)
    ended = run(lab.balancer, "up", "--driver", driver, *OPTIONS, "--nat", "full")
    assert ended.returncode == 1
    assert "rp_filter" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1

"""The lab itself: what it builds, and that it removes everything."""

import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from featherlb.lab import Lab, Node
from featherlb.lab.namespaces import labs
from netns.__main__ import main
from tests.netns.traffic import wait_for

pytestmark = pytest.mark.no_packets("the lab alone, without featherlb")


def namespaces(run_id: str) -> list[str]:
    return [path.name for path in Path("/run/netns").glob(f"flb-{run_id}-*")]


@pytest.mark.parametrize("arms", [1, 2])
def test_every_address_is_reached_by_its_neighbours(arms: int) -> None:
    with Lab(clients=2, backends=2, arms=arms) as lab:
        front, *back = lab.balancer.addresses.values()
        for nodes, addresses in ((lab.clients, front), (lab.backends, back[0] if back else front)):
            for node in nodes:
                for address in addresses:
                    node.run(["ping", "-c1", "-W2", address])


def test_a_failing_block_leaves_nothing() -> None:
    started = []

    def fail(node: Node) -> None:
        started.append(node.popen(["sleep", "1000"]))
        wait_for(lambda: node.pids() == [started[0].pid], "the program runs in its namespace")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Lab(backends=1) as lab:
        fail(lab.backends[0])
    assert started[0].wait() == -signal.SIGKILL
    assert namespaces(lab.run_id) == []
    assert lab.run_id not in labs()


@pytest.mark.parametrize("count", range(5))
def test_an_interrupt_while_it_is_built_leaves_nothing(count: int) -> None:
    program = (
        "from featherlb.lab import Lab\nlab = Lab()\n"
        "print(lab.run_id, flush=True)\nwith lab:\n    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as building:
        assert building.stdout is not None
        run_id = building.stdout.readline().strip()
        wait_for(lambda: len(namespaces(run_id)) >= count, "a part of the lab")
        building.send_signal(signal.SIGINT)
        _, errors = building.communicate()
    assert "KeyboardInterrupt" in errors
    assert namespaces(run_id) == []
    assert run_id not in labs()


def test_labs_of_one_id_exclude_each_other() -> None:
    with Lab(backends=1) as lab:
        with pytest.raises(FileExistsError):
            Lab(backends=1, run_id=lab.run_id).up()
        lab.client.run(["ping", "-c1", "-W2", lab.balancer.address])


def test_the_lab_of_a_killed_process_is_known_as_such_and_removed() -> None:
    program = (
        "import os\nfrom featherlb.lab import Lab\n"
        "lab = Lab(backends=1)\n"
        "lab.up()\n"
        "print(lab.run_id, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    dead = killed.stdout.strip()
    assert len(namespaces(dead)) == 4
    assert labs()[dead] is False
    with Lab(backends=1) as lab:
        subprocess.run([sys.executable, "-m", "netns", "down", dead], check=True)
        assert namespaces(dead) == []
        assert dead not in labs()
        assert labs()[lab.run_id] is True
        assert len(namespaces(lab.run_id)) == 4


def test_down_takes_what_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`down` alone the lab of `up` alone, `down --all` all but those in use; records without
    namespaces stand for labs here."""
    monkeypatch.setattr("featherlb.lab.namespaces.RUN_DIRECTORY", tmp_path)
    # Nor is any real lab of these names touched.
    monkeypatch.setattr("featherlb.lab.namespaces.NAMESPACE_DIRECTORY", tmp_path / "no-namespaces")
    for name in ("play", "mine", "used"):
        (tmp_path / name).touch()
    with (tmp_path / "used").open() as record:
        fcntl.flock(record, fcntl.LOCK_EX)
        for arguments, left in ((["down"], {"mine", "used"}), (["down", "--all"], {"used"})):
            assert CliRunner().invoke(main, arguments).exit_code == 0
            assert {path.name for path in tmp_path.iterdir()} == left

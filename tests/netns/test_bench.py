"""The benchmark in its shortest form: it measures, whatever the numbers are."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.bench.peers import Peer, peers

pytestmark = pytest.mark.no_packets(
    "the figures are those of the compiled form, and the report is the same"
)

ROOT = Path(__file__).parents[2]
WORKLOADS = ["keepalive-64", "connect-64", "bulk-reply-1"]


def installed() -> list[Peer]:
    """One peer of each kind, those that can run here."""
    wanted = ("featherlb-netfilterqueue-dnat", "haproxy", "nftables", "nginx", "direct")
    return [peer for peer in peers() if peer.name in wanted and not peer.missing]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one round writes."""
    directory = tmp_path_factory.mktemp("results")
    command = ["-m", "scripts.bench", "--quick", "--rounds", "1", "--output", str(directory)]
    command += ["--peers", ",".join(peer.name for peer in installed())]
    ended = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "| HAProxy" in ended.stdout or "| no balancer" in ended.stdout
    document: dict[str, Any] = json.loads((directory / "results.json").read_text())
    assert (directory / "results.md").read_text().startswith("# Benchmark")
    return document


def test_every_peer_has_every_figure(result: dict[str, Any]) -> None:
    assert result["failures"] == []
    taken = [(sample["peer"], sample["workload"]) for sample in result["samples"]]
    assert taken == [(peer.name, name) for peer in installed() for name in WORKLOADS]
    for sample in result["samples"]:
        assert sample["rate"] > 0
        assert sample["cpu_system"] > 0


def test_only_processes_of_the_balancer_are_charged(result: dict[str, Any]) -> None:
    for sample in result["samples"]:
        in_kernel = sample["peer"] in ("nftables", "direct")
        assert (sample["pss"] == 0) is in_kernel
        assert (sample["cpu_peer"] == 0) is in_kernel


def test_a_stored_result_gives_its_table_again(result: dict[str, Any], tmp_path: Path) -> None:
    stored = tmp_path / "results.json"
    stored.write_text(json.dumps(result))
    command = ["-m", "scripts.bench", "--markdown-only", str(stored)]
    ended = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = [line for line in ended.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(installed())

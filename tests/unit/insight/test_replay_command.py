"""`featherlb replay CAPTURE`."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from scapy.layers.inet import IP
from scapy.utils import PcapNgReader, wrpcap

from featherlb.cli.replay import replay
from featherlb.model.errors import ConfigError
from tests.builders import tcp
from tests.unit.insight.test_replay import ONE, THREE, TWO, VIP, at, capture, configured


@pytest.fixture
def incident(tmp_path: Path) -> Path:
    """Three connections, and a segment of no connection."""
    packets = []
    for captured in [*capture(3), at(9.0, tcp("10.0.0.7:1", VIP, "PA", payload=b"x"))]:
        packet = IP(captured.data)
        packet.time = captured.time
        packets.append(packet)
    path = tmp_path / "incident.pcap"
    wrpcap(str(path), packets)
    (tmp_path / "lb.yaml").write_text(configured(ONE, TWO))
    (tmp_path / "new.yaml").write_text(configured(ONE, THREE))
    return path


def run(incident: Path, *arguments: object) -> Result:
    config = incident.with_name("lb.yaml")
    return CliRunner().invoke(
        replay, [str(incident), "--config", str(config), *map(str, arguments)]
    )


def test_text_for_people(incident: Path) -> None:
    result = run(incident)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0].startswith(f"{incident}: 19 packets in 9.000 s; 0 others, ")
    assert lines[1:] == [
        "web: 3 flows",
        "backend flows",
        f"{ONE} 2",
        f"{TWO} 1",
        "packets",
        "9 forward",
        "9 reply",
        "1 no-flow",
        "1 answers of featherlb itself",
        "dropped",
        f"9.000 s packet 19, 10.0.0.7:1 -> {VIP}: no-flow",
    ]


def test_another_configuration(incident: Path) -> None:
    new = incident.with_name("new.yaml")
    result = run(incident, "--against", new)
    assert result.exit_code == 1
    assert f"{new}: 1 of 3 flows differ" in result.stdout
    assert f"-> {VIP}: {THREE} instead of {TWO}" in result.stdout
    same = run(incident, "--against", incident.with_name("lb.yaml"))
    assert same.exit_code == 0
    assert same.stdout.endswith("lb.yaml: no difference\n")
    answer = json.loads(run(incident, "--against", new, "-o", "json").stdout)
    assert answer["outcomes"] == {"forward": 9, "reply": 9, "no-flow": 1}
    assert answer["flows"] == {"web": {ONE: 2, TWO: 1}}
    assert [one["number"] for one in answer["openings"]] == [0, 6, 12]
    ((change,), packets) = answer["difference"]["flows"], answer["difference"]["packets"]
    assert (change["number"], change["before"], change["after"]) == (6, TWO, THREE)
    assert packets == []


def test_packets_with_comments(incident: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.pcapng"
    assert run(incident, "-w", path).exit_code == 0
    with PcapNgReader(str(path)) as reader:
        packets = list(reader)
    assert len(packets) == 19
    assert packets[0].comment == f"opens a flow of web to {ONE}".encode()
    assert f"{packets[0].dst}:{packets[0].dport}" == ONE
    assert packets[-1].comment == b"dropped: no-flow"


def test_what_is_wrong_is_said_in_one_line(incident: Path) -> None:
    result = run(incident.with_name("lb.yaml"))
    assert isinstance(result.exception, ConfigError)
    assert "this is no capture" in str(result.exception)

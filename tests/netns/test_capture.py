"""`featherlb capture` has the packets of both sides, and says of each what became of it."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from featherlb.system.pcap import read
from tests.netns.command import PROGRAM, run
from tests.netns.conftest import SERVED, Up, in_turn
from tests.netns.traffic import ask

pytestmark = SERVED

BACKENDS = {f"10.0.1.{number + 1}": f"backend{number}" for number in (1, 2, 3)}
TIMEOUT = 60


@contextmanager
def capturing(lab: Lab, path: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """A capture that has begun; it is interrupted at the end, and must have ended well."""
    command = [PROGRAM, "capture", "-w", str(path), *options]
    with lab.balancer.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        try:
            assert running.stderr is not None
            line = running.stderr.readline()
            assert "Ctrl-C ends it" in line, line + running.stderr.read()
            yield running
        finally:
            running.send_signal(signal.SIGINT)
            output, errors = running.communicate(timeout=TIMEOUT)
        assert (running.returncode, errors) == (0, ""), errors
        assert output.startswith(f"{path}: ")


def tshark(path: Path) -> list[dict[str, str]]:
    """The packets as Wireshark shows them."""
    fields = {
        "side": "frame.interface_name",
        "comment": "frame.comment",
        "direction": "frame.packet_flags_direction",
        "source": "ip.src",
        "destination": "ip.dst",
        "port": "tcp.dstport",
        "flags": "tcp.flags",
        "text": "http.response.code",
    }
    command = ["tshark", "-r", str(path), "-T", "fields", "-E", "separator=|"]
    for field in fields.values():
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT)
    packets = [dict(zip(fields, line.split("|"), strict=True)) for line in done.stdout.splitlines()]
    ways = {1: "in", 2: "out"}
    return [one | {"direction": ways[int(one["direction"], 16)]} for one in packets]


@in_turn(nat=("dnat", "full"))
def test_both_sides_of_a_connection(
    lab: Lab, featherlb: Up, driver: str, nat: str, tmp_path: Path
) -> None:
    config, path = tmp_path / "lb.yaml", tmp_path / "web.pcapng"
    backends = ", ".join(f"'{address}:8080'" for address in BACKENDS)
    config.write_text(
        "workers: 2\nservices:\n"
        f"- {{name: web, vip: '{VIP}:80', scheduler: maglev, nat: {nat},"
        f" backends: [{backends}]}}\n"
        f"- {{name: other, vip: '{VIP}:81', backends: [{backends}]}}\n"
    )
    path.write_text("of before")
    path.chmod(0o644)
    client = lab.client.address
    with featherlb(lab, "--config", str(config)):
        with capturing(lab, path, "--service", "web", "--client", f"{client}/32"):
            answer = ask(lab.client)
            ask(lab.client, port=81)
        assert path.stat().st_mode & 0o777 == 0o600
        packets = tshark(path)
        assert {one["side"] for one in packets} == {"clients", "backends"}
        backend = next(address for address, name in BACKENDS.items() if name == answer.backend)
        first, second = packets[:2]
        assert (first["source"], first["destination"]) == (client, VIP)
        assert (first["side"], first["direction"], first["flags"]) == ("clients", "in", "0x0002")
        assert first["comment"].startswith(
            f"web: new flow to {backend}:8080 by maglev: addresses, ports and protocol hash to slot"
        )
        assert (second["side"], second["direction"]) == ("backends", "out")
        assert (second["destination"], second["port"]) == (backend, "8080")
        assert second["comment"].startswith(
            f"web: translated, destination {VIP}:80 -> {backend}:8080"
        )
        assert ("source" in second["comment"]) == (nat == "full")
        # Whatever arrives on one side leaves on the other.
        for arrives, leaves in (("clients", "backends"), ("backends", "clients")):
            numbers = [
                sum(one["side"] == side and one["direction"] == way for one in packets)
                for side, way in ((arrives, "in"), (leaves, "out"))
            ]
            assert numbers[0] == numbers[1] > 2
        answers = [one for one in packets if one["text"] == "200"]
        assert [(one["side"], one["source"]) for one in answers] == [
            ("backends", backend),
            ("clients", VIP),
        ]
        assert all(one["comment"].startswith("web: ") for one in packets)


@pytest.mark.parametrize("driver", ["netlink", "raw"], indirect=True)
def test_drops_and_what_answers_them(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    config, path = tmp_path / "lb.yaml", tmp_path / "web.pcapng"
    config.write_text(
        f"services:\n- name: web\n  vip: '{VIP}:80'\n"
        "  backends: [{address: '10.0.1.2:8080', weight: 0}]\n"
    )
    with (
        featherlb(lab, "--config", str(config)),
        capturing(lab, path),
        pytest.raises(ConnectionRefusedError),
    ):
        lab.client.connect(VIP, 80)
    told = [(one["side"], one["direction"], one["comment"]) for one in tshark(path)]
    assert told[:2] == [
        ("clients", "in", "web: dropped, no-backend"),
        ("clients", "out", "web: from featherlb itself"),
    ]


@pytest.mark.parametrize("driver", ["netlink"], indirect=True)
def test_limits_and_refusals(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    config, path = tmp_path / "lb.yaml", tmp_path / "web.pcapng"
    token = "0123456789abcdef0123456789abcdef"
    config.write_text(
        f"api: {{listen: '127.0.0.1:8000', token: {token}}}\n"
        f"services: [{{name: web, vip: '{VIP}:80', backends: ['10.0.1.2:8080']}}]\n"
    )
    other, link = tmp_path / "other", tmp_path / "link"
    other.write_text("of another user")
    link.symlink_to(other)

    def refused(*options: str) -> str:
        done = run(lab.balancer, "capture", *options)
        assert done.returncode != 0
        return done.stderr

    with featherlb(lab, "--config", str(config)) as running:
        assert "link: it is not a regular file" in refused("-w", str(link))
        assert "/dev/null: it is not a regular file" in refused("-w", "/dev/null")
        assert "no service" in refused("-w", str(other), "--service", "none")
        assert other.read_text() == "of another user"
        with capturing(lab, path) as first:
            assert "a capture runs already" in refused("-w", str(other))
            request = ["curl", "-s", "-H", f"Authorization: Bearer {token}"]
            answer = lab.balancer.run([*request, "http://127.0.0.1:8000/v1/capture"]).stdout
            assert "over the Unix socket only" in answer
            assert first.poll() is None
        done = run(lab.balancer, "capture", "-w", str(path), "--for", "0.1")
        assert (done.returncode, tshark(path)) == (0, []), done.stderr
        with lab.balancer.popen(
            [PROGRAM, "capture", "-w", str(path), "--packets", "3", "--length", "64"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as limited:
            assert limited.stderr is not None
            limited.stderr.readline()
            ask(lab.client)
            assert "3 packets" in limited.communicate(timeout=TIMEOUT)[0]
        assert [len(one.data) for one in read(path)] == [60, 60, 60]
        with lab.balancer.popen(
            [PROGRAM, "capture", "-w", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as last:
            assert last.stderr is not None
            last.stderr.readline()
            running.stop()
            output, errors = last.communicate(timeout=TIMEOUT)
        assert (last.returncode, output) == (
            1,
            f"{path}: 0 packets (0 on the side of clients, 0 on the side of backends)\n",
        )
        assert errors == "featherlb: featherlb has stopped, and so has the capture\n"

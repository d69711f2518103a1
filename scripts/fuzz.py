"""`python -m scripts.fuzz`: mutated input for everything that reads what others write.

Each target runs in a process of its own, with its share of the time and a printed seed: the same
seed makes the same inputs in the same order. An input that raises what it must not is written to
a file, and the exit code is 1; so it is if the process dies.
"""

import json
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import get_args

import click

from featherlb.api import schema
from featherlb.config import file as config_file
from featherlb.core.flows.memory import FlowMemory, anonymous, size_of
from featherlb.core.path.balancer import Balancer
from featherlb.model import (
    SOURCE_PORTS,
    Backend,
    Datapath,
    Endpoint,
    Hook,
    NatMode,
    PacketInfo,
    Protocol,
    Service,
    Timeouts,
    Vip,
)
from featherlb.model.errors import ConfigError
from featherlb.model.shard import WHOLE
from featherlb.system import flow_file
from featherlb.system.conntrack_messages import Entry
from featherlb.system.journal import Journal, Record
from featherlb.worker import data
from featherlb.worker.protocol import Applied, Ended, Failed, FromWorker, Log, Outcomes

EXAMPLES = Path(__file__).parents[1] / "examples"
GUARD = b"\xa5" * 64
"""Around a packet: nothing may be written there. Without it, AddressSanitizer sees what is read."""
Target = tuple[list[bytes], Callable[[bytes], None]]
"""Inputs to start from, and what one is given to; it raises if something is wrong."""


def balancer() -> Balancer:
    """One with services of all kinds, and room for few flows."""
    one = Balancer(
        # Of the heap, which AddressSanitizer watches.
        memory=FlowMemory(bytearray(size_of(256))),
        secret=bytes(16),
        hash_key=b"",
        cookie_key=bytes(16),
        timeouts=Timeouts(),
        source_ports=SOURCE_PORTS,
        adopt_until=1e9,
        shard=WHOLE,
    )
    services = []
    for number, datapath in enumerate(Datapath):
        for protocol in Protocol:
            for nat in NatMode:
                port = 1000 + 100 * number + 10 * protocol + (nat is NatMode.FULL)
                for vip, server, source in (
                    ("192.0.2.10", "10.1.0.1", "10.1.0.254"),
                    ("2001:db8::10", "2001:db8:1::1", "2001:db8:1::fe"),
                ):
                    sources = (ip_address(source),) if nat is NatMode.FULL else ()
                    services.append(
                        Service(
                            name=f"{vip}-{port}",
                            protocol=protocol,
                            vips=(Vip(ip_address(vip), port, port),),
                            backends=(Backend(Endpoint(ip_address(server), 80), sources=sources),),
                            nat=nat,
                            datapath=datapath,
                        )
                    )
    one.apply(tuple(services))
    return one


def packets() -> Target:
    """IP packets at every hook, for services of every datapath."""
    core = balancer()
    hooks = random.Random(1)
    now = 1000.0

    def give(packet: bytes) -> None:
        nonlocal now
        now += 0.001
        info = hooks.choice((0, 0, 0, 1, 2, 3, 256, 513))
        if info == PacketInfo.TRUNCATED:
            # The kernel cuts nothing off but what lies behind 64 KiB: headers are whole.
            packet += bytes(hooks.randrange(2000))
        guard = GUARD if not packet or hooks.randrange(2) else b""
        buffer = bytearray(guard + packet + guard)
        core.attach(buffer)
        core.handle_packet(len(guard), len(packet), hooks.choice(list(Hook)), info, now)
        assert buffer.startswith(guard), "it wrote in front of the packet"
        assert buffer.endswith(guard), "it wrote behind the packet"
        for answer in core.outbox.take():
            assert answer
        core.handle_timer(now)

    return list(_packets()), give


def _packets() -> Iterator[bytes]:
    for port in (1060, 1061, 1160, 1161, 1260, 1261, 1170, 1171, 1270, 1271, 1370, 1371):
        for flags in (0x02, 0x12, 0x10, 0x11, 0x04):
            tcp = struct.pack("!HHIIBBHHH", 40000, port, 1, 1, 0x50, flags, 512, 0, 0)
            yield _ipv4(6, tcp, "198.51.100.1", "192.0.2.10")
            yield _ipv6(6, tcp, "2001:db8:9::1", "2001:db8::10")
            back = struct.pack("!HHIIBBHHH", 80, 40000, 1, 1, 0x50, flags, 512, 0, 0)
            yield _ipv4(6, back, "10.1.0.1", "198.51.100.1")
        udp = struct.pack("!HHHH", 40000, port, 12, 0) + b"ping"
        yield _ipv4(17, udp, "198.51.100.1", "192.0.2.10")
        yield _ipv6(17, udp, "2001:db8:9::1", "2001:db8::10")
        for kind, code in ((3, 4), (3, 3), (11, 0)):
            quoted = _ipv4(17, udp, "198.51.100.1", "10.1.0.1")
            error = struct.pack("!BBHHH", kind, code, 0, 0, 1200) + quoted
            yield _ipv4(1, error, "10.1.0.9", "198.51.100.1")


def _ipv4(protocol: int, payload: bytes, source: str, destination: str) -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0),
        *(ip_address(source).packed, ip_address(destination).packed),
    )
    return head + payload


def _ipv6(protocol: int, payload: bytes, source: str, destination: str) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
    return head + ip_address(source).packed + ip_address(destination).packed + payload


def netlink() -> Target:
    """The kernel's messages about connections."""

    def give(message: bytes) -> None:
        entry = Entry()
        # As the driver's buffer: longer than the messages, and of whole words.
        entry.attach(bytearray(message) + bytearray(64 + -len(message) % 8))
        at = 0
        while following := entry.read(at, len(message)):
            assert following > at, "it makes no progress"
            at = following

    attributes = b"".join(struct.pack("=HHI", 8, kind, 7) for kind in (1, 2, 3, 7, 0x8004, 0x800D))
    head = struct.pack("=IHHII", 20 + len(attributes), 0x100, 0, 1, 0) + bytes(4)
    return [head + attributes, 3 * (head + attributes)], give


def flow_files() -> Target:
    """Saved flows, with whole headers and without, restored into a balancer."""
    directory = Path(tempfile.mkdtemp(prefix="fuzz-"))
    path = flow_file.path(directory / "net-1", 0, 0)
    memory = anonymous(8)
    core = balancer()
    flow_file.save(path, memory, WHOLE)
    whole = path.read_bytes()

    def give(content: bytes) -> None:
        path.write_bytes(content)
        flow_file.fault(path)
        flow_file.is_of_another_version(path)
        found = flow_file.load(path)
        if found is not None:
            core.restoration.restore(found, WHOLE)

    return [whole], give


def journals() -> Target:
    """Records of instances."""
    journal = Journal(Path(tempfile.mkdtemp(prefix="fuzz-")))
    record = Record(0, 1, 1, 1, (("tcp", "10.0.0.1", 80, 80),), (), 1, (0,), ({"kind": "Sets"},))
    journal.write(record)
    path = journal.directory / "0.json"
    journal.write(replace(record, claims={"tracked": ("10.0.1.2,tcp:80",)}))

    def give(content: bytes) -> None:
        path.write_bytes(content)
        assert len(journal.records()) + len(journal.damaged()) == 1

    return [path.read_bytes()], give


def requests() -> Target:
    """Bodies of requests to the API."""

    def give(body: bytes) -> None:
        try:
            found = schema.parse(body)
        except ValueError:
            return
        for model in (schema.ChangeRequest, schema.ReloadRequest, schema.LogLevelRequest):
            try:
                schema.read(model, found)
            except ConfigError:
                continue

    change = {"action": "weight", "service": "web", "backend": "10.0.1.2:80", "weight": 3}
    bodies = (change | {"for": "10m"}, {"level": "debug", "for": 5}, {"discard": True})
    return [json.dumps(body).encode() for body in bodies], give


def configurations() -> Target:
    """Configuration files."""

    def give(content: bytes) -> None:
        with suppress(ConfigError):
            config_file.parse(content.decode("utf-8", "replace"), "fuzz.yaml")

    return [path.read_bytes() for path in sorted(EXAMPLES.glob("*.yaml"))], give


def messages() -> Target:
    """What workers send."""

    def give(content: bytes) -> None:
        try:
            found = data.load(content, FromWorker)
        except ValueError:
            return
        assert isinstance(found, get_args(FromWorker))

    sent = (Applied(), Failed("x"), Log(10, "text"), Ended(3), Outcomes({"web": (1, 2, 3)}))
    return [data.dump(one, FromWorker) for one in sent], give


TARGETS: dict[str, Callable[[], Target]] = {
    "packets": packets,
    "netlink": netlink,
    "flow-files": flow_files,
    "journals": journals,
    "requests": requests,
    "configurations": configurations,
    "messages": messages,
}
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutated(seeds: list[bytes], chance: random.Random) -> bytes:
    """One of the seeds with a few changes."""
    content = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((0, 1, 1, 2, 4, 8))):
        at = chance.randrange(len(content) + 1)
        match chance.randrange(6):
            case 0 if content:
                content[at % len(content)] ^= 1 << chance.randrange(8)
            case 1:
                content[at : at + 1] = bytes((chance.randrange(256),))
            case 2:
                number = chance.choice(NUMBERS) & 0xFFFFFFFF
                width = chance.choice((1, 2, 4))
                order = chance.choice(("little", "big"))
                mask = (1 << 8 * width) - 1
                content[at : at + width] = (number & mask).to_bytes(width, order)  # type: ignore[arg-type]
            case 3:
                del content[at : at + chance.choice((1, 4, 100))]
            case 4:
                other = chance.choice(seeds)
                start = chance.randrange(len(other) + 1)
                content[at:at] = other[start : start + chance.choice((1, 4, 40))]
            case _:
                del content[at:]
    return bytes(content)


def run(name: str, seconds: float, seed: int, least: int = 0) -> int:
    """Fuzz one target for this time, and with so many inputs at `least`; the number of inputs.
    SystemExit at the first that shows a fault."""
    seeds, give = TARGETS[name]()
    chance = random.Random(seed)
    for one in seeds:
        give(one)
    count = 0
    end = time.monotonic() + seconds
    while count % 64 or count < least or time.monotonic() < end:
        content = mutated(seeds, chance)
        count += 1
        try:
            give(content)
        except Exception as error:
            path = Path(f"fuzz-{name}-{seed}-{count}.bin")
            path.write_bytes(content)
            raise SystemExit(f"{name}: input {count} ({path}): {error!r}") from error
    return count


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="Time for all targets.")
@click.option("--seed", type=int, help="Of the random changes (default: another each time).")
@click.option("--target", type=click.Choice(list(TARGETS)), help="Only this one, in this process.")
@click.option("--inputs", default=0, help="With --target: so many at least.")
def main(seconds: float, seed: int | None, target: str | None, inputs: int) -> None:
    """Give mutated input to all that reads what others write."""
    seed = random.randrange(1 << 31) if seed is None else seed
    if target:
        click.echo(f"{target}: {run(target, seconds, seed, inputs):,} inputs, seed {seed}")
        return
    failed = False
    for name in TARGETS:
        options = ["--target", name, "--seconds", f"{seconds / len(TARGETS)}", "--seed", str(seed)]
        done = subprocess.run([sys.executable, "-m", "scripts.fuzz", *options], check=False)
        if done.returncode:
            failed = True
            click.echo(f"{name}: ended with {done.returncode}, seed {seed}", err=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()

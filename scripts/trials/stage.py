"""Where trials take place: a lab with servers, an instance that balances them on every datapath, in
both NAT modes and address families, over TCP and UDP, and its clients.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel

from featherlb.api import schema
from featherlb.api.client import connect
from featherlb.host.choose import usable
from featherlb.lab import Lab, Node
from featherlb.lab.namespaces import BACK, VIP, VIP6
from featherlb.model import Datapath, NatMode

HERE = Path(__file__).parent
PROGRAM = str(Path(sys.executable).with_name("featherlb"))
FIRST_PORT = 8000
START_TIMEOUT, STOP_TIMEOUT = 60, 40
BACKENDS = 3
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Target:
    """A service as its clients see it."""

    name: str
    datapath: Datapath
    protocol: str
    address: str
    port: int
    nat: NatMode


def targets(datapaths: Sequence[Datapath]) -> list[Target]:
    """The services: a port for each datapath and NAT mode, TCP and UDP, at both addresses."""
    found = []
    for number, (datapath, nat) in enumerate((d, n) for d in datapaths for n in NatMode):
        for protocol in ("tcp", "udp"):
            for family, address in ((4, VIP), (6, VIP6)):
                name = f"{datapath}-{nat}-{protocol}{family}"
                port = FIRST_PORT + number
                found.append(Target(name, datapath, protocol, address, port, nat))
    return found


def configuration(services: Sequence[Target], backends: Sequence[int]) -> str:
    """Of an instance with these services, and with these of the backends (from 0)."""

    def endpoint(host: str, port: int) -> str:
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    described = [
        {
            "name": one.name,
            "vip": endpoint(one.address, one.port),
            "protocol": one.protocol,
            "nat": str(one.nat),
            "datapath": str(one.datapath),
            "scheduler": "least-connections",
            "health": {"type": "tcp", "interval": "1s"},
            "backends": [
                endpoint(BACK.addresses(2 + number)[":" in one.address], one.port)
                for number in backends
            ],
        }
        for one in services
    ]
    # So short that what ends can be waited for; half-open and closing connections outlast a start.
    # Connections whose last packets met no worker are asked for after an eighth of `established`.
    timeouts = {"half_open": "20s", "established": "2m", "fin": "20s", "closed": "2s"}
    timeouts |= {"udp_one_way": "5s", "udp_two_way": "5s"}
    settings = {"workers": 2, "max_flows": 20000, "timeouts": timeouts, "services": described}
    text: str = yaml.safe_dump(settings, sort_keys=False)
    return text


class Instance:
    """`featherlb up` on the lab's balancer. `command` may put other programs in front of it."""

    def __init__(self, node: Node, config: Path, command: Sequence[str] = ()) -> None:
        self._node = node
        self._command = [*command, PROGRAM, "up", "--config", str(config)]
        self._log_path = config.with_suffix(".log")
        self._log_path.touch()
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The supervisor's."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What all starts of it have written."""
        return self._log_path.read_text()

    def start(self) -> None:
        """Returns when it is ready. RuntimeError if it ends instead, or takes too long."""
        with self._log_path.open("a") as log:
            self._process = self._node.popen(self._command, stdout=subprocess.PIPE, stderr=log)
        timer = threading.Timer(START_TIMEOUT, self._process.kill)
        timer.start()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        timer.cancel()
        if line != "ready\n":
            self.kill()
            raise RuntimeError(f"featherlb did not start: {self.log[-2000:]}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """As a service manager does; SIGUSR2 leaves the host to the next start. RuntimeError if it
        doesn't end well."""
        assert self._process is not None
        self._process.send_signal(how)
        try:
            code = self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"featherlb did not stop within {STOP_TIMEOUT} s") from None
        self._close()
        if code:
            raise RuntimeError(f"featherlb ended with {code}: {self.log[-2000:]}")

    def kill(self) -> None:
        """kill -9 of the supervisor."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def get(self, path: str, model: type[_Model]) -> _Model:
        """What the API answers. HostError if it doesn't."""
        return self._node.call(lambda: connect(timeout=10).get(path, model))

    def workers(self) -> list[int]:
        """Their processes."""
        return [worker.pid for worker in self.get("/v1/status", schema.Status).workers]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a client noticed: `kind` is broken (a connection that was open), failed (a new
    one) or corrupt."""

    time: float
    kind: str
    service: str
    backend: int | None
    why: str


@dataclass
class Seen:
    """What clients saw from one moment to another, by service."""

    answers: Counter[str] = field(default_factory=Counter)
    opened: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    """Datagrams without an answer."""
    gap: dict[str, float] = field(default_factory=dict)
    """The longest time without an answer, in seconds."""
    events: list[Event] = field(default_factory=list)


class Clients:
    """client.py in the lab's client, read as it goes. A context manager."""

    def __init__(
        self,
        node: Node,
        services: Sequence[Target],
        long: int,
        pause: float,
        lifetime: float | None = None,
    ) -> None:
        rows = [(one.name, one.protocol, one.address, one.port) for one in services]
        settings = {"targets": rows, "long": long, "pause": pause, "lifetime": lifetime}
        self._command = [sys.executable, "-I", "-S", str(HERE / "client.py"), json.dumps(settings)]
        self._node = node
        self._lock = threading.Lock()
        self._seen = Seen()

    def __enter__(self) -> Self:
        self._process = self._node.popen(self._command, stdout=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            content: dict[str, Any] = json.loads(line)
            with self._lock:
                if "kind" in content:
                    self._seen.events.append(Event(**content))
                    continue
                for name, done in content["services"].items():
                    self._seen.answers[name] += done["answers"]
                    self._seen.opened[name] += done["opened"]
                    self._seen.lost[name] += done["lost"]
                    self._seen.gap[name] = max(self._seen.gap.get(name, 0.0), done["gap"])

    def take(self) -> Seen:
        """What they saw since the last call."""
        with self._lock:
            found, self._seen = self._seen, Seen()
        return found

    def stop(self) -> None:
        """Have them close their connections and end."""
        self._process.terminate()
        self._process.wait()
        self._reader.join()

    def __exit__(self, *_: object) -> None:
        self.stop()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Stage:
    """The whole: `servers` by backend, and `instance`, which is not started yet."""

    def __init__(self, lab: Lab, directory: Path, datapaths: Sequence[Datapath]) -> None:
        self.lab = lab
        self.targets = targets(datapaths)
        self.config = directory / "featherlb.yaml"
        self.configure(range(BACKENDS))
        self.instance = Instance(lab.balancer, self.config)
        self.servers: dict[int, subprocess.Popen[str]] = {}

    def configure(self, backends: Sequence[int]) -> None:
        """Write the configuration with these backends."""
        self.config.write_text(configuration(self.targets, backends))

    def start_server(self, number: int) -> None:
        """Of one backend; it serves when this returns."""
        ports = sorted({str(one.port) for one in self.targets})
        script = [sys.executable, "-I", "-S", str(HERE / "echo.py"), str(number), *ports]
        process = self.lab.backends[number].popen(script, stdout=subprocess.PIPE)
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the servers of backend {number} did not start")
        self.servers[number] = process

    def kill_server(self, number: int) -> None:
        process = self.servers.pop(number)
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()

    def end(self) -> None:
        """Of what still runs."""
        for number in list(self.servers):
            self.kill_server(number)
        if self.instance.running:
            self.instance.kill()

    def clients(self, long: int, pause: float, lifetime: float | None = None) -> Clients:
        return Clients(self.lab.client, self.targets, long, pause, lifetime)


@contextmanager
def stage(directory: Path, only: Datapath | None = None) -> Iterator[Stage]:
    """A stage with all datapaths of this host, or one; its servers running."""
    with Lab(clients=1, backends=BACKENDS) as lab, ExitStack() as stack:
        prepare(lab)
        able = [datapath for datapath, why in lab.balancer.call(usable).items() if why is None]
        chosen = [one for one in Datapath if one in able and only in (None, one)]
        ready = Stage(lab, directory, chosen)
        for number in range(BACKENDS):
            ready.start_server(number)
        stack.callback(ready.end)
        yield ready


def prepare(lab: Lab) -> None:
    """Ports for the clients, and connection tracking that forgets soon."""
    lab.client.sysctl("net.ipv4.ip_local_port_range", "10000 65535")
    # Loaded with the first rule that tracks.
    lab.balancer.run(["iptables", "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW"])
    lab.balancer.run(["iptables", "-F", "INPUT"])
    for state in ("time_wait", "close", "close_wait", "fin_wait", "last_ack"):
        lab.balancer.sysctl(f"net.netfilter.nf_conntrack_tcp_timeout_{state}", 20)
    for state in ("udp_timeout", "udp_timeout_stream"):
        lab.balancer.sysctl(f"net.netfilter.nf_conntrack_{state}", 5)


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 30) -> None:
    """Poll; RuntimeError with `what` if the condition isn't met in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {timeout:g} s: {what}")
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False

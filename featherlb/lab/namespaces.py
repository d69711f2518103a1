"""Builds and removes a lab of network namespaces, and runs code inside them.

A lab is a set of namespaces `flb-<id>-<node>`: clients, the balancer's host `lb`, backends,
and `net`, which holds the bridges between them. `/run/featherlb-lab/<id>` records the lab; the
process that built it holds a lock on that file, so a lab whose file is not locked is one that a
killed process left (or `python -m netns up` left on purpose). May import pyroute2.
"""

import contextlib
import fcntl
import itertools
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

from pyroute2 import IPRoute
from pyroute2 import netns as namespaces

PREFIX = "flb-"
RUN_DIRECTORY = Path("/run/featherlb-lab")
NAMESPACE_DIRECTORY = Path("/run/netns")
IFA_F_NODAD = 2
"""Address flag: use at once, without duplicate address detection (linux/if_addr.h)."""

VIP, VIP6 = "10.0.0.10", "2001:db8::10"
"""Addresses that the lab leaves free for a VIP."""

P = ParamSpec("P")
T = TypeVar("T")

_serial = itertools.count(1)


class Node:
    """A host of the lab: one network namespace.

    `addresses` maps an interface's name to its addresses, IPv4 first.
    """

    def __init__(self, name: str, namespace: str) -> None:
        self.name = name
        self.namespace = namespace
        self.addresses: dict[str, tuple[str, ...]] = {}

    def __repr__(self) -> str:
        return f"<Node {self.namespace}>"

    @property
    def address(self) -> str:
        """Its first IPv4 address."""
        return next(iter(self.addresses.values()))[0]

    @property
    def address6(self) -> str:
        """Its first IPv6 address."""
        return next(iter(self.addresses.values()))[1]

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in this namespace (in its own thread) and return its result.

        A socket opened there stays in the namespace, wherever it is used afterwards. A whole
        asyncio program runs inside with `node.call(asyncio.run, main())`.
        """
        outcome: Future[T] = Future()

        def enter() -> None:
            try:
                namespaces.setns(self.namespace, flags=0)
                outcome.set_result(function(*args, **kwargs))
            except BaseException as error:
                outcome.set_exception(error)

        thread = threading.Thread(target=enter, name=self.namespace, daemon=True)
        thread.start()
        thread.join()
        return outcome.result()

    def new_socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM
    ) -> socket.socket:
        """A new socket of this namespace, with a timeout of 30 s."""
        new = self.call(socket.socket, family, kind)
        new.settimeout(30)
        return new

    def connect(self, address: str, port: int, timeout: float = 30) -> socket.socket:
        """A TCP connection from this namespace; `timeout` is in seconds and stays set."""
        return self.call(socket.create_connection, (address, port), timeout)

    def listen(self, address: str, port: int) -> socket.socket:
        """A listening TCP socket of this namespace; port 0 takes any."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = self.call(socket.create_server, (address, port), family=family, backlog=1024)
        listener.settimeout(30)
        return listener

    def command(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` in this namespace."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def run(
        self, command: Sequence[str], *, check: bool = True, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in this namespace to its end; output is captured as text.

        Raises CalledProcessError, with the program's error output as a note.
        """
        try:
            return subprocess.run(
                self.command(command), check=check, input=input, capture_output=True, text=True
            )
        except subprocess.CalledProcessError as error:
            error.add_note(error.stderr)
            raise

    def popen(self, command: Sequence[str], **options: Any) -> "subprocess.Popen[str]":
        """Start a program in this namespace; its pid is the program's. Ends with the lab.

        It runs in its own session: the owner of the lab handles Ctrl-C.
        """
        command = self.command(command)
        return subprocess.Popen(command, text=True, start_new_session=True, **options)

    def sysctl(self, name: str, value: int | str | None = None) -> str:
        """Read (and set first, if there is a value) a sysctl: `net.ipv4.conf.eth0.rp_filter`.

        An interface's name must not contain a dot.
        """
        path = Path("/proc/sys", *name.split("."))
        if value is not None:
            self.call(path.write_text, str(value))
        return self.call(path.read_text).strip()

    def pids(self) -> list[int]:
        """Processes that live in this namespace."""
        inode = (NAMESPACE_DIRECTORY / self.namespace).stat().st_ino
        found = []
        for entry in Path("/proc").iterdir():
            # A process may end while it is looked at.
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and (entry / "ns/net").stat().st_ino == inode:
                    found.append(int(entry.name))
        return found


@dataclass(frozen=True, slots=True)
class Subnet:
    """One of the lab's networks: a bridge of this name."""

    name: str
    ipv4: str
    ipv6: str

    def addresses(self, host: int) -> tuple[str, str]:
        """The IPv4 and IPv6 address of a host, with the same digits in both."""
        return f"{self.ipv4}{host}", f"{self.ipv6}{host}"


FRONT = Subnet("front", "10.0.0.", "2001:db8::")
BACK = Subnet("back", "10.0.1.", "2001:db8:1::")


class Lab:
    """Clients, a balancer's host and backends, connected as topology.md shows.

    `arms` is 2 (clients and backends on networks of their own, the balancer is the backends'
    router) or 1 (everything on one network). `balancers` are the hosts of a cluster; the first is
    the backends' router. Without switches, one client and one backend are
    cabled to the balancer directly: a network that costs as little as can be. A context manager;
    `run_id` names the namespaces and is unique to this process and lab unless given. Needs root.
    """

    def __init__(
        self,
        clients: int = 1,
        backends: int = 3,
        arms: int = 2,
        run_id: str | None = None,
        *,
        switches: bool = True,
        balancers: int = 1,
    ) -> None:
        if not switches and (clients, backends, arms) != (1, 1, 2):
            raise ValueError("without switches there is one client, one backend, two arms")
        self.run_id = run_id or f"{os.getpid()}x{next(_serial)}"
        self.arms = arms
        self._switches = switches
        self.clients = [self._node(f"client{i}") for i in range(1, clients + 1)]
        self.balancer = self._node("lb")
        self.balancers = [
            self.balancer,
            *(self._node(f"lb{i}") for i in range(2, balancers + 1)),
        ]
        self.backends = [self._node(f"backend{i}") for i in range(1, backends + 1)]
        self._net = self._node("net")
        self._lock: int | None = None

    def _node(self, name: str) -> Node:
        return Node(name, f"{PREFIX}{self.run_id}-{name}")

    @property
    def client(self) -> Node:
        """The first client."""
        return self.clients[0]

    @property
    def nodes(self) -> list[Node]:
        """Every host, without the namespace of the bridges."""
        return [*self.clients, *self.balancers, *self.backends]

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        """Build it. FileExistsError if a lab with this id exists; any other failure leaves
        nothing behind."""
        try:
            with _uninterrupted():
                self._claim()
                self._build()
        except BaseException:
            if self._lock is not None:
                self.down()
            raise

    def _claim(self) -> None:
        RUN_DIRECTORY.mkdir(exist_ok=True)
        self._lock = os.open(
            RUN_DIRECTORY / self.run_id, os.O_CREAT | os.O_EXCL | os.O_RDONLY, mode=0o644
        )
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def _build(self) -> None:
        for node in (self._net, *self.nodes):
            subprocess.run(["ip", "netns", "add", node.namespace], check=True)
        subnets = (FRONT, BACK)[: self.arms]
        backends, first_backend = (BACK, 2) if self.arms == 2 else (FRONT, 52)
        if self._switches:
            self._net.call(_configure_bridges, subnets)
        else:
            self.client.call(_cable, "eth0", FRONT.name, self.balancer.namespace)
            self.backends[0].call(_cable, "eth0", BACK.name, self.balancer.namespace)
        for host, node in enumerate(self.clients, start=101):
            self._attach(node, {"eth0": FRONT.addresses(host)}, FRONT, gateway=True)
        for host, node in zip((1, *range(201, 255)), self.balancers, strict=False):
            self._attach(node, {subnet.name: subnet.addresses(host) for subnet in subnets})
        for host, node in enumerate(self.backends, start=first_backend):
            gateway = self.arms == 2
            self._attach(node, {"eth0": backends.addresses(host)}, backends, gateway=gateway)
        for node in self.nodes:
            node.call(_wait_for_links, set(node.addresses))

    def _attach(
        self,
        node: Node,
        interfaces: dict[str, tuple[str, ...]],
        subnet: Subnet | None = None,
        gateway: bool = False,
    ) -> None:
        """Give a node its interfaces, each plugged into the bridge of `subnet`, or into the
        bridge of the interface's own name."""
        node.addresses = interfaces
        for name in interfaces if self._switches else ():
            bridge = subnet.name if subnet else name
            self._net.call(_plug, bridge, f"{node.name}-{bridge}", name, node.namespace)
        gateways = subnet.addresses(1) if subnet and gateway else ()
        node.call(_configure_host, interfaces, gateways)

    def down(self) -> None:
        """Kill all processes in its namespaces and delete them. Harmless if there are none."""
        with _uninterrupted():
            remove(self.run_id)
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Block signals. An exception right after a fork would leave a program behind that creates a
    namespace without a record."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _configure_bridges(subnets: Sequence[Subnet]) -> None:
    # Where br_netfilter is loaded (every Docker host), bridges would pass frames to iptables.
    for setting in Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"):
        setting.write_text("0")
    with IPRoute() as netlink:
        for subnet in subnets:
            netlink.link("add", ifname=subnet.name, kind="bridge")
            netlink.link("set", ifname=subnet.name, state="up")


def _plug(bridge: str, port: str, interface: str, namespace: str) -> None:
    """A cable: its one end in the bridge here, its other as `interface` in the namespace."""
    with IPRoute() as netlink:
        peer = {"ifname": interface, "net_ns_fd": namespace}
        netlink.link("add", ifname=port, kind="veth", peer=peer)
        (master,) = netlink.link_lookup(ifname=bridge)
        netlink.link("set", ifname=port, master=master, state="up")


def _cable(interface: str, other: str, namespace: str) -> None:
    """A cable from `interface` here to `other` in the namespace."""
    with IPRoute() as netlink:
        peer = {"ifname": other, "net_ns_fd": namespace}
        netlink.link("add", ifname=interface, kind="veth", peer=peer)


def _configure_host(interfaces: dict[str, tuple[str, ...]], gateways: Sequence[str]) -> None:
    # A new namespace copies these from the machine's own; the lab is the same everywhere.
    for setting in ("ip_forward", "conf/all/rp_filter", "conf/default/rp_filter"):
        Path("/proc/sys/net/ipv4", setting).write_text("0")
    with IPRoute() as netlink:
        netlink.link("set", ifname="lo", state="up")
        for name, addresses in interfaces.items():
            Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0")
            Path(f"/proc/sys/net/ipv6/conf/{name}/accept_dad").write_text("0")
            (index,) = netlink.link_lookup(ifname=name)
            for address in addresses:
                prefix, flags = (64, IFA_F_NODAD) if ":" in address else (24, 0)
                netlink.addr("add", index=index, address=address, prefixlen=prefix, flags=flags)
            netlink.link("set", index=index, state="up")
        for gateway in gateways:
            destination = "::/0" if ":" in gateway else "0.0.0.0/0"
            netlink.route("add", dst=destination, gateway=gateway)


def _wait_for_links(interfaces: set[str]) -> None:
    """Wait until interfaces have their link-local addresses, so that a lab no longer changes
    once it is built."""
    deadline = time.monotonic() + 5
    while True:
        # Address, index, prefix length, scope (20: link), flags, interface.
        table = Path("/proc/thread-self/net/if_inet6").read_text().splitlines()
        ready = {line.split()[5] for line in table if line.split()[3] == "20"}
        if interfaces <= ready:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"no link on {', '.join(interfaces - ready)}")
        time.sleep(0.001)


def labs() -> dict[str, bool]:
    """Every lab on this machine by id, and whether a running process holds it."""
    found = {}
    for path in sorted(RUN_DIRECTORY.glob("*")):
        with contextlib.suppress(FileNotFoundError), path.open() as record:
            try:
                fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found[path.name] = True
            else:
                found[path.name] = False
    return found


def nodes_of(run_id: str) -> list[Node]:
    """The namespaces that exist of a lab, bridges included; addresses are not known."""
    prefix = f"{PREFIX}{run_id}-"
    return [
        Node(path.name.removeprefix(prefix), path.name)
        for path in sorted(NAMESPACE_DIRECTORY.glob(f"{prefix}*"))
    ]


def remove(run_id: str) -> None:
    """Take down any lab: processes first, then namespaces, then its record."""
    for node in nodes_of(run_id):
        _kill(node)
        subprocess.run(["ip", "netns", "delete", node.namespace], check=True)
    (RUN_DIRECTORY / run_id).unlink(missing_ok=True)


def _kill(node: Node) -> None:
    """End every process of a namespace and wait until they are gone (5 s at most)."""
    deadline = time.monotonic() + 5
    while pids := node.pids():
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {pids} in {node.namespace} don't end")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)

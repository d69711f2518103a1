"""The balancers that are compared: each runs in the balancer's namespace while it is measured.

All of them listen on the same VIP and ports and have the same backends, in turn. Each is set up as
its documentation advises for production: no log of connections, limits that don't bind.
featherlb is started by its command. May import featherlb's vocabulary, to know its variants.
"""

import http.client
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from featherlb.lab import Node
from featherlb.model import Datapath, Driver, NatMode
from scripts.bench.servers import BULK_PORT, HTTP_PORT, Site, server, stop

START_TIMEOUT = 15

HAPROXY = """
global
    maxconn 8000
    {threads}
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    {more}
listen web
    bind {vip}:{http} backlog 65535
    balance roundrobin
{servers}
listen bulk
    bind {vip}:{bulk_port}
    server bulk {bulk}
"""

STREAM_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"
"""Path in Debian's package libnginx-mod-stream."""

NGINX_STREAM = """
load_module {module};
daemon off;
user root;
worker_processes 1;
pid {directory}/stream.pid;
error_log {directory}/stream.log;
events {{ worker_connections 16000; }}
stream {{
    access_log off;
    upstream web {{
{servers}
    }}
    server {{ listen {vip}:{http} backlog=65535; proxy_pass web; }}
    server {{ listen {vip}:{bulk_port}; proxy_pass {bulk}; }}
}}
"""

NFTABLES = """
table ip bench {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        ip daddr {vip} tcp dport {http} dnat ip to numgen inc mod {count} map {{ {servers} }}
        ip daddr {vip} tcp dport {bulk_port} dnat ip to {bulk}
    }}
}}
"""

CONNTRACK_CLOSED = 3
"""Seconds that conntrack remembers a closed connection. Its default of 120 fills the machine's
table within seconds at these rates, and the kernel would then refuse new connections."""

FEATHERLB = """
services:
  - {{name: web, vip: "{vip}:{http}", nat: {nat}, scheduler: {scheduler}, backends: [{servers}]}}
  - {{name: bulk, vip: "{vip}:{bulk_port}", nat: {nat}, backends: ["{bulk}"]}}
"""


class PeerError(Exception):
    """A balancer does not run here, with the reason in one line."""


@dataclass(frozen=True, slots=True)
class Peer:
    """`run` starts it at a site; it balances inside the block, and is gone after.

    `needs` are the programs and files that must be there. `direct` says that there is no balancer:
    clients connect to the backends themselves.
    """

    name: str
    title: str
    run: Callable[[Site], AbstractContextManager[None]]
    needs: tuple[str, ...] = ()
    direct: bool = False

    @property
    def missing(self) -> list[str]:
        """Required programs that are not installed."""
        return [need for need in self.needs if not (shutil.which(need) or Path(need).is_file())]


def peers() -> list[Peer]:
    """All of them, in the order in which a round goes through them."""
    return [
        *_variants(),
        Peer("haproxy", "HAProxy mode tcp, 1 thread", partial(haproxy, 1), ("haproxy",)),
        Peer("haproxy-mt", "HAProxy mode tcp, all cores", partial(haproxy, None), ("haproxy",)),
        Peer("nginx", "nginx stream, 1 worker", _nginx, ("nginx", STREAM_MODULE)),
        Peer("nftables", "kernel nftables DNAT", _nftables, ("nft", "conntrack")),
        Peer("direct", "no balancer, routed", _direct, direct=True),
    ]


def _variants() -> Iterator[Peer]:
    """featherlb with each datapath, queue driver and NAT mode it has."""
    for datapath in Datapath:
        drivers = list(Driver) if datapath is Datapath.NFQUEUE else [None]
        for driver in drivers:
            for nat in NatMode:
                how = driver or datapath
                options = ["--datapath", str(datapath)]
                if driver:
                    options += ["--driver", str(driver)]
                yield Peer(
                    f"featherlb-{how}-{nat}",
                    f"featherlb {how}, {nat}",
                    partial(_featherlb, options, nat, "round-robin"),
                    ("conntrack",) if datapath is Datapath.OFFLOAD else (),
                )
    options = ["--driver", str(Driver.NETLINK), "--workers", str(os.cpu_count())]
    yield Peer(
        "featherlb-netlink-dnat-mt",
        "featherlb netlink, dnat, a worker per core",
        partial(_featherlb, options, NatMode.DNAT, "round-robin"),
    )
    yield Peer(
        "featherlb-ebpf-dnat-worker",
        "featherlb ebpf, dnat, a worker opens flows",
        partial(_featherlb, ["--datapath", "ebpf"], NatMode.DNAT, "least-connections"),
    )


@contextmanager
def _featherlb(options: list[str], nat: NatMode, scheduler: str, site: Site) -> Iterator[None]:
    path = site.directory / "featherlb.yaml"
    servers = ", ".join(f'"{endpoint}"' for endpoint in site.web)
    path.write_text(
        FEATHERLB.format(nat=nat, scheduler=scheduler, servers=servers, **_endpoints(site))
    )
    program = str(Path(sys.executable).with_name("featherlb"))
    command = [program, "up", "--config", str(path), *options]
    with (
        (site.directory / "featherlb.log").open("w+") as log,
        site.lab.balancer.popen(command, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        try:
            if not _says_ready(process):
                log.seek(0)
                lines = log.read().splitlines() or ["it did not get ready in time"]
                raise PeerError(lines[-1])
            if str(Datapath.OFFLOAD) in options:
                _let_conntrack_forget(site.lab.balancer)
            yield
        finally:
            stop(process)
            if str(Datapath.OFFLOAD) in options:
                site.lab.balancer.run(["conntrack", "-F"])


def _let_conntrack_forget(balancer: Node) -> None:
    balancer.sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait", CONNTRACK_CLOSED)


def _says_ready(process: "subprocess.Popen[str]") -> bool:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], START_TIMEOUT)
    return bool(readable) and process.stdout.readline() == "ready\n"


@contextmanager
def haproxy(threads: int | None, site: Site, more: str = "") -> Iterator[None]:
    """HAProxy with so many threads, by default one per core, and `more` default settings."""
    path = site.directory / "haproxy.cfg"
    servers = "\n".join(f"    server web{i} {at}" for i, at in enumerate(site.web))
    setting = f"nbthread {threads}" if threads else ""
    text = HAPROXY.format(threads=setting, servers=servers, more=more, **_endpoints(site))
    path.write_text(text)
    with _proxy(site, ["haproxy", "-db", "-f", str(path)]):
        yield


@contextmanager
def _nginx(site: Site) -> Iterator[None]:
    path = site.directory / "stream.conf"
    servers = "\n".join(f"        server {endpoint};" for endpoint in site.web)
    path.write_text(
        NGINX_STREAM.format(
            module=STREAM_MODULE, directory=site.directory, servers=servers, **_endpoints(site)
        )
    )
    with _proxy(site, ["nginx", "-c", str(path), "-e", str(site.directory / "stream.log")]):
        yield


@contextmanager
def _proxy(site: Site, command: list[str]) -> Iterator[None]:
    """Run a program that accepts the client's connections and opens its own to the backends."""
    before = site.lab.balancer.sysctl("net.ipv4.ip_local_port_range")
    site.lab.balancer.sysctl("net.ipv4.ip_local_port_range", "1024 65535")
    try:
        with _vip(site):
            try:
                with server(site.lab.balancer, command, HTTP_PORT, site.directory):
                    yield
            except RuntimeError as error:
                raise PeerError(str(error)) from None
    finally:
        site.lab.balancer.sysctl("net.ipv4.ip_local_port_range", before)


@contextmanager
def _nftables(site: Site) -> Iterator[None]:
    balancer = site.lab.balancer
    servers = (endpoint.replace(":", " . ") for endpoint in site.web)
    rules = NFTABLES.format(
        count=len(site.web),
        servers=", ".join(f"{i} : {at}" for i, at in enumerate(servers)),
        **_endpoints(site),
    )
    with _vip(site):
        try:
            balancer.run(["nft", "-f", "-"], input=rules)
        except subprocess.CalledProcessError as error:
            raise PeerError(f"nft: {error.stderr.splitlines()[0]}") from None
        try:
            _let_conntrack_forget(balancer)
            yield
        finally:
            balancer.run(["nft", "delete", "table", "ip", "bench"])
            balancer.run(["conntrack", "-F"])


@contextmanager
def _direct(site: Site) -> Iterator[None]:
    yield


@contextmanager
def _vip(site: Site) -> Iterator[None]:
    """Assign the VIP to the balancer, as featherlb does."""
    address = [f"{site.vip}/32", "dev", "lo"]
    site.lab.balancer.run(["ip", "address", "add", *address])
    try:
        yield
    finally:
        site.lab.balancer.run(["ip", "address", "del", *address])


def _endpoints(site: Site) -> dict[str, object]:
    return {
        "vip": site.vip,
        "http": HTTP_PORT,
        "bulk_port": BULK_PORT,
        "bulk": site.bulk,
    }


def wait_until_answering(site: Site, target: str) -> None:
    """Ask `target` (ADDRESS:PORT) over HTTP until it answers. PeerError if it doesn't in time."""
    address, _, port = target.partition(":")
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            connection = http.client.HTTPConnection(address, int(port))
            connection.sock = site.lab.client.connect(address, int(port), timeout=1)
            connection.request("GET", "/", headers={"Connection": "close"})
            status = connection.getresponse().status
            connection.close()
            if status != 200:
                raise PeerError(f"{target} answers with status {status}")
            return
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > deadline:
                raise PeerError(f"no answer at {target}: {error}") from None
            time.sleep(0.05)

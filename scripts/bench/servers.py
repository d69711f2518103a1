"""The servers behind the balancers: several nginx and an iperf3, each on a port of one host.

Servers for load, not for tests: no log, no limit to requests on a connection, long accept queues.
"""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from featherlb.lab import Lab, Node
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import wait_until_listening

HTTP_PORT, FIRST_BACKEND_PORT, BULK_PORT = 80, 8080, 5201
STOP_TIMEOUT = 10

NGINX = """
daemon off;
user root;
worker_processes 1;
pid {directory}/{name}.pid;
error_log {directory}/{name}.log;
events {{ worker_connections 16000; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000000;
    server {{
        listen {port} backlog=65535;
        location / {{ return 200 "{name}\\n"; }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Site:
    """A lab with servers, ready for a balancer; `directory` is for configuration files."""

    lab: Lab
    directory: Path
    ports: range

    @property
    def vip(self) -> str:
        return VIP

    @property
    def web(self) -> list[str]:
        """The HTTP servers, as ADDRESS:PORT."""
        return [f"{self.lab.backends[0].address}:{port}" for port in self.ports]

    @property
    def bulk(self) -> str:
        """The iperf3 server: only one, for all streams of a test must reach the same."""
        return f"{self.lab.backends[0].address}:{BULK_PORT}"


@contextmanager
def site(backends: int, directory: Path) -> Iterator[Site]:
    """Build the lab and start the servers.

    They share a host, as clients and backends are cabled to the balancer directly: a switch on the
    way would cost every peer the same and hide the differences between them.
    """
    with Lab(clients=1, backends=1, switches=False) as lab, ExitStack() as stack:
        prepare(lab)
        node = lab.backends[0]
        ports = range(FIRST_BACKEND_PORT, FIRST_BACKEND_PORT + backends)
        for port in ports:
            name = f"backend{port}"
            path = directory / f"{name}.conf"
            path.write_text(NGINX.format(directory=directory, name=name, port=port))
            command = ["nginx", "-c", str(path), "-e", str(directory / f"{name}.log")]
            stack.enter_context(server(node, command, port, directory))
        command = ["iperf3", "-s", "-i", "0"]
        stack.enter_context(server(node, command, BULK_PORT, directory))
        yield Site(lab, directory, ports)


def prepare(lab: Lab) -> None:
    """Make room for tens of thousands of new connections a second, in each namespace."""
    for node in lab.nodes:
        # Whatever this host's default is: BBR's pacing would measure its timers. Of those without
        # pacing, every namespace may choose this one.
        node.sysctl("net.ipv4.tcp_congestion_control", "reno")
        node.sysctl("net.core.somaxconn", 65535)
        node.sysctl("net.ipv4.tcp_max_syn_backlog", 65535)
        # Ports of connections that ended a second ago are reused, as there are no others.
        node.sysctl("net.ipv4.tcp_tw_reuse", 1)
    lab.client.sysctl("net.ipv4.ip_local_port_range", "1024 65535")
    lab.balancer.sysctl("net.ipv4.ip_forward", 1)


def forget_connections(lab: Lab) -> None:
    """Clear connections in TIME_WAIT before the next peer's turn.

    Each peer shows the backends other timestamps for the same addresses and ports (Linux draws
    their offset for each pair of addresses). A connection in TIME_WAIT lets only a later timestamp
    open it again (RFC 6191), so half of the peers would wait a second for many of their SYNs.
    """
    for node in lab.nodes:
        node.run(["ss", "--kill", "--tcp", "state", "time-wait"])


@contextmanager
def server(
    node: Node, command: list[str], port: int, directory: Path
) -> Iterator["subprocess.Popen[str]"]:
    """Run a program in a node; it listens on `port` when the block begins, and is gone after.

    Raises RuntimeError with the program's own last words if it doesn't start; they are written
    in `directory`.
    """
    with (
        (directory / f"{node.name}-{port}.out").open("w+") as output,
        node.popen(command, stdout=output, stderr=output) as process,
    ):
        try:
            try:
                wait_until_listening(node, process, port)
            except (RuntimeError, TimeoutError) as error:
                output.seek(0)
                words = output.read().strip().splitlines()
                raise RuntimeError(f"{command[0]}: {words[-1] if words else error}") from None
            yield process
        finally:
            stop(process)


def stop(process: "subprocess.Popen[str]") -> None:
    """Send SIGTERM, and SIGKILL if the process doesn't end in time."""
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

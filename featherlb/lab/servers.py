"""Real servers for the lab's backends, each a context manager."""

import http.client
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from featherlb.lab.namespaces import Node


class Server:
    """A program that runs in a node from `__enter__` to `__exit__`, on one port."""

    def __init__(self, node: Node, address: str = "0.0.0.0", port: int = 8080) -> None:
        self.node = node
        self.address = address
        self.port = port
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> "subprocess.Popen[str]":
        """Start the program; it accepts connections when this returns."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._process = self.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait()


class HttpServer(Server):
    """Answers `{"backend": "backend1", "peer": "10.0.0.101"}` to every request (see httpd.py)."""

    def start(self) -> "subprocess.Popen[str]":
        # The socket listens before the program runs, so there is nothing to wait for.
        with self.node.listen(self.address, self.port) as listener:
            descriptor = listener.fileno()
            script = str(Path(__file__).with_name("httpd.py"))
            # It needs no installed package, and starts sooner without looking for them.
            command = [sys.executable, "-I", "-S", script, self.node.name, str(descriptor)]
            return self.node.popen(command, pass_fds=[descriptor])

    def counters(self) -> dict[str, int]:
        """Its `requests` and `connections` so far, asked from inside its own namespace."""
        address = "127.0.0.1" if self.address == "0.0.0.0" else self.address
        connection = http.client.HTTPConnection(address, self.port)
        connection.sock = self.node.connect(address, self.port)
        connection.request("GET", "/counters", headers={"Connection": "close"})
        counters: dict[str, int] = json.load(connection.getresponse())
        connection.close()
        return counters


CONFIGURATION = """
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log {directory}/access.log;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    sendfile on;
    server {{
        listen {address}:{port} backlog=4096;
        location / {{ return 200 "{name}\\n"; }}
        location /files/ {{ root {directory}; }}
    }}
}}
"""


class Nginx(Server):
    """nginx: answers with its node's name, and serves `files` under /files/."""

    def start(self) -> "subprocess.Popen[str]":
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.node.namespace}-nginx-"))
        self.files = self.directory / "files"
        self.files.mkdir()
        configuration = self.directory / "nginx.conf"
        configuration.write_text(
            CONFIGURATION.format(
                directory=self.directory,
                address=self.address,
                port=self.port,
                name=self.node.name,
            )
        )
        log = str(self.directory / "error.log")
        process = self.node.popen(["nginx", "-c", str(configuration), "-e", log])
        wait_until_listening(self.node, process, self.port)
        return process

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        shutil.rmtree(self.directory)

    @property
    def access_log(self) -> list[str]:
        """Its access log so far, in nginx's `combined` format."""
        return (self.directory / "access.log").read_text().splitlines()


class DnsServer(Server):
    """dnsmasq, over UDP and TCP: the TXT record of who.test is its node's name."""

    def start(self) -> "subprocess.Popen[str]":
        process = self.node.popen(
            [
                *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file="),
                *("--user=root", "--no-hosts", "--no-resolv", f"--port={self.port}"),
                f"--txt-record=who.test,{self.node.name}",
            ],
            stderr=subprocess.DEVNULL,
        )
        # It opens the port for UDP first.
        wait_until_listening(self.node, process, self.port)
        return process


class Iperf3(Server):
    """iperf3: control connections and tests over TCP and UDP, all on one port."""

    def start(self) -> "subprocess.Popen[str]":
        process = self.node.popen(
            ["iperf3", "--server", "--port", str(self.port)], stdout=subprocess.DEVNULL
        )
        wait_until_listening(self.node, process, self.port)
        return process


def wait_until_listening(
    node: Node, process: "subprocess.Popen[str]", port: int, timeout: float = 30
) -> None:
    """Wait until something listens on a TCP port of the node, `timeout` seconds at most.

    Raises RuntimeError if the process ends instead, TimeoutError if neither happens.
    """
    deadline = time.monotonic() + timeout
    while not node.run(["ss", "-Hltn", f"sport = :{port}"]).stdout:
        if process.poll() is not None:
            raise RuntimeError(f"the server of {node.name} ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing listens on port {port} of {node.name}")
        time.sleep(0.01)

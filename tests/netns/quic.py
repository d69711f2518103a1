"""QUIC servers and clients, by aioquic.

python -m tests.netns.quic NAME PORT DIRECTORY      a server that says its name on each stream
"""

import asyncio
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from aioquic.asyncio.client import connect
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration

from featherlb.lab import Node

TIMEOUT = 30
PROTOCOL = ["name"]


@contextmanager
def servers(nodes: list[Node], port: int, directory: Path) -> Iterator[None]:
    """A server on each node."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout"]
    certificate = ["-x509", "-subj", "/CN=test", "-out", str(directory / "cert.pem")]
    command = ["openssl", "req", *key, str(directory / "key.pem"), *certificate]
    subprocess.run(command, check=True, capture_output=True)
    with ExitStack() as stack:
        for node in nodes:
            program = [sys.executable, "-m", "tests.netns.quic", node.name, str(port)]
            server = stack.enter_context(
                node.popen([*program, str(directory)], stdout=subprocess.PIPE)
            )
            stack.callback(server.terminate)
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
        yield


async def run_server(name: str, port: int, directory: Path) -> None:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=PROTOCOL)
    configuration.load_cert_chain(directory / "cert.pem", directory / "key.pem")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(name.encode())
        writer.write_eof()

    def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.ensure_future(answer(reader, writer)))

    tasks: list[asyncio.Future[None]] = []
    await serve("0.0.0.0", port, configuration=configuration, stream_handler=handle)
    print("ready", flush=True)
    await asyncio.Event().wait()


class Client:
    """A connection."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol

    async def ask(self) -> str:
        """The server's name."""
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await self._protocol.create_stream()
            writer.write_eof()
            name: bytes = await reader.read()
            return name.decode()

    async def change_port(self) -> None:
        """Have the connection another port, as from a NAT that has forgotten it."""
        before = self._protocol._transport
        # Of both families, as aioquic's own.
        another = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        another.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        another.bind(("::", 0))
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self._protocol, sock=another)
        before.abort()


@asynccontextmanager
async def client(address: str, port: int) -> AsyncIterator[Client]:
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=PROTOCOL, verify_mode=ssl.CERT_NONE
    )
    async with (
        asyncio.timeout(TIMEOUT),
        connect(address, port, configuration=configuration, local_port=0) as protocol,
    ):
        yield Client(protocol)
    assert protocol._transport is not None
    protocol._transport.close()
    await asyncio.sleep(0)


if __name__ == "__main__":
    asyncio.run(run_server(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))

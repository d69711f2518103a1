"""Probes against real servers on the loopback interface."""

import asyncio
import ctypes
import os
import pwd
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from featherlb.control.http_probe import BODY_LIMIT
from featherlb.control.probes import NoVerdictError, probe
from featherlb.model import CheckType, Endpoint, HealthCheck, StatusRange
from featherlb.system import processes
from tests.descriptors import descriptors_left, open_descriptors

LOCALHOST = ip_address("127.0.0.1")


def wanted(kind: CheckType, timeout: float = 10, **options: Any) -> HealthCheck:
    """A check that has time enough on a busy machine."""
    return HealthCheck(kind, timeout=timeout, **options)


def endpoint(bound: socket.socket) -> Endpoint:
    return Endpoint(LOCALHOST, bound.getsockname()[1])


@contextmanager
def bound(kind: socket.SocketKind) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, kind) as each:
        each.bind(("127.0.0.1", 0))
        yield each


@pytest.fixture
def closed() -> Iterator[Endpoint]:
    """A port that nobody else can have and nobody listens on."""
    with bound(socket.SOCK_STREAM) as tcp:
        yield endpoint(tcp)


def ask(check: HealthCheck, backend: Endpoint) -> str | None:
    return asyncio.run(probe(check, backend))


def ask_server(
    check: HealthCheck, answer: bytes, tls: ssl.SSLContext | None = None
) -> tuple[str | None, bytes]:
    """The probe's result against a server that answers so, and the head of what it received."""
    heads = [b""]
    handlers: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.current_task())
        # Clients that give up are what some tests are about.
        with suppress(OSError, EOFError):
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def run() -> str | None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
        async with server:
            failure = await probe(check, endpoint(server.sockets[0]))
            await asyncio.gather(*filter(None, handlers))
            return failure

    return asyncio.run(run()), heads[-1]


def response(status: str, body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_tcp_is_well_where_somebody_listens() -> None:
    with bound(socket.SOCK_STREAM) as listener:
        listener.listen()
        assert ask(wanted(CheckType.TCP), endpoint(listener)) is None


@pytest.mark.parametrize("kind", [CheckType.TCP, CheckType.HTTP, CheckType.HTTPS])
def test_a_refused_connection_is_said_so(kind: CheckType, closed: Endpoint) -> None:
    assert ask(wanted(kind), closed) == "connection refused"


@pytest.mark.parametrize("kind", [CheckType.HTTP, CheckType.HTTPS])
def test_silence_ends_at_the_timeout(kind: CheckType) -> None:
    with bound(socket.SOCK_STREAM) as listener:
        listener.listen()
        check = wanted(kind, timeout=0.1)
        assert ask(check, endpoint(listener)) == "no answer within 0.1 s"


def test_an_http_request_is_as_configured() -> None:
    check = wanted(CheckType.HTTP, method="HEAD", path="/a%20b?c=%2F", host="example.org:8")
    failure, head = ask_server(check, response("204 No Content"))
    assert failure is None
    assert head.startswith(b"HEAD /a%20b?c=%2F HTTP/1.1\r\n")
    assert b"\r\nHost: example.org:8\r\n" in head


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        ("200 OK", None),
        ("302 Found\r\nLocation: /elsewhere", None),
        ("404 Not Found", "status 404"),
        ("503 Service Unavailable", "status 503"),
    ],
)
def test_a_status_decides(status: str, failure: str | None) -> None:
    assert ask_server(wanted(CheckType.HTTP), response(status))[0] == failure


def test_other_statuses_can_be_good() -> None:
    check = wanted(CheckType.HTTP, status=(StatusRange(404, 404), StatusRange(500, 503)))
    assert ask_server(check, response("404 Not Found"))[0] is None
    assert ask_server(check, response("502 Bad Gateway"))[0] is None
    assert ask_server(check, response("200 OK"))[0] == "status 200"


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (b"all is fine", None),
        (b"x" * (BODY_LIMIT - 4) + b"fine", None),
        (b"x" * BODY_LIMIT + b"fine", "the body doesn't hold what is expected"),
        (b"", "the body doesn't hold what is expected"),
    ],
    ids=["there", "at the limit", "behind the limit", "empty"],
)
def test_a_body_decides(body: bytes, failure: str | None) -> None:
    check = wanted(CheckType.HTTP, body="fine")
    assert ask_server(check, response("200 OK", body))[0] == failure


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (b"SSH-2.0-x\r\n\r\n", "the answer is not HTTP"),
        (b"", "the connection was closed without an answer"),
    ],
)
def test_what_is_not_http_is_said_so(answer: bytes, failure: str) -> None:
    assert ask_server(wanted(CheckType.HTTP), answer)[0] == failure


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """Of a server with a certificate that nobody trusts."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the program openssl")
    path = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-subj", "/CN=nobody"),
            *("-keyout", path / "key", "-out", path / "certificate"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path / "certificate", path / "key")
    return context


def test_https_asks_for_the_host_by_name(tls: ssl.SSLContext) -> None:
    names: list[str | None] = []
    tls.sni_callback = lambda connection, name, context: names.append(name)
    check = wanted(CheckType.HTTPS, host="example.org:8")
    failure, head = ask_server(check, response("200 OK"), tls)
    assert failure is None
    assert names == ["example.org"]
    assert b"\r\nHost: example.org:8\r\n" in head


def test_https_needs_tls() -> None:
    failure, _ = ask_server(wanted(CheckType.HTTPS, timeout=0.2), response("200 OK"))
    assert failure


@pytest.mark.parametrize("expect", [None, "pong"])
def test_udp_port_unreachable_is_down(expect: str | None) -> None:
    with bound(socket.SOCK_DGRAM) as each:
        place = endpoint(each)
    check = wanted(CheckType.UDP, send="ping", expect=expect)
    assert ask(check, place) == "connection refused"


def test_udp_silence_is_down_only_where_an_answer_is_expected() -> None:
    with bound(socket.SOCK_DGRAM) as silent:
        check = wanted(CheckType.UDP, send="\xff\x00", timeout=0.1)
        assert ask(check, endpoint(silent)) is None
        assert silent.recv(10) == b"\xff\x00"
        check = wanted(CheckType.UDP, expect="pong", timeout=0.1)
        assert ask(check, endpoint(silent)) == "no answer within 0.1 s"
        assert silent.recv(10) == b""


@pytest.mark.parametrize(
    ("expect", "failure"),
    [("p\xf6ng", None), ("ping", "the answer doesn't hold what is expected")],
)
def test_udp_answer_decides(expect: str, failure: str | None) -> None:
    async def echo(server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        data, client = await loop.sock_recvfrom(server, 100)
        await loop.sock_sendto(server, b"<" + data + b">", client)

    async def run() -> str | None:
        check = wanted(CheckType.UDP, send="p\xf6ng", expect=expect)
        with bound(socket.SOCK_DGRAM) as server:
            server.setblocking(False)
            failure, _ = await asyncio.gather(probe(check, endpoint(server)), echo(server))
            return failure

    assert asyncio.run(run()) == failure


@pytest.mark.parametrize("kind", [kind for kind in CheckType if kind is not CheckType.HTTPS])
def test_without_descriptors_there_is_no_verdict(kind: CheckType, closed: Endpoint) -> None:
    """With enough of them, it is found that nobody listens there."""
    check = wanted(kind, command=("/bin/true",), send="ping")

    async def run() -> list[str | None]:
        found: list[str | None] = []
        # What a first probe needs for good, such as the thread that waits for processes.
        await probe(check, closed)
        before = open_descriptors()
        for count in range(100):
            with descriptors_left(count):
                try:
                    found.append(await probe(check, closed))
                    break
                except NoVerdictError as error:
                    found.append(str(error))
        assert open_descriptors() == before
        return found

    *without, last = asyncio.run(run())
    assert without
    assert set(without) == {"too many open files"}
    assert last == (None if kind is CheckType.SCRIPT else "connection refused")


def script(text: str, timeout: float = 5.0) -> HealthCheck:
    return wanted(CheckType.SCRIPT, command=("/bin/sh", "-c", text), timeout=timeout)


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("true", None),
        ("exit 3", "exit code 3"),
        ("kill -9 $$", "killed by signal 9"),
        ('test "$FEATHERLB_ADDRESS:$FEATHERLB_PORT" = 127.0.0.1:7', None),
        ("test $PWD = /", None),
    ],
)
def test_a_script_decides(text: str, failure: str | None) -> None:
    assert ask(script(text), Endpoint(LOCALHOST, 7)) == failure


def test_a_script_that_is_not_there() -> None:
    check = wanted(CheckType.SCRIPT, command=("/nowhere/check",))
    assert ask(check, Endpoint(LOCALHOST, 7)) == "no such file or directory"


@pytest.fixture
def subreaper() -> Iterator[None]:
    """This process is the parent of orphans, as the supervisor is."""
    processes.adopt_orphans()
    yield
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0


PR_SET_CHILD_SUBREAPER = 36
LEFT = "sleep 600 & echo $! >> {pids}; setsid sh -c 'sleep 600 & echo $! $$ >> {pids}; wait' &"


@pytest.mark.usefixtures("subreaper")
@pytest.mark.parametrize(
    ("end", "failure"),
    [("exit 0", None), ("exit 3", "exit code 3"), ("sleep 600", "no answer within 1 s")],
)
def test_nothing_is_left_of_a_script(tmp_path: Path, end: str, failure: str | None) -> None:
    """However it ends: neither its children nor what has left its session."""
    pids = tmp_path / "pids"
    begun = f"while [ $(wc -l < {pids}) -lt 2 ]; do sleep 0.01; done"
    timeout = 1 if failure and "answer" in failure else 20
    check = script(f"{LEFT.format(pids=pids)} {begun}; {end}", timeout=timeout)
    assert ask(check, Endpoint(LOCALHOST, 7)) == failure
    found = pids.read_text().split()
    assert len(found) == 3
    assert not any(os.path.exists(f"/proc/{pid}") for pid in found)


@pytest.mark.usefixtures("subreaper")
def test_scripts_at_the_same_time_leave_each_other_alone() -> None:
    async def run() -> list[str | None]:
        quick = [probe(script("sleep 600 & exit 0"), Endpoint(LOCALHOST, 7)) for _ in range(20)]
        slow = [
            probe(script("(sleep 0.3; exit 0) & wait $!", 30), Endpoint(LOCALHOST, 7))
            for _ in range(5)
        ]
        return await asyncio.gather(*quick, *slow)

    assert asyncio.run(run()) == [None] * 25


def test_a_script_has_limits() -> None:
    limits = script("[ $(ulimit -n):$(ulimit -c):$(ulimit -t) = 1024:0:6 ]")
    assert ask(limits, Endpoint(LOCALHOST, 7)) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_script_as_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    nobody = pwd.getpwnam("nobody")
    text = (
        f"[ $(id -u):$(id -g) = {nobody.pw_uid}:{nobody.pw_gid} ] && [ $PWD = / ] &&"
        " [ -z $SECRET ] && [ $USER = nobody ] && [ $FEATHERLB_PORT = 7 ] && [ ! -r /etc/shadow ]"
    )
    check = replace(script(text), user="nobody")
    assert ask(check, Endpoint(LOCALHOST, 7)) is None
    check = replace(check, user="nobody-of-this-name")
    with pytest.raises(NoVerdictError, match="there is no user 'nobody-of-this-name'"):
        ask(check, Endpoint(LOCALHOST, 7))

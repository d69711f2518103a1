"""The API's client: which instance it talks to, and what it says where none answers."""

import errno
import os
import socket
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from featherlb.api import client, schema
from featherlb.cli import main
from featherlb.model.errors import ConfigError, HostError
from featherlb.system.journal import Journal, Record, start_time

ALIVE = Record(
    instance=0,
    workers=1,
    pid=os.getpid(),
    started=start_time(os.getpid()) or 0,
    vips=(),
    sources=(),
    order=0,
    earlier=(),
    changes=(),
)
DEAD = replace(ALIVE, started=-1)
"""Its pid is another process's by now."""


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    journal = Journal(tmp_path)
    journal.directory.mkdir()
    monkeypatch.setattr(client, "Journal", lambda: journal)
    return journal


def add(journal: Journal, record: Record) -> Path:
    """An instance's record, and its socket, on which nobody listens."""
    journal.write(record)
    path = journal.directory / f"{record.instance}.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
    return path


def test_the_only_instance_needs_no_number(journal: Journal) -> None:
    path = add(journal, ALIVE)
    assert client.find_instance(None) == client.find_instance(0) == path


def test_several_instances_need_a_number(journal: Journal) -> None:
    add(journal, ALIVE)
    path = add(journal, replace(ALIVE, instance=4))
    assert client.find_instance(4) == path
    with pytest.raises(ConfigError, match=r"choose one with --instance \(0, 4\)"):
        client.find_instance(None)
    with pytest.raises(ConfigError, match=r"no instance 7 here \(running: 0, 4\)"):
        client.find_instance(7)


@pytest.mark.parametrize("number", [None, 0])
def test_a_dead_instance_is_named_with_the_way_out(journal: Journal, number: int | None) -> None:
    add(journal, DEAD)
    with pytest.raises(HostError) as caught:
        client.find_instance(number)
    assert str(caught.value) == (
        f"instance 0 (pid {DEAD.pid}) is dead; packets to its VIPs are dropped: run `featherlb up`"
        " or `featherlb down`"
    )


def test_a_dead_instance_whose_flows_the_kernel_forwards(journal: Journal) -> None:
    add(journal, replace(DEAD, offloads=True))
    with pytest.raises(HostError, match="kernel still forwards its open connections"):
        client.find_instance(None)


def test_a_dead_instance_is_not_in_the_way_of_a_running_one(journal: Journal) -> None:
    path = add(journal, ALIVE)
    add(journal, replace(DEAD, instance=4))
    assert client.find_instance(None) == path
    with pytest.raises(HostError, match=r"instance 4 \(pid \d+\) is dead"):
        client.find_instance(4)


def test_without_any_instance(journal: Journal) -> None:
    for number in (None, 0):
        with pytest.raises(HostError, match="no featherlb runs in this network namespace"):
            client.find_instance(number)


def test_a_refused_connection_is_one_plain_sentence(journal: Journal) -> None:
    path = add(journal, ALIVE)
    with pytest.raises(HostError) as caught:
        client.connect().get("/v1/status", schema.Status)
    assert str(caught.value) == (
        f"cannot talk to featherlb on {path} (connection refused): is it running?"
    )


def test_who_may_not_ask_is_told_to_be_root(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    path = add(journal, ALIVE)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(HostError) as caught:
        client.connect().get("/v1/status", schema.Status)
    assert str(caught.value) == (
        f"cannot talk to featherlb on {path} (permission denied): run this as root, with sudo"
    )


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\xff\xfe\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xff",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\noops",
        b"HTTP/1.1 400 Oh\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200 + b"\r\n",
    ],
)
def test_an_answer_that_is_none_is_one_sentence(journal: Journal, sent: bytes) -> None:
    path = add(journal, ALIVE)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(sent)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(HostError) as caught:
            client.connect().get("/v1/status", schema.Status)
        thread.join()
    (line,) = str(caught.value).splitlines()
    assert str(path) in line
    assert "pydantic" not in line


WORDS = ["web\udcff", "日本", "", "\x00", "a b", "%zz", "x" * 70000, "\n"]


@pytest.mark.parametrize("word", WORDS, ids=ascii)
@pytest.mark.parametrize(
    "command",
    [
        ["flows", "--service", "?"],
        ["flows", "--client", "?"],
        ["flows", "--kill", "--backend", "?"],
        ["backend", "drain", "?", "10.0.1.2:80"],
        ["backend", "add", "web", "?"],
    ],
    ids=lambda command: " ".join(command),
)
def test_no_argument_gets_more_than_a_sentence(
    journal: Journal, capsys: pytest.CaptureFixture[str], command: list[str], word: str
) -> None:
    """Of a command, with an instance that answers whatever it is asked that it has stopped."""
    path = add(journal, ALIVE)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(30)

        def answer() -> None:
            with suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 18)
                    body = b'{"error": "featherlb has stopped"}'
                    head = b"HTTP/1.1 503 No\r\nContent-Length: %d\r\n\r\n" % len(body)
                    connection.sendall(head + body)

        thread = threading.Thread(target=answer)
        thread.start()
        arguments = [word if one == "?" else one for one in command]
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        # It may still wait for a command that has asked nothing.
        with suppress(OSError), socket.socket(socket.AF_UNIX) as last:
            last.connect(str(path))
        thread.join()
    assert ended.value.code in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith("featherlb: ")
    assert "internal error" not in said
    assert len(said.splitlines()) == 1

"""The API's client: which instance it talks to, and what it says where none answers."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from featherlb.api import client, schema
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
        f"cannot talk to featherlb on {path} (connection refused): is it running, and are you root?"
    )

"""The journal on disk, in a directory of the test's own."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from featherlb.model.errors import HostError
from featherlb.system.journal import Journal, Record, start_time

STARTED = start_time(os.getpid())
assert STARTED is not None
RECORD = Record(
    instance=3,
    workers=2,
    pid=os.getpid(),
    started=STARTED,
    vips=(("tcp", "10.0.0.10", 80, 80),),
    sources=("10.0.1.2,tcp:80,10.0.1.1",),
    order=2,
    earlier=(0, 1),
    claims={
        "dropped": ("10.0.1.2,tcp:80",),
        "queued": ("10.0.1.3,tcp:80",),
        "tracked": ("10.0.1.4,tcp:80",),
        "untracked": ("10.0.1.2,tcp:80", "10.0.1.3,tcp:80"),
    },
    changes=({"kind": "Sets", "instance": 3},),
)


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.records() == []
    other = replace(RECORD, instance=10, changes=())
    for record in (other, RECORD):
        journal.write(record)
    assert journal.records() == [RECORD, other]
    journal.write(replace(RECORD, changes=()))
    assert journal.records()[0].changes == ()


def test_what_is_forgotten_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(RECORD)
    listen(journal.directory / "3.sock").close()
    journal.remove(3)
    assert list(tmp_path.iterdir()) == []


def listen(path: Path) -> socket.socket:
    path.parent.mkdir(exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def test_a_sweep_removes_what_nobody_uses(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(RECORD)
    listen(journal.directory / "3.sock").close()
    listen(journal.directory / "4.sock").close()
    other, gone = tmp_path / "net-700001", tmp_path / "net-700002"
    gone.mkdir()
    listen(other / "0.sock").close()
    with listen(tmp_path / "net-700003" / "0.sock"):
        assert set(journal.sweep()) == {
            f"socket {journal.directory}/4.sock",
            f"socket {other}/0.sock",
            f"empty directory {other}",
            f"empty directory {gone}",
        }
    assert not other.exists()
    assert not gone.exists()
    assert sorted(path.name for path in journal.directory.iterdir()) == ["3.json", "3.sock"]
    assert journal.sweep() == [
        f"socket {tmp_path}/net-700003/0.sock",
        f"empty directory {tmp_path}/net-700003",
    ]
    assert journal.sweep() == []


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(RECORD)
    (path,) = journal.directory.glob("*.json")
    data = json.loads(path.read_text())
    claims = data.pop("claims")
    data |= {"raw": claims["dropped"], "carried": claims["tracked"], "carries": True}
    data |= {name: claims[name] for name in ("queued", "untracked")}
    del data["offloads"]
    path.write_text(json.dumps(data))
    assert journal.records() == [replace(RECORD, offloads=True)]


def test_nothing_is_left_of_removed_records(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(RECORD)
    journal.remove(RECORD.instance)
    journal.remove(RECORD.instance)
    assert list(tmp_path.rglob("*")) == []


def test_a_half_written_record_is_no_record(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(RECORD)
    (journal.directory / "4.new").write_text('{"instance": 4, "wor')
    assert journal.records() == [RECORD]


def test_an_owner_is_alive_while_it_runs() -> None:
    assert RECORD.alive
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = start_time(process.pid)
        assert started is not None
        record = replace(RECORD, pid=process.pid, started=started)
        assert record.alive
        # A pid that another process has got since.
        assert not replace(record, started=started - 1).alive
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        # It is a zombie now.
        assert not record.alive
    assert not record.alive


def test_the_lock_keeps_others_out(tmp_path: Path) -> None:
    other = os.open(tmp_path, os.O_RDONLY)
    with Journal(tmp_path).locked(), pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


def test_a_process_that_keeps_the_lock_is_not_waited_for_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featherlb.system.journal.LOCK_TIMEOUT", 0.1)
    with (
        Journal(tmp_path).locked(),
        pytest.raises(HostError, match=r"^another featherlb has kept .* locked for 0.1 s; "),
        Journal(tmp_path).locked(),
    ):
        pass
    with Journal(tmp_path).locked():
        pass


def test_a_directory_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(HostError, match=r"^cannot use .*file: "), Journal(path).locked():
        pass


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(RECORD)
    data = json.loads((journal.directory / "3.json").read_text())
    assert data["vips"] == [["tcp", "10.0.0.10", 80, 80]]


def damage(path: Path, how: str) -> None:
    text = path.read_text()
    data = json.loads(text)
    changed = {
        "empty": "",
        "cut": text[: len(text) // 2],
        "no object": "[1]",
        "deep": "[" * 100_000,
        "no key": json.dumps({key: data[key] for key in data if key != "vips"}),
        "another key": json.dumps(data | {"invented": 1}),
        "no number": json.dumps(data | {"pid": "1"}),
        "no address": json.dumps(data | {"vips": [["tcp", "x", 1, 1]]}),
        "no protocol": json.dumps(data | {"vips": [["sctp", "10.0.0.1", 1, 1]]}),
        "no change": json.dumps(data | {"changes": ["rm"]}),
        "of another": json.dumps(data | {"instance": 4}),
    }
    path.write_bytes(changed[how].encode() if how in changed else bytes(range(256)))


@pytest.mark.parametrize(
    "how",
    [
        *("empty", "cut", "no object", "deep", "no key", "another key", "no number", "no address"),
        *("no protocol", "no change", "of another", "binary"),
    ],
)
def test_a_damaged_record_is_none_and_known(tmp_path: Path, how: str) -> None:
    journal = Journal(tmp_path)
    other = replace(RECORD, instance=10)
    for record in (RECORD, other):
        journal.write(record)
    assert journal.damaged() == []
    path = journal.directory / "3.json"
    damage(path, how)
    assert journal.records() == [other]
    (found,) = journal.damaged()
    assert (found.path, found.instance, found.used) == (path, 3, False)
    assert len(found.reason) < 300
    listener = listen(journal.directory / "3.sock")
    assert journal.damaged()[0].used
    listener.close()


@pytest.mark.parametrize("inner", [False, True])
def test_a_directory_that_others_may_write_is_not_trusted(tmp_path: Path, inner: bool) -> None:
    journal = Journal(tmp_path)
    journal.write(RECORD)
    (journal.directory if inner else tmp_path).chmod(0o777)
    with pytest.raises(HostError, match=r"cannot trust .*others may write it"), journal.locked():
        pass
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(HostError, match=r"cannot use .*link"), Journal(link).locked():
        pass

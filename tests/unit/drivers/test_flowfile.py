"""Files of flows: what is in them, who may read them, when they are of no use."""

import json
import os
from pathlib import Path

import pytest

from featherlb.core.memory import LAYOUT, FlowMemory, anonymous
from featherlb.drivers import flowfile
from featherlb.sharing import Share

SHARE = Share(1, 2, 0xCAFE)


@pytest.fixture
def memory() -> FlowMemory:
    memory = anonymous(100)
    memory.records[128:256] = bytes(range(128))
    memory.hops[1] = 0xABCDEF
    memory.links[2] = 7
    memory.used[0] = 1
    return memory


@pytest.fixture
def file(tmp_path: Path, memory: FlowMemory) -> Path:
    target = flowfile.path(tmp_path / "net-1", 4, 1)
    flowfile.save(target, memory, SHARE)
    return target


def test_there_and_back(file: Path) -> None:
    assert flowfile.read_share(file) == SHARE
    memory = flowfile.load(file)
    assert memory is not None
    assert (memory.capacity, memory.used[0]) == (1, 1)
    assert bytes(memory.records[128:]) == bytes(range(128))
    assert (memory.hops[1], memory.links[2]) == (0xABCDEF, 7)


def test_only_the_owner_may_read_it(file: Path) -> None:
    assert file.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in file.parent.iterdir()] == ["4-1.flows"]


def test_who_finds_it(file: Path) -> None:
    assert flowfile.find(file.parent, 4) == flowfile.find(file.parent) == [file]
    assert flowfile.find(file.parent, 40) == []
    assert flowfile.find(file.parent / "nowhere") == []


@pytest.mark.parametrize(
    "change", [{"layout": LAYOUT + 1}, {"boot": "another"}, {"share": {}}, {"share": 1}]
)
def test_what_is_of_no_use_is_not_read(file: Path, change: dict[str, object]) -> None:
    line, rest = file.read_bytes().split(b"\n", 1)
    file.write_bytes(json.dumps(json.loads(line) | change).encode() + b"\n" + rest)
    assert flowfile.load(file) is None
    assert flowfile.read_share(file) is None


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"nonsense", b"[]\nx", b"\xff\n"])
def test_neither_is_anything_else(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert flowfile.load(file) is None
    assert flowfile.read_share(file) is None
    file.unlink()
    assert flowfile.load(file) is None


@pytest.mark.parametrize("missing", [1, 128, 1200])
def test_nor_a_part_of_it(file: Path, missing: int) -> None:
    file.write_bytes(file.read_bytes()[:-missing])
    assert flowfile.load(file) is None


def test_what_nobody_came_for_goes(file: Path, memory: FlowMemory) -> None:
    long_ago = file.stat().st_mtime - flowfile.FRESH
    os.utime(file, (long_ago, long_ago))
    assert flowfile.load(file) is None
    other = flowfile.path(file.parent.parent / "net-2", 0, 0)
    flowfile.save(other, memory, SHARE)
    assert not file.parent.exists()
    flowfile.save(flowfile.path(other.parent, 0, 1), memory, SHARE)
    assert len(flowfile.find(other.parent)) == 2


def test_what_is_in_use_beside_it_stays(file: Path, memory: FlowMemory) -> None:
    files = [file, flowfile.path(file.parent, 4, 2), flowfile.path(file.parent.parent / "a", 0, 0)]
    for one in files[1:]:
        flowfile.save(one, memory, SHARE)
    record = file.parent / "4.json"
    record.touch()
    for one in files:
        os.utime(one, (0, 0))
    flowfile.save(flowfile.path(file.parent.parent / "net-2", 0, 0), memory, SHARE)
    assert not any(one.exists() for one in files)
    assert record.exists()


def test_nothing_is_left_of_what_has_no_room(tmp_path: Path, memory: FlowMemory) -> None:
    target = flowfile.path(tmp_path / "file", 0, 0)
    target.parent.write_text("not a directory")
    with pytest.raises(OSError, match="exists"):
        flowfile.save(target, memory, SHARE)

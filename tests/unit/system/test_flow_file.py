"""Flow files: content, permissions, and files that are not usable."""

import json
import os
from pathlib import Path

import pytest

from featherlb.core.flows.memory import LAYOUT, FlowMemory, anonymous
from featherlb.model.shard import Shard
from featherlb.system import flow_file

SHARD = Shard(1, 2, 0xCAFE)


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
    target = flow_file.path(tmp_path / "net-1", 4, 1)
    flow_file.save(target, memory, SHARD)
    return target


def test_there_and_back(file: Path) -> None:
    assert flow_file.read_shard(file) == SHARD
    memory = flow_file.load(file)
    assert memory is not None
    assert (memory.capacity, memory.used[0]) == (1, 1)
    assert bytes(memory.records[128:]) == bytes(range(128))
    assert (memory.hops[1], memory.links[2]) == (0xABCDEF, 7)


def test_only_the_owner_may_read_it(file: Path) -> None:
    assert file.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in file.parent.iterdir()] == ["4-1.flows"]


def test_who_finds_it(file: Path) -> None:
    assert flow_file.find(file.parent, 4) == flow_file.find(file.parent) == [file]
    assert flow_file.find(file.parent, 40) == []
    assert flow_file.find(file.parent / "nowhere") == []


@pytest.mark.parametrize(
    "change",
    [
        {"layout": LAYOUT + 1},
        {"boot": "another"},
        {"shard": {}},
        {"shard": 1},
        {"saved": 1e9},
        {"saved": "today"},
        {"saved": None},
    ],
)
def test_unusable_files_are_not_read(file: Path, change: dict[str, object]) -> None:
    line, rest = file.read_bytes().split(b"\n", 1)
    file.write_bytes(json.dumps(json.loads(line) | change).encode() + b"\n" + rest)
    assert flow_file.load(file) is None
    assert flow_file.read_shard(file) is None


def test_another_version_is_recognised(file: Path) -> None:
    """Its flows would still be of use, so the log says that they are lost."""
    assert not flow_file.is_of_another_version(file)
    line, rest = file.read_bytes().split(b"\n", 1)
    header = json.loads(line)
    for change, other in (({"layout": LAYOUT - 1}, True), ({"layout": 0, "boot": "before"}, False)):
        file.write_bytes(json.dumps(header | change).encode() + b"\n" + rest)
        assert flow_file.fault(file) == ""
        assert flow_file.is_of_another_version(file) is other
        assert flow_file.load(file) is None


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"nonsense", b"[]\nx", b"\xff\n"])
def test_neither_is_anything_else(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert flow_file.fault(file) == "it has no flows"
    assert flow_file.load(file) is None
    assert flow_file.read_shard(file) is None
    assert not flow_file.is_of_another_version(file)
    file.unlink()
    assert flow_file.load(file) is None


@pytest.mark.parametrize("missing", [1, 128, 1200])
def test_nor_a_part_of_it(file: Path, missing: int) -> None:
    assert flow_file.fault(file) == ""
    file.write_bytes(file.read_bytes()[:-missing])
    assert flow_file.load(file) is None
    assert flow_file.fault(file) == "it is cut"


def test_a_link_is_not_followed(file: Path, memory: FlowMemory) -> None:
    target = file.rename(file.with_name("elsewhere"))
    content = target.read_bytes()
    file.symlink_to(target)
    assert flow_file.load(file) is None
    assert flow_file.read_shard(file) is None
    assert flow_file.fault(file) == "it is not a regular file"
    file.with_suffix(".new").symlink_to(target)
    flow_file.save(file, memory, Shard(0, 1, 0))
    assert target.read_bytes() == content
    assert flow_file.read_shard(file) == Shard(0, 1, 0)


def make_old(file: Path) -> None:
    """As if it had been saved an hour ago."""
    line, rest = file.read_bytes().split(b"\n", 1)
    header = json.loads(line)
    header["saved"] -= flow_file.FRESH
    file.write_bytes(json.dumps(header).encode() + b"\n" + rest)


def test_a_clock_that_is_set_changes_nothing(file: Path, memory: FlowMemory) -> None:
    for moment in (0, 1 << 32):
        os.utime(file, (moment, moment))
        assert flow_file.read_shard(file) == SHARD
        assert flow_file.load(file) is not None
        flow_file.save(flow_file.path(file.parent.parent / "net-2", 0, 0), memory, SHARD)
        assert file.exists()


def test_expired_files_are_deleted(file: Path, memory: FlowMemory) -> None:
    make_old(file)
    assert flow_file.load(file) is None
    assert flow_file.read_shard(file) is None
    other = flow_file.path(file.parent.parent / "net-2", 0, 0)
    flow_file.save(other, memory, SHARD)
    assert not file.parent.exists()
    flow_file.save(flow_file.path(other.parent, 0, 1), memory, SHARD)
    assert len(flow_file.find(other.parent)) == 2


def test_files_in_use_beside_them_stay(file: Path, memory: FlowMemory) -> None:
    files = [
        file,
        flow_file.path(file.parent, 4, 2),
        flow_file.path(file.parent.parent / "a", 0, 0),
    ]
    for one in files[1:]:
        flow_file.save(one, memory, SHARD)
    record = file.parent / "4.json"
    record.touch()
    for one in files[:2]:
        make_old(one)
    # This one doesn't say when it was saved.
    files[2].write_bytes(b"")
    os.utime(files[2], (0, 0))
    flow_file.save(flow_file.path(file.parent.parent / "net-2", 0, 0), memory, SHARD)
    assert not any(one.exists() for one in files)
    assert record.exists()


def test_no_partial_file_remains_without_room(tmp_path: Path, memory: FlowMemory) -> None:
    target = flow_file.path(tmp_path / "file", 0, 0)
    target.parent.write_text("not a directory")
    with pytest.raises(OSError, match="exists"):
        flow_file.save(target, memory, SHARD)

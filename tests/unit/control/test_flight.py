"""Flight recordings: saved, bounded, private, and read again."""

import asyncio
import stat
from pathlib import Path

import pytest

from featherlb.control.events import Events
from featherlb.control.flight import FlightRecordings, records_of
from featherlb.core.flows.flight_recorder import FlightRecorder, Kind, bytes_for
from featherlb.model.errors import HostError
from featherlb.system import recording_file
from featherlb.system.recording_file import Recording


class Memories:
    """Workers that have flight recorders."""

    def __init__(self, *starts: float) -> None:
        """When each has started."""
        self.memories: dict[int, bytes] = {}
        for number, start in enumerate(starts):
            memory = bytearray(bytes_for(4))
            FlightRecorder(memoryview(memory)).start(start)
            self.memories[number] = bytes(memory)

    def recordings(self, worker: int | None = None) -> dict[int, bytes]:
        return {one: each for one, each in self.memories.items() if worker in (None, one)}


def recordings(workers: Memories, directory: Path) -> FlightRecordings:
    made = FlightRecordings(workers, Events())  # type: ignore[arg-type]
    made.directory, made.instance = directory / "new", 7
    return made


def test_what_is_saved_is_read_again_in_the_order_of_time(tmp_path: Path) -> None:
    made = recordings(Memories(20.0, 10.0), tmp_path)
    path = asyncio.run(made.save("a test"))
    assert made.saved == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = recording_file.load(path)
    assert loaded.reason == "a test"
    records = records_of(loaded)
    assert [(worker, one.kind) for worker, one in records] == [
        (1, Kind.STARTED),
        (0, Kind.STARTED),
    ]
    assert records[1][1].time - loaded.epoch == 20.0
    assert [worker for worker, _ in asyncio.run(made.read())] == [1, 0]
    # Of a worker that has died, its part only.
    path = asyncio.run(made.save("worker 1 died", 1))
    assert recording_file.load(path).memories.keys() == {1}


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    made = recordings(Memories(1.0), tmp_path)
    paths = [asyncio.run(made.save("a test")) for _ in range(recording_file.KEPT + 2)]
    assert made.saved == paths[2:]


def test_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="nothing is recorded"):
        asyncio.run(recordings(Memories(), tmp_path).save("a test"))


@pytest.mark.parametrize(
    "content", [b"", b"{}\n", b"[]\n", b"nonsense", b'{"workers": {"0": 5}}\n']
)
def test_other_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(HostError, match="No such file"):
        recording_file.load(path)
    path.write_bytes(content)
    with pytest.raises(HostError, match="is no recording"):
        recording_file.load(path)


def test_a_recording_of_another_version() -> None:
    with pytest.raises(HostError, match="of worker 0 can't be read: it is of another version"):
        records_of(Recording("", 0.0, {0: bytes(640)}))

"""What a soak calls a fault."""

from typing import cast

from featherlb.model.errors import HostError
from scripts.trials import disturbances, soak
from scripts.trials.holdings import MEBIBYTE, Usage, differences
from scripts.trials.soak import Incident, Record, Sample, Watch, grown
from scripts.trials.stage import Clients, Event, Seen, Stage

BEGIN = 100.0


def sampled(memory: list[int]) -> Record:
    """A record of a calm time in which workers had so many MiB."""
    record = Record(BEGIN, calm=BEGIN)
    for number, size in enumerate(memory):
        held = Usage(20 * MEBIBYTE, size * MEBIBYTE, 0, 0, 0)
        record.samples.append(Sample(BEGIN + number, Seen(), held))
    return record


def test_memory_that_grows_is_a_fault() -> None:
    flat, growing = sampled([10, 30, 31, 30, 31, 30]), sampled([10, 30, 35, 40, 45, 50])
    grown(flat)
    grown(growing)
    assert flat.faults == []
    assert growing.faults == ["memory of workers: 37.5 MiB became 47.5 MiB"]


class Silent:
    """A stage whose instance does not answer."""

    @property
    def instance(self) -> None:
        raise HostError("no answer")


class Noticing:
    """Clients that have noticed something."""

    def __init__(self, *events: Event) -> None:
        self._events = list(events)

    def take(self) -> Seen:
        return Seen(events=self._events, gap={"raw-dnat-tcp4": 0.2})


def noticed(
    kind: str, *, backend: int | None = None, at: float = 11.0, why: str = "reset"
) -> Record:
    """10 s after the begin the servers of backend 0 were killed, for 3 s; then this was noticed."""
    record = Record(BEGIN)
    killed = next(one for one in disturbances.ALL if one.name == "servers killed")
    record.incidents.append(Incident(killed, BEGIN + 10, BEGIN + 13))
    event = Event(BEGIN + at, kind, "raw-dnat-tcp4", backend, why)
    watch = Watch(cast(Stage, Silent()), cast(Clients, Noticing(event)), record)
    watch.sample()
    return record


def test_errors_that_a_disturbance_explains_are_its_own() -> None:
    record = noticed("broken", backend=0)
    assert record.faults == []
    assert len(record.incidents[0].events) == 1


def test_other_errors_are_faults() -> None:
    after = "11.0 s, after 'servers killed': raw-dnat-tcp4: "
    assert noticed("broken", backend=1).faults == [f"{after}broken: reset"]
    refused = "Connect call failed"
    assert noticed("failed", why=refused).faults == [f"{after}failed: {refused}"]
    assert noticed("corrupt", backend=0).faults == [f"{after}corrupt: reset"]
    (fault,) = noticed("broken", backend=0, at=5.0).faults
    assert fault == "5.0 s, without a disturbance: raw-dnat-tcp4: broken: reset"


def test_what_is_left_is_named() -> None:
    before = {"rules": ["-A one"], "state files": []}
    after = {"rules": ["-A one", "-A two"], "state files": ["0.json"]}
    found = ["rules: + -A two", "state files: + 0.json"]
    assert differences(before, after) == found
    assert differences(after, before) == [one.replace("+", "-") for one in found]


def test_a_killed_worker_is_no_error() -> None:
    said = "ERROR worker 1 ended with status -9: starting its successor, which restores its flows"
    assert soak.KILLED.search(said)
    assert not soak.KILLED.search(said.replace("-9", "1"))
    assert soak.KILLED.search("ERROR cannot apply the new state of backends: worker 0 died")

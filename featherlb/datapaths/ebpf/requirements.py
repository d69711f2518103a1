"""Why a host cannot run the datapath ebpf: no queues, or no programs in its kernel."""

from collections.abc import Iterator, Sequence

from featherlb.datapaths.rules.extensions import queue_obstacles
from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.model import Service
from featherlb.system import programs


def obstacles(services: Sequence[Service]) -> Iterator[str]:
    yield from queue_obstacles(services)
    if (reason := programs.unavailable()) is not None:
        yield reason


def limits(services: Sequence[Service], options: Options, facts: Facts) -> Iterator[str]:
    return iter(())

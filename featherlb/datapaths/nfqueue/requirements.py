"""Why a host cannot run the datapath nfqueue."""

from collections.abc import Iterator, Sequence

from featherlb.datapaths.rules.extensions import queue_obstacles
from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.model import Service


def obstacles(services: Sequence[Service]) -> Iterator[str]:
    return queue_obstacles(services)


def limits(services: Sequence[Service], options: Options, facts: Facts) -> Iterator[str]:
    return iter(())

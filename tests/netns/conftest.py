"""What the kernel tests share: a lab, and the installed `featherlb` command running in it."""

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from netns import Lab
from netns.servers import HttpServer
from tests.netns.command import Featherlb

DRIVERS = {
    "netlink": ("--driver", "netlink"),
    "netfilterqueue": ("--driver", "netfilterqueue"),
    "raw": ("--datapath", "raw"),
    "offload": ("--datapath", "offload"),
}
"""What the tests of the data path run with: both queue drivers, and the other datapaths."""
SEEING = ("netlink", "netfilterqueue", "raw")
"""For what can only be done where every packet passes featherlb."""
QUEUEING = ("netlink", "netfilterqueue")
"""Those of the datapath nfqueue."""

ONE_DRIVER = pytest.mark.parametrize("driver", ["netlink"], indirect=True)
"""For what the queue driver has no part in: `pytestmark = ONE_DRIVER`."""

WATCHED_OR_ASKED = pytest.mark.parametrize("driver", ["netlink", "offload"], indirect=True)
"""For what follows from the states of connections, which featherlb sees for itself or asks for."""
QUEUED = pytest.mark.parametrize("driver", QUEUEING, indirect=True)
"""For what only the datapath nfqueue can do."""
SERVED = pytest.mark.usefixtures("web_servers")
"""For modules whose tests ask the backends over HTTP: `pytestmark = SERVED`."""


def all_pairs(
    drivers: Iterable[str] = tuple(DRIVERS), **values: Sequence[object]
) -> pytest.MarkDecorator:
    """Run over so many combinations that any two values, of the drivers' or of these parameters',
    meet in one: the next to nothing that only three at once could break is left out."""

    def pairs(case: tuple[object, ...]) -> set[tuple[object, ...]]:
        return set(itertools.combinations(enumerate(case), 2))

    every = list(itertools.product(drivers, *values.values()))
    missing = set().union(*map(pairs, every))
    chosen = []
    while missing:
        chosen.append(max(every, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(chosen[-1])
    return _over(chosen, values)


def in_turn(
    drivers: Iterable[str] = tuple(DRIVERS), **values: Sequence[object]
) -> pytest.MarkDecorator:
    """Run once per driver, with one combination after the other of these parameters' values: for
    what the drivers' own code has little part in. Every combination must have had its turn."""
    turns = list(itertools.product(*values.values()))
    cases = [(driver, *turn) for driver, turn in zip(drivers, itertools.cycle(turns), strict=False)]
    assert len(cases) >= len(turns)
    return _over(cases, values)


def _over(cases: Sequence[object], values: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("driver", *values),
        cases,
        indirect=["driver"],
        ids=lambda value: getattr(value, "name", None),
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.kernel)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A two-armed lab with two clients and three backends."""
    with Lab(clients=2, backends=3) as lab:
        yield lab


@pytest.fixture
def web_servers(lab: Lab) -> Iterator[None]:
    """HTTP servers on port 8080 of the lab's backends, for as long as the test runs."""
    with ExitStack() as servers:
        for node in lab.backends:
            servers.enter_context(HttpServer(node))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for running in Featherlb.running:
            report.sections.append((running.title, running.log))
    return report


@pytest.fixture(params=DRIVERS, scope="session")
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class Up(Protocol):
    def __call__(self, lab: Lab, *arguments: str) -> AbstractContextManager[Featherlb]: ...


@pytest.fixture(scope="session")
def featherlb(driver: str, tmp_path_factory: pytest.TempPathFactory) -> Up:
    """`with featherlb(lab, "--vip", ...) as running:` runs `featherlb up` on the lab's balancer.

    It has printed `ready` when the block begins. When the block ends it is stopped by SIGTERM,
    must exit with 0. Its log is shown where a test fails.
    """
    directory = tmp_path_factory.mktemp("featherlb")

    def up(lab: Lab, *arguments: str) -> AbstractContextManager[Featherlb]:
        return Featherlb(lab.balancer, ("up", *DRIVERS[driver], *arguments), directory)

    return up

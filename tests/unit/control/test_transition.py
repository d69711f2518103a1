"""Transitions as lists of steps: their order, and what a failure at each of them leaves."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest

from featherlb.config.file import parse
from featherlb.config.resolve import resolve
from featherlb.control.transition import (
    Action,
    ApplyServices,
    EndFlows,
    State,
    Step,
    UpdateHost,
    UpdateTopology,
    plan,
    run,
)
from featherlb.model import Datapath, Service
from featherlb.model.errors import HostError

A, B, C = "10.0.1.1:80", "10.0.1.2:80", "10.0.1.3:80"
WEB = f"- {{name: web, vip: 10.0.0.10:80, backends: ['{A}', '{B}']}}"
MAIL = f"- {{name: mail, vip: 10.0.0.10:25, backends: ['{A}']}}"


def state(*services: str, departing: Sequence[Service] = ()) -> State:
    config = parse("services:\n" + "\n".join(services), "f")
    return State(config, services=resolve(config, lambda name: []), departing=tuple(departing))


def text(action: Action) -> str:
    """An action in one line."""

    def pools(services: Sequence[Service]) -> str:
        return " ".join(
            f"{service.name}@{service.vips[0]}"
            f"/{service.datapath}[{','.join(str(one)[-4] for one in service.backends)}]"
            for service in services
        )

    match action:
        case UpdateHost(services, departing, release):
            more = f" {'release' if release else 'and'} {pools(departing)}" if departing else ""
            return f"host {pools(services)}{more}"
        case UpdateTopology(services):
            return f"topology {pools(services)}"
        case ApplyServices(state, rules_applied):
            return (
                f"workers {pools(state.services)}{'' if rules_applied else ', rules not applied'}"
            )
        case EndFlows(service, backend, reset, spared):
            but = f" but to {' '.join(str(vip) for _, vip in spared)}" if spared else ""
            return f"end {service} {backend or 'all'}{' reset' if reset else ''}{but}"


def steps(before: State, wanted: State, *, repair: bool = False) -> list[str]:
    return [text(step.action) for step in plan(before, wanted, repair=repair)]


def test_a_new_backend_is_on_the_host_before_a_worker_sends_to_it() -> None:
    more = WEB.replace(f"'{B}'", f"'{B}', '{C}'")
    assert steps(state(WEB), state(more)) == [
        "host web@10.0.0.10:80/nfqueue[1,2] web@10.0.0.10:80/nfqueue[3]",
        "topology web@10.0.0.10:80/nfqueue[1,2,3]",
        "workers web@10.0.0.10:80/nfqueue[1,2,3]",
        "host web@10.0.0.10:80/nfqueue[1,2,3]",
    ]


@pytest.mark.parametrize(
    ("policy", "ends"),
    [("keep", []), ("drop", [f"end web {B}"]), ("reset", [f"end web {B} reset"])],
)
def test_a_removed_backend_keeps_its_part_of_the_host_while_it_has_flows(
    policy: str, ends: list[str]
) -> None:
    before = WEB.replace("vip:", f"on_backend_down: {policy}, vip:")
    fewer = before.replace(f", '{B}'", "")
    assert steps(state(before), state(fewer)) == [
        "host web@10.0.0.10:80/nfqueue[1,2]",
        "topology web@10.0.0.10:80/nfqueue[1] web@10.0.0.10:80/nfqueue[2]",
        "workers web@10.0.0.10:80/nfqueue[1]",
        *ends,
        "host web@10.0.0.10:80/nfqueue[1] release web@10.0.0.10:80/nfqueue[2]",
    ]


def test_the_kernel_forgets_the_datagrams_of_a_removed_backend() -> None:
    """Where workers see them, they move one by one."""
    queued = WEB.replace("vip:", "protocol: udp, vip:")
    offloaded = queued.replace("vip:", "datapath: offload, vip:")
    ends = [
        [
            step
            for step in steps(state(one), state(one.replace(f", '{B}'", "")))
            if step.startswith("end")
        ]
        for one in (queued, offloaded)
    ]
    assert ends == [[], [f"end web {B}"]]


def test_backends_that_departed_earlier_stay_along() -> None:
    (old,) = state(WEB.replace(f"'{A}', '{B}'", f"'{C}'")).services
    before = state(WEB, departing=[old])
    more = state(WEB, MAIL)
    assert steps(before, more) == [
        "host web@10.0.0.10:80/nfqueue[1,2] and web@10.0.0.10:80/nfqueue[3]",
        "topology web@10.0.0.10:80/nfqueue[1,2] mail@10.0.0.10:25/nfqueue[1]"
        " web@10.0.0.10:80/nfqueue[3]",
        "workers web@10.0.0.10:80/nfqueue[1,2] mail@10.0.0.10:25/nfqueue[1]",
        "host web@10.0.0.10:80/nfqueue[1,2] mail@10.0.0.10:25/nfqueue[1]"
        " release web@10.0.0.10:80/nfqueue[3]",
    ]


def test_the_packets_of_a_new_service_are_queued_only_when_the_workers_know_it() -> None:
    assert steps(state(WEB), state(WEB, MAIL)) == [
        "host web@10.0.0.10:80/nfqueue[1,2]",
        "topology web@10.0.0.10:80/nfqueue[1,2] mail@10.0.0.10:25/nfqueue[1]",
        "workers web@10.0.0.10:80/nfqueue[1,2] mail@10.0.0.10:25/nfqueue[1]",
        "host web@10.0.0.10:80/nfqueue[1,2] mail@10.0.0.10:25/nfqueue[1]",
    ]


def test_the_flows_of_a_removed_service_are_reset() -> None:
    assert steps(state(WEB, MAIL), state(WEB)) == [
        "host web@10.0.0.10:80/nfqueue[1,2] mail@10.0.0.10:25/nfqueue[1]",
        "topology web@10.0.0.10:80/nfqueue[1,2]",
        "workers web@10.0.0.10:80/nfqueue[1,2]",
        "end mail all reset",
        "host web@10.0.0.10:80/nfqueue[1,2]",
    ]


def test_a_vip_moves_once_the_workers_know_its_new_place() -> None:
    assert steps(state(WEB), state(WEB.replace("10.0.0.10", "10.0.0.11"))) == [
        "host web@10.0.0.10:80/nfqueue[1,2]",
        "topology web@10.0.0.11:80/nfqueue[1,2]",
        "workers web@10.0.0.11:80/nfqueue[1,2]",
        "end web all reset but to 10.0.0.11:80",
        "host web@10.0.0.11:80/nfqueue[1,2]",
    ]


def test_flows_to_a_vip_that_leaves_end_unless_another_service_has_it() -> None:
    def endings(wanted: State) -> list[str]:
        return [step for step in steps(state(WEB), wanted) if step.startswith("end ")]

    other = WEB.replace(":80,", ":81,", 1)
    assert endings(state(other)) == ["end web all reset but to 10.0.0.10:81"]
    assert endings(state(other, MAIL.replace(":25", ":80"))) == []
    assert endings(state(WEB.replace(":80,", ":80-81,", 1).replace(":80'", "'"))) == [
        "end web all reset but to 10.0.0.10:80-81"
    ]
    assert endings(state(WEB.replace("vip:", "protocol: udp, vip:"))) == [
        "end web all reset but to 10.0.0.10:80"
    ]
    # The kernel translates whatever gets to this host.
    offload = state(other.replace("vip:", "datapath: offload, vip:"))
    assert endings(offload) == ["end web all reset but to 10.0.0.10:*"]


def test_another_nat_mode_has_all_backends_arrive_and_depart() -> None:
    assert steps(state(WEB), state(WEB.replace("vip:", "nat: full, vip:"))) == [
        "host web@10.0.0.10:80/nfqueue[1,2] web@10.0.0.10:80/nfqueue[1,2]",
        "topology web@10.0.0.10:80/nfqueue[1,2] web@10.0.0.10:80/nfqueue[1,2]",
        "workers web@10.0.0.10:80/nfqueue[1,2]",
        "host web@10.0.0.10:80/nfqueue[1,2] release web@10.0.0.10:80/nfqueue[1,2]",
    ]


@pytest.mark.parametrize(
    ("old", "new"), [("nfqueue", "offload"), ("offload", "raw"), ("raw", "offload")]
)
def test_the_rules_of_both_datapaths_stand_while_flows_move_to_the_kernel_or_back(
    old: str, new: str
) -> None:
    def having(datapath: str) -> State:
        return state(WEB.replace("vip:", f"datapath: {datapath}, vip:"))

    assert steps(having(old), having(new)) == [
        f"host web@10.0.0.10:80/{old}[1,2] web@10.0.0.10:80/{new}[1,2]",
        f"topology web@10.0.0.10:80/{new}[1,2]",
        f"workers web@10.0.0.10:80/{new}[1,2], rules not applied",
        f"host web@10.0.0.10:80/{new}[1,2]",
        f"workers web@10.0.0.10:80/{new}[1,2]",
    ]


def test_between_datapaths_of_the_workers_there_is_one_phase() -> None:
    wanted = state(WEB.replace("vip:", "datapath: raw, vip:"))
    assert steps(state(WEB), wanted) == [
        "host web@10.0.0.10:80/nfqueue[1,2]",
        "topology web@10.0.0.10:80/raw[1,2]",
        "workers web@10.0.0.10:80/raw[1,2]",
        "host web@10.0.0.10:80/raw[1,2]",
    ]


def test_the_host_is_left_alone_where_only_weights_change() -> None:
    lighter = WEB.replace(f"'{B}'", f"{{address: '{B}', weight: 0}}")
    expected = ["workers web@10.0.0.10:80/nfqueue[1,2]"]
    assert steps(state(WEB), state(lighter)) == expected
    assert steps(state(WEB), state(WEB.replace("vip:", "scheduler: maglev, vip:"))) == expected
    host = "host web@10.0.0.10:80/nfqueue[1,2]"
    topology = "topology web@10.0.0.10:80/nfqueue[1,2]"
    repaired = [host, topology, *expected, host]
    assert steps(state(WEB), state(lighter), repair=True) == repaired


def test_the_host_hears_of_other_source_addresses() -> None:
    def having(source: str) -> State:
        found = state(WEB.replace("vip:", "nat: full, vip:"))
        (service,) = found.services
        backends = tuple(replace(one, sources=(ip_address(source),)) for one in service.backends)
        return replace(found, services=(replace(service, backends=backends),))

    assert len(steps(having("10.0.1.254"), having("10.0.1.254"))) == 1
    assert len(steps(having("10.0.1.254"), having("10.0.1.253"))) == 4


class Plant:
    """What is in force: the host, the topology and the workers, of which one refuses."""

    def __init__(self, before: State, refuses: Callable[[int, Action], bool]) -> None:
        self.host: Action = UpdateHost(before.services, before.departing)
        self.topology: Action = UpdateTopology((*before.services, *before.departing))
        self.workers: Action = ApplyServices(before)
        self.done: list[str] = []
        self._refuses = refuses

    def in_force(self) -> tuple[Action, Action, Action]:
        return self.host, self.topology, self.workers

    async def execute(self, action: Action) -> None:
        refused = self._refuses(len(self.done), action)
        self.done.append(text(action))
        if refused and isinstance(action, UpdateHost):
            # A host that refuses has the plan of before in force.
            raise HostError("no room for rules")
        match action:
            case UpdateHost():
                self.host = action
            case UpdateTopology():
                self.topology = action
            case ApplyServices():
                self.workers = action
        if refused:
            raise HostError("worker 0 died")


CHANGES = {
    "backend": (WEB, WEB.replace(f"'{B}'", f"'{C}'")),
    "service": (WEB, MAIL),
    "vip": (WEB, WEB.replace("10.0.0.10", "10.0.0.11")),
    "offload": (WEB, WEB.replace("vip:", "datapath: offload, vip:")),
    "back": (WEB.replace("vip:", "datapath: offload, vip:"), WEB),
    "weights": (WEB, WEB.replace(f"'{B}'", f"{{address: '{B}', weight: 0}}")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_failure_at_any_step_leaves_what_was_in_force(change: str) -> None:
    old, new = (state(each) for each in CHANGES[change])
    planned = plan(old, new)
    for failing in range(len(planned)):
        plant = Plant(old, lambda number, _, failing=failing: number == failing)  # type: ignore[misc]
        before = plant.in_force()
        with pytest.raises(HostError):
            asyncio.run(run(planned, plant.execute))
        assert plant.in_force() == before, failing
        assert plant.done[: failing + 1] == [text(step.action) for step in planned[: failing + 1]]


def test_a_rollback_goes_back_the_way_that_it_came() -> None:
    old, new = (state(each) for each in CHANGES["offload"])
    planned = plan(old, new)
    plant = Plant(old, lambda number, _: number == len(planned) - 1)
    with pytest.raises(HostError):
        asyncio.run(run(planned, plant.execute))
    assert plant.done[len(planned) :] == [
        # Both datapaths' rules stand again before the workers go back.
        "host web@10.0.0.10:80/nfqueue[1,2] web@10.0.0.10:80/offload[1,2]",
        "workers web@10.0.0.10:80/nfqueue[1,2], rules not applied",
        "topology web@10.0.0.10:80/nfqueue[1,2]",
        "host web@10.0.0.10:80/nfqueue[1,2]",
        "workers web@10.0.0.10:80/nfqueue[1,2]",
    ]


@pytest.mark.parametrize("error", [HostError("refused"), OSError(24, "no descriptors"), KeyError()])
def test_any_exception_rolls_back_and_none_of_the_rollback_hides_it(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []

    async def execute(action: Action) -> None:
        done.append(text(action))
        if isinstance(action, ApplyServices):
            raise error
        if len(done) > 3:
            raise HostError("still refused")

    def services(datapath: Datapath) -> tuple[Service, ...]:
        return tuple(replace(one, datapath=datapath) for one in state(WEB).services)

    before, between = services(Datapath.NFQUEUE), services(Datapath.RAW)
    chain = [
        Step(UpdateTopology(between), (UpdateTopology(before),)),
        Step(UpdateHost(between, ()), (UpdateHost(before, ()),)),
        Step(ApplyServices(State())),
        Step(UpdateHost(services(Datapath.OFFLOAD), ())),
    ]
    with pytest.raises(type(error)) as caught:
        asyncio.run(run(chain, execute))
    assert caught.value is error
    assert done[3:] == [
        "host web@10.0.0.10:80/nfqueue[1,2]",
        "topology web@10.0.0.10:80/nfqueue[1,2]",
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "rollback is incomplete: still refused"
    ] * 2

"""Which instances may have a backend in common."""

from itertools import product

import pytest

from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.host.claims import conflict
from featherlb.host.plan import build
from featherlb.model import Backend, Datapath, Endpoint, NatMode, Protocol, Service, Vip
from featherlb.system.journal import Record

KINDS = [f"{datapath}/{nat}" for datapath, nat in product(Datapath, NatMode)]
QUEUED = ("nfqueue/dnat", "nfqueue/full", "ebpf/dnat", "ebpf/full")
FITTING = {
    "nfqueue/dnat": {*QUEUED, "raw/full"},
    "nfqueue/full": set(KINDS),
    "raw/dnat": {"raw/dnat", "raw/full", "nfqueue/full", "ebpf/full"},
    "raw/full": set(KINDS) - {"offload/dnat", "offload/full"},
    "offload/dnat": {"offload/dnat", "offload/full", "nfqueue/full", "ebpf/full"},
    "offload/full": {"offload/dnat", "offload/full", "nfqueue/full", "ebpf/full"},
    "ebpf/dnat": {*QUEUED, "raw/full"},
    "ebpf/full": set(KINDS),
}


def service(kind: str) -> Service:
    datapath, nat = kind.split("/")
    endpoint = Endpoint.parse("10.0.0.10:80")
    return Service(
        "web",
        Protocol.TCP,
        (Vip(endpoint.address, 80, 80),),
        (Backend(Endpoint.parse("10.0.1.2:80")),),
        nat=NatMode(nat),
        datapath=Datapath(datapath),
    )


@pytest.mark.parametrize(("ours", "theirs"), list(product(KINDS, KINDS)))
def test_what_may_run_beside_what(ours: str, theirs: str) -> None:
    plan = build([service(theirs)], Options(), Facts())
    record = Record(
        *(1, 1, 4242, 0, (), (), 0, (), ()),
        claims={handling: tuple(backends) for handling, backends in plan.claims.items()},
    )
    sentence = conflict([service(ours)], record)
    assert (sentence is None) == (theirs in FITTING[ours])
    if sentence is not None:
        # One that is always named: whose replies they are.
        name = "offload" if "offload" in ours + theirs else "raw"
        assert "pid 4242 also has backend 10.0.1.2,tcp:80" in sentence
        assert f"uses the datapath {name} for it" in sentence

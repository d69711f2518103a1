"""Resources in the journal: what is written is what is read."""

import json

import pytest

from featherlb.host.resources import (
    Assignment,
    Chains,
    Resource,
    Rules,
    Sets,
    Setting,
    decode,
    encode,
    newest_first,
)


@pytest.mark.parametrize(
    "resource",
    [
        Setting("net/ipv4/ip_forward", "1", (("net/ipv4/ip_forward", "0"), ("a/b", "c"))),
        Assignment("2001:db8::10", "eth0.5"),
        Sets(3),
        Rules(3, 6),
        Chains(4, "raw", ("OUTPUT", "PREROUTING"), True),
    ],
)
def test_a_resource_survives_the_journal(resource: Resource) -> None:
    assert decode(json.loads(json.dumps(encode(resource)))) == resource


def test_equal_resources_are_the_same_thing_on_the_host() -> None:
    first = Setting("net/ipv4/ip_forward", "1", (("net/ipv4/ip_forward", "0"),))
    second = Setting("net/ipv4/ip_forward", "1", (("net/ipv4/ip_forward", "1"),))
    assert first.name == second.name == "setting net.ipv4.ip_forward"
    assert Rules(1, 4).name != Rules(1, 6).name != Rules(2, 6).name
    assert Assignment("10.0.0.1", "a").name != Assignment("10.0.0.1", "b").name


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": "Table"},
        {"kind": "Sets"},
        {"kind": "Sets", "instance": "0"},
        {"kind": "Sets", "instance": 0, "invented": 1},
        {"kind": "Rules", "instance": 0, "family": 5},
        {"kind": "Assignment", "address": "10.0.0", "interface": "eth0"},
        {"kind": "Setting", "key": "net/ipv4/ip_forward", "value": "1", "restore": [["a"]]},
        {"kind": "Setting", "key": "net/ipv4/ip_forward", "value": "1", "restore": [[1, 2]]},
        {"kind": "Chains", "family": 4, "table": "raw", "chains": [1], "table_too": True},
    ],
)
def test_what_is_no_resource(data: dict[str, object]) -> None:
    assert decode(data) is None


def test_rules_go_before_the_sets_that_they_ask_for() -> None:
    """Also if the instance got its first set while it ran."""
    chains, rules, sets = Chains(4, "raw", ("OUTPUT",), False), Rules(1, 4), Sets(1)
    address = Assignment("10.0.0.10", "lo")
    assert newest_first([chains, rules, address, sets]) == [address, rules, sets, chains]
    assert newest_first([sets, chains, rules]) == [rules, sets, chains]

"""Changes in the journal: what is written is what is read."""

import json

import pytest

from featherlb.host.resources import Assignment, Change, Rules, Sets, Setting, decode, encode


@pytest.mark.parametrize(
    "change",
    [
        Setting("net/ipv4/ip_forward", "1", (("net/ipv4/ip_forward", "0"), ("a/b", "c"))),
        Assignment("2001:db8::10", "eth0.5"),
        Sets(3),
        Rules(3, 6),
    ],
)
def test_a_change_survives_the_journal(change: Change) -> None:
    assert decode(json.loads(json.dumps(encode(change)))) == change


def test_equal_resources_are_the_same_thing_on_the_host() -> None:
    first = Setting("net/ipv4/ip_forward", "1", (("net/ipv4/ip_forward", "0"),))
    second = Setting("net/ipv4/ip_forward", "1", (("net/ipv4/ip_forward", "1"),))
    assert first.resource == second.resource == "setting net.ipv4.ip_forward"
    assert Rules(1, 4).resource != Rules(1, 6).resource != Rules(2, 6).resource
    assert Assignment("10.0.0.1", "a").resource != Assignment("10.0.0.1", "b").resource

"""Whose SYNs the kernel may drop."""

from dataclasses import replace
from ipaddress import ip_address

from featherlb.control.turnstile import LEAST, numbered, passing
from featherlb.model import Admission, MaxFlows, MaxNew, Protocol
from tests.world import ONE, service, vip


def test_more_get_to_the_worker_than_it_lets_in() -> None:
    web = service(ONE)
    slow, fast = MaxNew(0.1, 1, 32), MaxNew(1000, 1, 32)
    flows = MaxFlows(3, 32)
    conditions = {(slow,): LEAST, (slow, fast): 4000, (): LEAST}
    for max_new, rate in conditions.items():
        admission = Admission(max_new=max_new, max_flows=(flows,))
        assert passing(replace(web, admission=admission)) == rate


def test_vips_have_the_numbers_of_their_services() -> None:
    named = replace(service(ONE, vips="192.0.2.10:80"), name="named")
    every = replace(service(ONE, vips="0.0.0.0:80"), name="every")
    datagrams = replace(service(ONE, vips="192.0.2.10:53", protocol=Protocol.UDP), name="dns")
    own = {ip_address("192.0.2.10"), ip_address("192.0.2.11"), ip_address("2001:db8::1")}
    assert numbered([named, every, datagrams], own) == {
        vip("192.0.2.10:80"): 1,
        vip("192.0.2.11:80"): 2,
    }

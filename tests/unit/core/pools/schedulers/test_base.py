from ipaddress import ip_address

from featherlb.core.pools.schedulers import NewFlow
from tests.unit.core.pools.schedulers.pools import make_flow, make_pool


def test_a_flow_shows_its_addresses() -> None:
    flow = make_flow(1)
    assert flow.client_address == ip_address("10.1.0.1")
    assert flow.vip_address == ip_address("10.0.0.10")
    assert repr(flow) == "<NewFlow 10.1.0.1:40000 -> 10.0.0.10:80 protocol=6>"


def test_small_ipv6_addresses_stay_ipv6() -> None:
    flow = NewFlow(17, 6, 1, 5000, int(ip_address("2001:db8::a")), 53)
    assert flow.client_address == ip_address("::1")
    assert flow.vip_address == ip_address("2001:db8::a")


def test_members_are_compared_by_identity() -> None:
    one, same = make_pool(2)[0], make_pool(2)[0]
    assert one.endpoint == same.endpoint
    assert one != same
    assert (one.weight, one.active, one.index) == (2, 0, 0)

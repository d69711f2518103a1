"""core/path/services.py: which service a packet is for."""

from featherlb.model.reason import Reason
from tests.builders import tcp
from tests.world import CLIENT, ONE, VIP, World, service

CLIENT6, VIP6 = "[2001:db8:1::7]:40000", "[2001:db8::10]:80"
ELSEWHERE = "203.0.113.5:80"


def test_a_wildcard_leaves_an_exact_vip_its_packets() -> None:
    exact, everywhere = service(ONE), service("10.1.0.9:9", name="all", vips="0.0.0.0:80")
    for order in ([exact, everywhere], [everywhere, exact]):
        world = World(*order)
        assert world.handle(tcp(CLIENT, VIP, "S")).destination == ONE
        assert world.handle(tcp(CLIENT, ELSEWHERE, "S")).destination == "10.1.0.9:9"
        assert world.handle(tcp(CLIENT6, VIP6, "S")).reason is Reason.NOT_OURS


def test_one_vip_of_a_service_with_several() -> None:
    world = World(service(ONE, vips=[VIP, "192.0.2.10:8000-8001", "[2001:db8::10]:80"]))
    for one in (VIP, "192.0.2.10:8000", "192.0.2.10:8001"):
        connection = world.connect(CLIENT, one)
        connection.send("FA")
        connection.reply("FA")

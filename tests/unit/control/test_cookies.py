"""control/cookies.py: which VIPs the kernel answers for."""

from dataclasses import replace
from ipaddress import ip_address

from featherlb.control.cookies import scales_to_offer, vips_to_answer
from featherlb.model import Admission, Service, SynCookies, Vip
from featherlb.worker.protocol import Outcomes
from tests.world import ONE, service

HOST = ("192.0.2.10", "192.0.2.11", "2001:db8::10")
OWN = [ip_address(one) for one in HOST]


def answered(*services: Service, flooded: bool = True) -> dict[str, int]:
    found = vips_to_answer(services, flooded, OWN, {})
    return {str(vip): offer.size for vip, offer in found.items()}


def test_during_a_flood_all_are_answered_that_want_it() -> None:
    web = service(ONE, vips="192.0.2.10:80")
    always = replace(web, syn_cookies=SynCookies.ALWAYS)
    assert answered(web) == {"192.0.2.10:80": 1460}
    assert answered(replace(web, mss=1000)) == {"192.0.2.10:80": 1000}
    assert answered(service(ONE, vips="[2001:db8::10]:80")) == {"[2001:db8::10]:80": 1440}
    assert answered(web, flooded=False) == {}
    assert answered(always, flooded=False) == {"192.0.2.10:80": 1460}


def test_others_are_not() -> None:
    web = service(ONE, vips="192.0.2.10:80")
    for other in (
        replace(web, syn_cookies=SynCookies.OFF),
        replace(web, admission=Admission(max_flows=(object(),))),  # type: ignore[arg-type]
    ):
        assert answered(other) == {}


def test_a_service_within_another_one_is_taken_out() -> None:
    everything = service(ONE, vips="192.0.2.10:*")
    web = replace(service(ONE, vips="192.0.2.10:80"), syn_cookies=SynCookies.OFF)
    elsewhere = replace(service(ONE, vips="192.0.2.99:80"), syn_cookies=SynCookies.OFF)
    assert answered(web, everything, elsewhere) == {"192.0.2.10:*": 1460, "192.0.2.10:80": 0}


def test_a_wildcard_is_every_address_without_a_service_of_its_own() -> None:
    everywhere = service(ONE, vips="0.0.0.0:80")
    one = replace(service(ONE, vips="192.0.2.11:80"), syn_cookies=SynCookies.OFF)
    assert answered(one, everywhere) == {"192.0.2.10:80": 1460}
    assert Vip(OWN[0], 80, 80) in vips_to_answer([everywhere], True, OWN, {})


def test_the_smallest_scale_of_a_services_backends_is_offered() -> None:
    """One that nobody has seen counts as the usual one, and those offered before stay known."""

    def offered(*told: tuple[int | None, ...], before: tuple[int, ...] = (7,)) -> tuple[int, ...]:
        outcomes = [Outcomes({}, scales={"web": scales}) for scales in told]
        return scales_to_offer(outcomes, {"web": before})["web"]

    assert offered() == (7,)
    assert offered((10, None)) == (7,)
    assert offered((10, None), (None, 11)) == (10, 7)
    assert offered((10, 11), before=(10, 7)) == (10, 7)
    assert offered((6, 11), before=(10, 7)) == (6, 10, 7)
    assert offered((-1, 11), before=(6, 10, 7)) == (-1, 6, 10)
    assert offered((7,), before=(10, 7)) == (7, 10)
    web = service(ONE, vips="192.0.2.10:80")
    (offer,) = vips_to_answer([web], True, OWN, {"web": (10, 7)}).values()
    assert offer.scale == 10

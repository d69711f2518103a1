"""The plan's exact text, for services of each kind."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from featherlb.datapaths.host_side import Replies
from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.datapaths.rules.vip_addresses import subnet_interface
from featherlb.host.plan import build
from featherlb.model import (
    Backend,
    Datapath,
    Endpoint,
    HostAddress,
    NatMode,
    Protocol,
    Service,
    Vip,
)

FRONT = HostAddress("front", ip_interface("10.0.0.1/24"))
BACK = HostAddress("back", ip_interface("10.0.1.1/24"))


def vip(text: str, last: int | None = None) -> Vip:
    host, _, port = text.rpartition(":")
    return Vip(ip_address(host.strip("[]")), int(port), last or int(port))


def backend(text: str, *sources: str) -> Backend:
    endpoint = Endpoint.parse(text)
    local = endpoint.address.is_loopback
    return Backend(endpoint, local=local, sources=tuple(map(ip_address, sources)))


def service(
    *vips: Vip,
    backends: tuple[Backend, ...] = (),
    nat: NatMode = NatMode.DNAT,
    protocol: Protocol = Protocol.TCP,
    datapath: Datapath = Datapath.NFQUEUE,
) -> Service:
    return Service("web", protocol, vips, backends, nat=nat, datapath=datapath)


def describe(*services: Service, options: Options | None = None, **facts: object) -> list[str]:
    known = Facts(addresses=(FRONT, BACK), backend_interfaces=("back",), **facts)  # type: ignore[arg-type]
    return build(services, options or Options(), known).describe()


WEB = service(vip("10.0.0.10:80"), backends=(backend("10.0.1.3:8080"), backend("10.0.1.2:8080")))
CROWD = tuple(backend(f"10.0.1.{i}:8080") for i in range(2, 7))
"""So many that rules look into a set for them."""


def test_dnat() -> None:
    assert (
        describe(WEB)
        == """\
sysctl -w net.ipv4.ip_forward=1
iptables -t filter -N FEATHERLB-ERROR-0
iptables -t filter -N FEATHERLB-FILTER-0
iptables -t filter -A FEATHERLB-ERROR-0 -p icmp --icmp-type 3 -j ACCEPT
iptables -t filter -A FEATHERLB-ERROR-0 -p icmp --icmp-type 11 -j ACCEPT
iptables -t filter -A FEATHERLB-ERROR-0 -p icmp --icmp-type 12 -j ACCEPT
iptables -t filter -A FEATHERLB-FILTER-0 -p tcp -d 10.0.1.2 --dport 8080 -j ACCEPT
iptables -t filter -A FEATHERLB-FILTER-0 -p tcp -d 10.0.1.3 --dport 8080 -j ACCEPT
iptables -t filter -A FEATHERLB-FILTER-0 -p tcp ! --syn -s 10.0.1.2 --sport 8080 -j ACCEPT
iptables -t filter -A FEATHERLB-FILTER-0 -p tcp ! --syn -s 10.0.1.3 --sport 8080 -j ACCEPT
iptables -t filter -A FEATHERLB-FILTER-0 -p tcp -s 10.0.0.10 --sport 80 -j ACCEPT
iptables -t filter -I INPUT 1 -p icmp -m conntrack --ctstate INVALID,UNTRACKED -j FEATHERLB-ERROR-0
iptables -t filter -I FORWARD 1 -p icmp -m conntrack --ctstate INVALID,UNTRACKED -j \
FEATHERLB-ERROR-0
iptables -t filter -I OUTPUT 1 -p icmp -m conntrack --ctstate INVALID,UNTRACKED -j \
FEATHERLB-ERROR-0
iptables -t filter -I INPUT 1 -m conntrack --ctstate UNTRACKED -j FEATHERLB-FILTER-0
iptables -t filter -I FORWARD 1 -m conntrack --ctstate UNTRACKED -j FEATHERLB-FILTER-0
iptables -t filter -I OUTPUT 1 -m conntrack --ctstate UNTRACKED -j FEATHERLB-FILTER-0
iptables -t mangle -N FEATHERLB-MANGLE-0
iptables -t mangle -N FEATHERLB-REPLY-0
iptables -t mangle -N FEATHERLB-ERROR-0
iptables -t mangle -A FEATHERLB-MANGLE-0 -p tcp ! --syn -s 10.0.1.2 --sport 8080 -g \
FEATHERLB-REPLY-0
iptables -t mangle -A FEATHERLB-MANGLE-0 -p tcp ! --syn -s 10.0.1.3 --sport 8080 -g \
FEATHERLB-REPLY-0
iptables -t mangle -A FEATHERLB-MANGLE-0 -p icmp --icmp-type 3 -g FEATHERLB-ERROR-0
iptables -t mangle -A FEATHERLB-MANGLE-0 -p icmp --icmp-type 11 -g FEATHERLB-ERROR-0
iptables -t mangle -A FEATHERLB-MANGLE-0 -p icmp --icmp-type 12 -g FEATHERLB-ERROR-0
iptables -t mangle -A FEATHERLB-REPLY-0 -j NFQUEUE --queue-num 0
iptables -t mangle -A FEATHERLB-ERROR-0 -j NFQUEUE --queue-num 0 --queue-bypass
iptables -t mangle -A POSTROUTING -j FEATHERLB-MANGLE-0
iptables -t mangle -A INPUT -j FEATHERLB-MANGLE-0
iptables -t raw -N FEATHERLB-RAW-0
iptables -t raw -N FEATHERLB-FORWARD-0
iptables -t raw -N FEATHERLB-ERROR-0
iptables -t raw -N FEATHERLB-GUARD-0
iptables -t raw -N FEATHERLB-ORIGIN-0
iptables -t raw -N FEATHERLB-REDIRECT-0
iptables -t raw -A FEATHERLB-RAW-0 -p tcp -d 10.0.0.10 --dport 80 -g FEATHERLB-FORWARD-0
iptables -t raw -A FEATHERLB-RAW-0 -p tcp ! --syn -s 10.0.1.2 --sport 8080 -j CT --notrack
iptables -t raw -A FEATHERLB-RAW-0 -p tcp ! --syn -s 10.0.1.3 --sport 8080 -j CT --notrack
iptables -t raw -A FEATHERLB-RAW-0 -p icmp --icmp-type 3 -g FEATHERLB-ERROR-0
iptables -t raw -A FEATHERLB-RAW-0 -p icmp --icmp-type 11 -g FEATHERLB-ERROR-0
iptables -t raw -A FEATHERLB-RAW-0 -p icmp --icmp-type 12 -g FEATHERLB-ERROR-0
iptables -t raw -A FEATHERLB-FORWARD-0 -j CT --notrack
iptables -t raw -A FEATHERLB-FORWARD-0 -j NFQUEUE --queue-num 0
iptables -t raw -A FEATHERLB-ERROR-0 -j NFQUEUE --queue-num 0 --queue-bypass
iptables -t raw -A FEATHERLB-GUARD-0 ! -i lo -p tcp --syn -d 10.0.0.10 --dport 80 -g \
FEATHERLB-ORIGIN-0
iptables -t raw -A FEATHERLB-ORIGIN-0 -m rpfilter --loose --invert -j DROP
iptables -t raw -A FEATHERLB-REDIRECT-0 -o back -p icmp --icmp-type 5 -j DROP
iptables -t raw -A PREROUTING -j FEATHERLB-RAW-0
iptables -t raw -A OUTPUT -j FEATHERLB-RAW-0
iptables -t raw -I PREROUTING 1 -j FEATHERLB-GUARD-0
iptables -t raw -I OUTPUT 1 -j FEATHERLB-REDIRECT-0
ip address add 10.0.0.10/32 dev front
""".splitlines()
    )


def test_full_with_workers_and_without_sets() -> None:
    web = service(
        vip("10.0.0.10:80"), backends=(backend("10.0.1.2:8080", "10.0.1.1"),), nat=NatMode.FULL
    )
    options = Options(queue=4, workers=3, fail_open=True, hash_seed=0xCAFE)
    lines = describe(web, options=options, sets=False, conntrack=False)
    assert (
        [
            line
            for line in lines
            if "ctstate" in line
            or (" -t raw " in line and "ERROR" not in line and "-m socket" not in line)
        ]
        == """\
iptables -t raw -N FEATHERLB-RAW-4
iptables -t raw -N FEATHERLB-FORWARD-4
iptables -t raw -N FEATHERLB-REPLY-4
iptables -t raw -N FEATHERLB-GUARD-4
iptables -t raw -N FEATHERLB-ORIGIN-4
iptables -t raw -N FEATHERLB-REDIRECT-4
iptables -t raw -A FEATHERLB-RAW-4 -p tcp -s 10.0.1.2 --sport 8080 -d 10.0.1.1 \
--dport 1024:32767 -g FEATHERLB-REPLY-4
iptables -t raw -A FEATHERLB-RAW-4 -p tcp -s 10.0.1.2 --sport 8080 -d 10.0.1.1 \
--dport 512:664 -g FEATHERLB-REPLY-4
iptables -t raw -A FEATHERLB-RAW-4 -p tcp -d 10.0.0.10 --dport 80 -g FEATHERLB-FORWARD-4
iptables -t raw -A FEATHERLB-FORWARD-4 -j CT --notrack
iptables -t raw -A FEATHERLB-FORWARD-4 -j HMARK --hmark-tuple src,sport --hmark-rnd 0x0000cafe \
--hmark-mod 3 --hmark-offset 0xfea60000
iptables -t raw -A FEATHERLB-FORWARD-4 -m mark --mark 0xfea60001 -j NFQUEUE --queue-num 5 \
--queue-bypass
iptables -t raw -A FEATHERLB-FORWARD-4 -m mark --mark 0xfea60002 -j NFQUEUE --queue-num 6 \
--queue-bypass
iptables -t raw -A FEATHERLB-FORWARD-4 -j NFQUEUE --queue-num 4 --queue-bypass
iptables -t raw -A FEATHERLB-REPLY-4 -j CT --notrack
iptables -t raw -A FEATHERLB-REPLY-4 -p tcp --dport 11605:22185 -j NFQUEUE --queue-num 5 \
--queue-bypass
iptables -t raw -A FEATHERLB-REPLY-4 -p tcp --dport 563:613 -j NFQUEUE --queue-num 5 \
--queue-bypass
iptables -t raw -A FEATHERLB-REPLY-4 -p tcp --dport 22186:32766 -j NFQUEUE --queue-num 6 \
--queue-bypass
iptables -t raw -A FEATHERLB-REPLY-4 -p tcp --dport 614:664 -j NFQUEUE --queue-num 6 \
--queue-bypass
iptables -t raw -A FEATHERLB-REPLY-4 -j NFQUEUE --queue-num 4 --queue-bypass
iptables -t raw -A FEATHERLB-GUARD-4 ! -i lo -m addrtype --src-type LOCAL -j DROP
iptables -t raw -A FEATHERLB-GUARD-4 ! -i lo -p tcp --syn -d 10.0.0.10 --dport 80 -g \
FEATHERLB-ORIGIN-4
iptables -t raw -A FEATHERLB-ORIGIN-4 -m rpfilter --loose --invert -j DROP
iptables -t raw -A FEATHERLB-REDIRECT-4 -o back -p icmp --icmp-type 5 -j DROP
iptables -t raw -A PREROUTING -j FEATHERLB-RAW-4
iptables -t raw -A OUTPUT -j FEATHERLB-RAW-4
iptables -t raw -I PREROUTING 1 -j FEATHERLB-GUARD-4
iptables -t raw -I OUTPUT 1 -j FEATHERLB-REDIRECT-4
""".splitlines()
    )
    assert "sysctl -w net.ipv4.conf.all.accept_local=1" in lines
    assert not any("ipset" in line or "-t mangle" in line for line in lines)
    assert "iptables -t filter -I FORWARD 1 -j FEATHERLB-FILTER-4" in lines
    assert (
        "iptables -t filter -A FEATHERLB-FILTER-4 -p tcp -s 10.0.1.1 --sport 1024:32767"
        " -d 10.0.1.2 --dport 8080 -j ACCEPT"
    ) in lines


def test_both_directions_of_a_flow_hash_alike() -> None:
    lines = describe(WEB, options=Options(workers=2, hash_seed=7))
    forward, reply = (
        line.split(" -j HMARK ")[1] for line in lines if "HMARK" in line and "ERROR" not in line
    )
    assert {forward, reply} == {
        f"--hmark-tuple {client} --hmark-rnd 0x00000007 --hmark-mod 2 --hmark-offset 0xfea60000"
        for client in ("src,sport", "dst,dport")
    }


def test_wildcards_and_ranges_are_rules_of_their_own() -> None:
    lines = describe(service(vip("0.0.0.0:8080"), vip("10.0.0.1:8000", 8010)))
    raw = [line for line in lines if "-A FEATHERLB-RAW-0" in line and "icmp" not in line]
    assert [line.removeprefix("iptables -t raw -A FEATHERLB-RAW-0 ") for line in raw] == [
        "-p tcp --dport 8080 -m addrtype --dst-type LOCAL -g FEATHERLB-FORWARD-0",
        "-p tcp -d 10.0.0.1 --dport 8000:8010 -g FEATHERLB-FORWARD-0",
    ]
    assert not any("ipset" in line for line in lines)


def test_many_endpoints_stand_in_sets() -> None:
    lines = describe(replace(WEB, backends=CROWD))
    assert lines[1:7] == [
        "ipset create featherlb-0-backends4 hash:ip,port family inet maxelem 1048576",
        *(f"ipset add featherlb-0-backends4 10.0.1.{i},tcp:8080" for i in range(2, 7)),
    ]
    assert [line for line in lines if "10.0.1." in line] == lines[2:7]
    replies = "-p tcp ! --syn --sport 8080 -m set --match-set featherlb-0-backends4 src,src"
    assert [line for line in lines if "match-set" in line] == [
        "iptables -t filter -A FEATHERLB-FILTER-0 -p tcp --dport 8080"
        " -m set --match-set featherlb-0-backends4 dst,dst -j ACCEPT",
        f"iptables -t filter -A FEATHERLB-FILTER-0 {replies} -j ACCEPT",
        f"iptables -t mangle -A FEATHERLB-MANGLE-0 {replies} -g FEATHERLB-REPLY-0",
        f"iptables -t raw -A FEATHERLB-RAW-0 {replies} -j CT --notrack",
    ]
    few = describe(replace(WEB, backends=CROWD[:-1]))
    assert not any("ipset" in line or "match-set" in line for line in few)


def test_the_number_of_rules_does_not_depend_on_the_number_of_endpoints() -> None:
    some = replace(WEB, vips=tuple(vip(f"10.0.0.{i}:80") for i in range(5)), backends=CROWD)
    many = [
        service(
            vip(f"10.1.{i}.10:80"),
            backends=tuple(backend(f"10.2.{i}.{j}:80") for j in range(1, 20)),
        )
        for i in range(50)
    ]
    rules = [line for line in describe(*many) if line.startswith("iptables")]
    assert len(rules) == len([line for line in describe(some) if line.startswith("iptables")])


def test_protocols_and_families_have_rules_of_their_own() -> None:
    dns = service(
        vip("[2001:db8::10]:53"),
        backends=tuple(backend(f"[2001:db8:1::{i}]:53") for i in range(2, 7)),
        protocol=Protocol.UDP,
    )
    lines = describe(WEB, dns)
    assert "sysctl -w net.ipv6.conf.all.forwarding=1" in lines
    assert "ipset add featherlb-0-backends6 2001:db8:1::2,udp:53" in lines
    assert "ipset create featherlb-0-backends6 hash:ip,port family inet6 maxelem 1048576" in lines
    assert (
        "ip6tables -t raw -A FEATHERLB-RAW-0 -p udp --sport 53"
        " -m set --match-set featherlb-0-backends6 src,src -j CT --notrack"
    ) in lines
    assert "ip address add 2001:db8::10/128 dev lo" in lines


def test_sets_are_looked_into_only_at_ports_that_they_have() -> None:
    backends = (*CROWD, backend("10.0.1.3:80"), backend("10.0.1.4:443"))
    dns = replace(WEB, name="dns", protocol=Protocol.UDP, backends=(backend("10.0.1.2:53"),))
    lines = describe(replace(WEB, backends=backends), dns)
    found = [line for line in lines if "-A FEATHERLB-MANGLE-0" in line and "-m set" in line]
    assert [line.split("-m set")[0].split("MANGLE-0 ")[1] for line in found] == [
        "-p tcp ! --syn --sport 80:8080 ",
        "-p udp --sport 53 ",
    ]


def test_ipv6_routes_from_advertisements_are_kept() -> None:
    web = service(vip("[2001:db8::10]:80"), backends=(backend("[2001:db8:1::2]:80"),))
    lines = describe(web, advertised=("front",))
    assert lines[:2] == [
        "sysctl -w net.ipv6.conf.front.accept_ra=2",
        "sysctl -w net.ipv6.conf.all.forwarding=1",
    ]


def test_a_loopback_backend_is_guarded() -> None:
    lines = describe(service(vip("10.0.0.10:80"), backends=(backend("127.0.0.1:8080"),)))
    assert [line for line in lines if line.startswith("sysctl")] == [
        "sysctl -w net.ipv4.conf.all.route_localnet=1"
    ]
    assert [line for line in lines if "GUARD-0 " in line] == [
        "iptables -t raw -A FEATHERLB-GUARD-0 ! -i lo -s 127.0.0.0/8 -j DROP",
        "iptables -t raw -A FEATHERLB-GUARD-0 ! -i lo -d 127.0.0.0/8 -j DROP",
        "iptables -t raw -A FEATHERLB-GUARD-0 ! -i lo -p tcp --syn -d 10.0.0.10 --dport 80"
        " -g FEATHERLB-ORIGIN-0",
    ]


@pytest.mark.parametrize(
    ("text", "options", "facts", "expected"),
    [
        ("10.0.0.10:80", Options(), {}, ["10.0.0.10/32 dev front"]),
        ("192.0.2.1:80", Options(), {}, ["192.0.2.1/32 dev lo"]),
        ("10.0.0.10:80", Options(assign=False), {}, []),
        ("10.0.0.1:80", Options(), {"local_vips": frozenset({ip_address("10.0.0.1")})}, []),
        ("0.0.0.0:80", Options(), {}, []),
        ("127.0.0.2:80", Options(), {}, []),
    ],
)
def test_vips_are_assigned_where_they_belong(
    text: str, options: Options, facts: dict[str, object], expected: list[str]
) -> None:
    lines = describe(service(vip(text)), options=options, **facts)
    added = [line for line in lines if line.startswith("ip address add ")]
    assert added == [f"ip address add {line}" for line in expected]


def test_the_longest_prefix_says_where_an_address_belongs() -> None:
    narrow = HostAddress("narrow", ip_interface("10.0.0.129/25"))
    assert subnet_interface(ip_address("10.0.0.200"), [FRONT, narrow]) == "narrow"
    assert subnet_interface(ip_address("10.0.0.100"), [FRONT, narrow]) == "front"
    assert subnet_interface(ip_address("2001:db8::1"), [FRONT, narrow]) is None


def test_replies_go_through_later_instances_first() -> None:
    lines = describe(WEB, options=Options(queue=8), order=5, earlier=(2, 4))
    for chain, marks in (
        ("RAW", ["0xfea70004", "0xfea70008", "0xfea7000a"]),
        ("MANGLE", ["0xfea70005", "0xfea70009", "0xfea7000b"]),
    ):
        rules = [line for line in lines if f"-A FEATHERLB-{chain}-8 " in line]
        assert [line.split("8 ", 1)[1] for line in rules[:3]] == [
            f"-m mark --mark {mark} -j RETURN" for mark in marks
        ]
        assert not any("--mark" in line for line in rules[3:])
    plan = build([WEB], Options(), Facts(order=5, earlier=(2, 4)))
    assert plan.pass_mark == 0xFEA7000A
    assert build([WEB], Options(), Facts(order=5)).pass_mark is None


def errors_in_raw(lines: list[str]) -> list[str]:
    """The rules that bring ICMP errors to their worker."""
    prefix = "iptables -t raw -A FEATHERLB-ERROR-0 "
    return [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]


HASH = "--hmark-rnd 0x00000001 --hmark-mod 2 --hmark-offset 0xfea60000"
BY_CLIENT = [
    f"-j HMARK --hmark-tuple dst,dport {HASH}",
    "-m mark --mark 0xfea60001 -j NFQUEUE --queue-num 1 --queue-bypass",
    "-j NFQUEUE --queue-num 0 --queue-bypass",
]


def test_icmp_errors_reach_the_worker_of_the_quoted_client() -> None:
    lines = describe(WEB, options=Options(workers=2, hash_seed=1))
    own = "-m addrtype --src-type LOCAL ! --dst-type LOCAL"
    assert errors_in_raw(lines) == [
        f"{own} -j HMARK --hmark-tuple src,sport {HASH}",
        f"{own} -m mark --mark 0xfea60000 -j NFQUEUE --queue-num 0 --queue-bypass",
        f"{own} -m mark --mark 0xfea60001 -j NFQUEUE --queue-num 1 --queue-bypass",
        *BY_CLIENT,
    ]
    assert (
        f"iptables -t mangle -A FEATHERLB-ERROR-0 -j HMARK --hmark-tuple src,sport {HASH}" in lines
    )


def test_icmp_errors_reach_the_worker_of_the_quoted_source_port() -> None:
    web = service(
        vip("10.0.0.10:80"), backends=(backend("10.0.1.2:80", "10.0.1.1"),), nat=NatMode.FULL
    )
    lines = describe(web, options=Options(workers=2, hash_seed=1))
    port = '-m addrtype --dst-type LOCAL -m u32 --u32 "0>>22&0x3C@8>>22&0x3C@8>>16='
    assert errors_in_raw(lines) == [
        f'{port}1024:16895" -j NFQUEUE --queue-num 0 --queue-bypass',
        f'{port}512:587" -j NFQUEUE --queue-num 0 --queue-bypass',
        f'{port}16896:32767" -j NFQUEUE --queue-num 1 --queue-bypass',
        f'{port}588:663" -j NFQUEUE --queue-num 1 --queue-bypass',
        *BY_CLIENT,
    ]


def test_no_icmp_error_is_taken_out_of_connection_tracking() -> None:
    lines = describe(WEB, options=Options(workers=2))
    assert not any("notrack" in line and ("icmp" in line or "ERROR" in line) for line in lines)


@pytest.mark.parametrize(
    ("options", "local_vips", "queued"),
    [
        (Options(), (), False),
        (Options(assign=False), ("10.0.0.10",), False),
        (Options(assign=False), (), True),
    ],
)
def test_echo_requests_are_queued_where_no_kernel_answers(
    options: Options, local_vips: tuple[str, ...], queued: bool
) -> None:
    lines = describe(WEB, options=options, local_vips=frozenset(map(ip_address, local_vips)))
    rule = (
        "iptables -t raw -A FEATHERLB-RAW-0 -p icmp --icmp-type 8 -m addrtype ! --dst-type LOCAL"
        " -j NFQUEUE --queue-num 0 --queue-bypass"
    )
    assert (rule in lines) is queued


@pytest.mark.parametrize(
    ("conntrack", "socket", "needed"),
    [(True, True, False), (False, True, True), (False, False, False)],
)
def test_something_makes_the_kernel_reassemble(conntrack: bool, socket: bool, needed: bool) -> None:
    lines = describe(WEB, conntrack=conntrack, socket=socket)
    rule = "iptables -t raw -A FEATHERLB-GUARD-0 -s 255.255.255.255 -m socket -j RETURN"
    assert (rule in lines) == needed


def test_both_families_can_have_vips_of_one_protocol() -> None:
    both = service(vip("10.0.0.10:80"), vip("[2001:db8::10]:80"), vip("10.0.0.9:80"))
    plan = build([both], Options(), Facts())
    assert [str(vip) for _, vip in plan.vips] == [
        "10.0.0.9:80",
        "10.0.0.10:80",
        "[2001:db8::10]:80",
    ]


@pytest.mark.parametrize("queue", [0, 65535])
def test_names_fit(queue: int) -> None:
    both = [
        replace(WEB, backends=CROWD),
        service(
            vip("10.0.0.11:80"), backends=(backend("127.0.0.1:1", "127.0.0.1"),), nat=NatMode.FULL
        ),
    ]
    plan = build(both, Options(queue=queue), Facts())
    chains = [
        str(chain) for rules in plan.rules.values() for t in rules.values() for chain in t.chains
    ]
    assert chains
    assert max(map(len, chains)) <= 28
    assert max(len(wanted.name) for wanted in plan.sets) <= 31


RAW = replace(WEB, datapath=Datapath.RAW)


def copies(lines: list[str], table: str) -> list[str]:
    """The rules that drop what workers have had as frames."""
    start = f"iptables -t {table} -A FEATHERLB-COPY-0 "
    return [line.removeprefix(start) for line in lines if line.startswith(start)]


def test_raw() -> None:
    assert (
        describe(RAW)
        == """\
iptables -t filter -N FEATHERLB-ERROR-0
iptables -t filter -N FEATHERLB-FILTER-0
iptables -t filter -A FEATHERLB-ERROR-0 -p icmp --icmp-type 3 -j ACCEPT
iptables -t filter -A FEATHERLB-ERROR-0 -p icmp --icmp-type 11 -j ACCEPT
iptables -t filter -A FEATHERLB-ERROR-0 -p icmp --icmp-type 12 -j ACCEPT
iptables -t filter -A FEATHERLB-FILTER-0 -p tcp -d 10.0.1.2 --dport 8080 -j ACCEPT
iptables -t filter -A FEATHERLB-FILTER-0 -p tcp -d 10.0.1.3 --dport 8080 -j ACCEPT
iptables -t filter -A FEATHERLB-FILTER-0 -p tcp ! --syn -s 10.0.1.2 --sport 8080 -j ACCEPT
iptables -t filter -A FEATHERLB-FILTER-0 -p tcp ! --syn -s 10.0.1.3 --sport 8080 -j ACCEPT
iptables -t filter -A FEATHERLB-FILTER-0 -p tcp -s 10.0.0.10 --sport 80 -j ACCEPT
iptables -t filter -I INPUT 1 -p icmp -m conntrack --ctstate INVALID,UNTRACKED -j FEATHERLB-ERROR-0
iptables -t filter -I OUTPUT 1 -p icmp -m conntrack --ctstate INVALID,UNTRACKED -j \
FEATHERLB-ERROR-0
iptables -t filter -I INPUT 1 -m conntrack --ctstate UNTRACKED -j FEATHERLB-FILTER-0
iptables -t filter -I OUTPUT 1 -m conntrack --ctstate UNTRACKED -j FEATHERLB-FILTER-0
iptables -t mangle -N FEATHERLB-MANGLE-0
iptables -t mangle -N FEATHERLB-REPLY-0
iptables -t mangle -N FEATHERLB-ERROR-0
iptables -t mangle -A FEATHERLB-MANGLE-0 -p tcp ! --syn -s 10.0.1.2 --sport 8080 -g \
FEATHERLB-REPLY-0
iptables -t mangle -A FEATHERLB-MANGLE-0 -p tcp ! --syn -s 10.0.1.3 --sport 8080 -g \
FEATHERLB-REPLY-0
iptables -t mangle -A FEATHERLB-MANGLE-0 -p icmp --icmp-type 3 -g FEATHERLB-ERROR-0
iptables -t mangle -A FEATHERLB-MANGLE-0 -p icmp --icmp-type 11 -g FEATHERLB-ERROR-0
iptables -t mangle -A FEATHERLB-MANGLE-0 -p icmp --icmp-type 12 -g FEATHERLB-ERROR-0
iptables -t mangle -A FEATHERLB-REPLY-0 -j NFQUEUE --queue-num 0
iptables -t mangle -A FEATHERLB-ERROR-0 -j NFQUEUE --queue-num 0 --queue-bypass
iptables -t mangle -A INPUT -j FEATHERLB-MANGLE-0
iptables -t raw -N FEATHERLB-RAW-0
iptables -t raw -N FEATHERLB-FORWARD-0
iptables -t raw -N FEATHERLB-COPY-0
iptables -t raw -A FEATHERLB-RAW-0 -p tcp -d 10.0.0.10 --dport 80 -g FEATHERLB-FORWARD-0
iptables -t raw -A FEATHERLB-RAW-0 -p tcp ! --syn -s 10.0.1.2 --sport 8080 -m addrtype --dst-type \
LOCAL -j CT --notrack
iptables -t raw -A FEATHERLB-RAW-0 -p tcp ! --syn -s 10.0.1.3 --sport 8080 -m addrtype --dst-type \
LOCAL -j CT --notrack
iptables -t raw -A FEATHERLB-FORWARD-0 -j CT --notrack
iptables -t raw -A FEATHERLB-FORWARD-0 -j NFQUEUE --queue-num 0
iptables -t raw -A FEATHERLB-COPY-0 -p tcp -d 10.0.0.10 --dport 80 -j DROP
iptables -t raw -A FEATHERLB-COPY-0 -p tcp ! --syn -s 10.0.1.2 --sport 8080 -m addrtype ! \
--dst-type LOCAL -j DROP
iptables -t raw -A FEATHERLB-COPY-0 -p tcp ! --syn -s 10.0.1.3 --sport 8080 -m addrtype ! \
--dst-type LOCAL -j DROP
iptables -t raw -A PREROUTING -j FEATHERLB-RAW-0
iptables -t raw -A OUTPUT -j FEATHERLB-RAW-0
iptables -t raw -I PREROUTING 1 -j FEATHERLB-COPY-0
ip address add 10.0.0.10/32 dev front
""".splitlines()
    )


def test_raw_with_full_nat() -> None:
    full = service(
        vip("0.0.0.0:2000"),
        backends=(backend("10.0.1.2:8080", "10.0.1.1"),),
        nat=NatMode.FULL,
        datapath=Datapath.RAW,
    )
    lines = describe(full, sets=False)
    assert copies(lines, "raw") == [
        "-p tcp -s 10.0.1.2 --sport 8080 -d 10.0.1.1 --dport 1024:32767 -j DROP",
        "-p tcp -s 10.0.1.2 --sport 8080 -d 10.0.1.1 --dport 512:664 -j DROP",
        "-p tcp --dport 2000 -m addrtype --dst-type LOCAL -j DROP",
    ]
    # A client on this host keeps its address, so its replies may be for any.
    untracked = "-p tcp ! --syn -s 10.0.1.2 --sport 8080 -m addrtype --dst-type LOCAL"
    assert f"iptables -t raw -A FEATHERLB-RAW-0 {untracked} -j CT --notrack" in lines
    queued = "-p tcp ! --syn -s 10.0.1.2 --sport 8080 -g FEATHERLB-REPLY-0"
    assert f"iptables -t mangle -A FEATHERLB-MANGLE-0 {queued}" in lines
    # Nothing is changed for packets that never get into the kernel.
    assert not any(line.startswith("sysctl") or "GUARD" in line for line in lines)


def test_a_router_tells_replies_from_what_it_forwards_by_connection_tracking() -> None:
    forwarded = (
        "-p tcp ! --syn --sport 8080 -m set --match-set featherlb-0-raw-backends4 src,src"
        " -m addrtype ! --dst-type LOCAL"
    )
    for_vip = "-p tcp -d 10.0.0.10 --dport 80 -j DROP"
    crowd = replace(RAW, backends=CROWD)
    router = describe(crowd, routers=frozenset({4}))
    assert copies(router, "raw") == [for_vip]
    assert copies(router, "mangle") == [
        f"{forwarded} -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP",
        f"{forwarded.replace('! --syn', '--tcp-flags SYN,RST,ACK ACK')}"
        " -m conntrack ! --ctstatus ASSURED -j DROP",
    ]
    assert "iptables -t mangle -I PREROUTING 1 -j FEATHERLB-COPY-0" in router
    others = (
        describe(crowd, routers=frozenset({6})),
        describe(crowd, routers=frozenset({4}), conntrack=False),
    )
    for lines in others:
        assert copies(lines, "raw") == [for_vip, f"{forwarded} -j DROP"]
        assert copies(lines, "mangle") == []


def test_datapaths_side_by_side() -> None:
    queued = replace(WEB, name="queued", vips=(vip("10.0.0.11:80"),), backends=WEB.backends[:1])
    lines = describe(RAW, queued)
    # Replies of the backend that both have are the worker's to tell apart.
    shared = "-p tcp ! --syn -s 10.0.1.3 --sport 8080"
    assert copies(lines, "mangle")[0] == f"{shared} -j RETURN"
    assert "iptables -t mangle -A POSTROUTING -j FEATHERLB-MANGLE-0" in lines
    assert "sysctl -w net.ipv4.ip_forward=1" in lines
    alone = replace(queued, backends=(backend("10.0.1.9:8080"),))
    assert not any("RETURN" in line for line in copies(describe(RAW, alone), "mangle"))


def test_a_port_given_on_one_datapath_can_equal_a_wildcard_vips_on_the_other() -> None:
    everywhere = service(
        vip("0.0.0.0:2000"), backends=(backend("10.0.1.3:80"),), datapath=Datapath.RAW
    )
    full = service(
        vip("10.0.0.10:80"), backends=(backend("10.0.1.2:80", "10.0.1.1"),), nat=NatMode.FULL
    )
    assert copies(describe(everywhere, replace(full, name="full")), "raw") == [
        "-p tcp -s 10.0.1.2 --sport 80 -d 10.0.1.1 --dport 1024:32767 -j RETURN",
        "-p tcp -s 10.0.1.2 --sport 80 -d 10.0.1.1 --dport 512:664 -j RETURN",
        "-p tcp --dport 2000 -m addrtype --dst-type LOCAL -j DROP",
    ]


def test_raw_without_an_address_for_the_vip() -> None:
    """A worker answers its pings; nothing for it is forwarded back to where it came from."""
    lines = describe(RAW, options=Options(assign=False))
    rules = [line for line in lines if "-A FEATHERLB-RAW-0 -p icmp" in line]
    start = "iptables -t raw -A FEATHERLB-RAW-0 -p icmp --icmp-type"
    assert rules == [
        f"{start} 8 -m addrtype ! --dst-type LOCAL -j NFQUEUE --queue-num 0 --queue-bypass",
        *(f"{start} {kind} -d 10.0.0.10 -j DROP" for kind in (3, 11, 12)),
    ]
    here = frozenset({ip_address("10.0.0.10")})
    known = describe(RAW, options=Options(assign=False), local_vips=here)
    assert not any("-A FEATHERLB-RAW-0 -p icmp" in line for line in known)


def test_the_number_of_raw_rules_is_constant() -> None:
    many = replace(
        RAW,
        vips=tuple(vip(f"10.0.0.{i}:80") for i in range(1, 100)),
        backends=tuple(backend(f"10.0.1.{i}:8080") for i in range(1, 200)),
    )
    some = replace(many, vips=many.vips[:5], backends=many.backends[:5])
    few, all_of_them = describe(some), describe(many)
    assert [x for x in few if x[:3] == "ipt"] == [x for x in all_of_them if x[:3] == "ipt"]


def test_replies_are_tracked_or_not_whichever_instance_they_are_for() -> None:
    def plan(datapath: Datapath, nat: NatMode) -> tuple[frozenset[str], frozenset[str]]:
        one = replace(WEB, datapath=datapath, nat=nat, backends=WEB.backends[:1])
        built = build([one], Options(), Facts())
        return built.claims[Replies.TRACKED], built.claims[Replies.UNTRACKED]

    these, none = frozenset({"10.0.1.3,tcp:8080"}), frozenset[str]()
    for nat in NatMode:
        assert plan(Datapath.OFFLOAD, nat) == (these, none)
        assert plan(Datapath.RAW, nat) == (none, these)
    assert plan(Datapath.NFQUEUE, NatMode.DNAT) == (none, these)
    assert plan(Datapath.NFQUEUE, NatMode.FULL) == (none, none)


OFFLOADED = replace(WEB, datapath=Datapath.OFFLOAD, backends=WEB.backends[:1])
UNKNOWN = (
    "-m conntrack --ctstate INVALID,NEW -m conntrack ! --ctstate DNAT -j FEATHERLB-CTUNKNOWN-0"
)


def test_out_of_state_packets_are_queued_after_the_rules_that_accept_flows() -> None:
    lines = describe(OFFLOADED)
    # Each line stands in front of those before it.
    assert [line for line in lines if line.startswith("iptables -t filter -I FORWARD")] == [
        f"iptables -t filter -I FORWARD 1 {UNKNOWN}",
        "iptables -t filter -I FORWARD 1 -m conntrack --ctstate DNAT -j FEATHERLB-CTFILTER-0",
    ]
    for hook in ("INPUT", "OUTPUT"):
        assert f"iptables -t filter -I {hook} 1 {UNKNOWN}" in lines
    assert not any("-t mangle" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "known"),
    [(Options(fail_open=True), True), (Options(assign=False), False)],
    ids=["a random backend", "a VIP without a route"],
)
def test_out_of_state_packets_are_queued_in_mangle_where_later_is_too_late(
    options: Options, known: bool
) -> None:
    local = frozenset({ip_address("10.0.0.10")}) if known else frozenset()
    lines = describe(OFFLOADED, options=options, local_vips=local)
    assert [line for line in lines if UNKNOWN in line] == [
        f"iptables -t mangle -A {hook} {UNKNOWN}" for hook in ("PREROUTING", "OUTPUT")
    ]


def test_a_vip_that_somebody_else_assigns_is_one_of_the_hosts() -> None:
    known = frozenset({ip_address("10.0.0.10")})
    lines = describe(OFFLOADED, options=Options(assign=False), local_vips=known)
    assert f"iptables -t filter -I INPUT 1 {UNKNOWN}" in lines


def test_each_of_several_instances_sees_an_out_of_state_packet_once() -> None:
    lines = describe(OFFLOADED, order=1, earlier=(0,))
    chain = "iptables -t filter -A FEATHERLB-CTUNKNOWN-0 "
    rules = [line.removeprefix(chain) for line in lines if line.startswith(chain)]
    marks = (0xFEA70000, 0xFEA70002, 0xFEA70001, 0xFEA70003)
    assert rules[:4] == [f"-m mark --mark {mark:#x} -j RETURN" for mark in marks]

"""Rules as values, and their text."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from featherlb.model import Endpoint, Protocol
from featherlb.system.ruleset import (
    ANY,
    Action,
    Chain,
    Content,
    Enqueue,
    Goto,
    HashMark,
    Icmp,
    Jump,
    Match,
    Membership,
    Rule,
    Side,
    State,
    Table,
    Target,
    TranslateTo,
    hooked,
    join,
)

CHAIN = Chain("RAW", 3)
OPENING = Match(protocol=Protocol.TCP, syn=True)


@pytest.mark.parametrize(
    ("match", "text"),
    [
        (ANY, ""),
        (Match(protocol=Protocol.UDP), "-p udp"),
        (OPENING, "-p tcp --syn"),
        (Match(protocol=Protocol.TCP, syn=False), "-p tcp ! --syn"),
        (Match(protocol=Icmp.V4, icmp_type=3), "-p icmp --icmp-type 3"),
        (Match(protocol=Icmp.V6, icmp_type=1), "-p ipv6-icmp --icmpv6-type 1"),
        (Match(protocol=Icmp.V4, icmp_type=0), "-p icmp --icmp-type 0"),
        (Match(source=ip_network("127.0.0.0/8")), "-s 127.0.0.0/8"),
        (Match(protocol=Protocol.TCP, source_ports=range(80, 81)), "-p tcp --sport 80"),
        (Match(protocol=Protocol.TCP, destination_ports=range(80, 90)), "-p tcp --dport 80:89"),
        (Match(not_in_interface="lo", source_local=True), "! -i lo -m addrtype --src-type LOCAL"),
        (Match(out_interface="back", protocol=Icmp.V4), "-o back -p icmp"),
        (
            Match(source_local=True, destination_local=False),
            "-m addrtype --src-type LOCAL ! --dst-type LOCAL",
        ),
        (Match(socket=True), "-m socket"),
        (
            Match(member=Membership("web", (Side.SOURCE, Side.SOURCE, Side.DESTINATION))),
            "-m set --match-set web src,src,dst",
        ),
        (Match(content=Content("88>>16", range(1, 5))), '-m u32 --u32 "88>>16=1:4"'),
        (Match(mark=0), "-m mark --mark 0x0"),
        (
            Match(states=(State.INVALID, State.NEW), not_states=(State.DNAT,)),
            "-m conntrack --ctstate INVALID,NEW -m conntrack ! --ctstate DNAT",
        ),
        (Match(probability=1 / 3), "-m statistic --mode random --probability 0.33333333"),
    ],
)
def test_a_match(match: Match, text: str) -> None:
    assert str(match) == text


def test_a_match_names_the_source_before_the_destination_and_extensions_last() -> None:
    match = Match(
        protocol=Protocol.TCP,
        syn=False,
        source=ip_address("10.0.1.2"),
        source_ports=range(80, 81),
        destination=ip_address("10.0.1.1"),
        destination_ports=range(1024, 32768),
        destination_local=True,
        states=(State.NEW,),
    )
    assert str(match) == (
        "-p tcp ! --syn -s 10.0.1.2 --sport 80 -d 10.0.1.1 --dport 1024:32767"
        " -m addrtype --dst-type LOCAL -m conntrack --ctstate NEW"
    )


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (Action.UNTRACK, "-j CT --notrack"),
        (Goto(CHAIN), "-g FEATHERLB-RAW-3"),
        (Enqueue(7), "-j NFQUEUE --queue-num 7"),
        (Enqueue(7, bypass=True), "-j NFQUEUE --queue-num 7 --queue-bypass"),
        (
            HashMark(Side.DESTINATION, seed=1, modulus=2, offset=0xFE0000),
            "-j HMARK --hmark-tuple dst,dport --hmark-rnd 0x00000001 --hmark-mod 2"
            " --hmark-offset 0xfe0000",
        ),
        (
            HashMark(Side.SOURCE, seed=1, modulus=2, prefix=24),
            "-j HMARK --hmark-src-prefix 24 --hmark-rnd 0x00000001 --hmark-mod 2",
        ),
        (
            TranslateTo(Endpoint.parse("[2001:db8::1]:80")),
            "-j DNAT --to-destination [2001:db8::1]:80",
        ),
    ],
)
def test_a_target(target: Target, text: str) -> None:
    assert str(Rule(ANY, target)) == text
    assert str(Rule(OPENING, target)) == f"-p tcp --syn {text}"


def test_a_rule_without_a_target_only_counts() -> None:
    assert str(Rule(OPENING)) == "-p tcp --syn"


def test_a_jump_is_written_as_iptables_save_prints_it() -> None:
    assert str(Jump("OUTPUT", CHAIN)) == "-j FEATHERLB-RAW-3"
    assert str(Jump("OUTPUT", CHAIN, OPENING)) == (
        "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j FEATHERLB-RAW-3"
    )


def test_a_chain_without_rules_is_not_hooked() -> None:
    assert hooked(CHAIN, "OUTPUT", ()) == Table()
    rules = (Rule(ANY, Action.DROP),)
    assert hooked(CHAIN, "OUTPUT", rules) == Table(
        {CHAIN: rules}, (Jump("OUTPUT", CHAIN, first=True),)
    )


def test_parts_of_a_table_keep_their_order() -> None:
    parts = [
        hooked(replace(CHAIN, role=role), "OUTPUT", [Rule(ANY, Action.DROP)])
        for role in ("GUARD", "COPY")
    ]
    whole = join(*parts)
    assert [chain.role for chain in whole.chains] == ["GUARD", "COPY"]
    assert [jump.chain.role for jump in whole.jumps] == ["GUARD", "COPY"]
    assert join() == Table()

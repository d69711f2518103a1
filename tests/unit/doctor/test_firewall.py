"""What other programs' filters do to packets that connection tracking doesn't know."""

import pytest

from featherlb.doctor.finding import Severity
from featherlb.doctor.firewall import judge, judge_passed_by
from featherlb.model import Datapath
from featherlb.system.firewall import Action, Applies, FilterTable, Hooked, Rule, read_iptables
from tests.world import service

FIX = "featherlb reload --instance 0"
OURS = """
-A FORWARD -m conntrack --ctstate INVALID,UNTRACKED -j FEATHERLB-ERROR-0
-A FORWARD -m conntrack --ctstate UNTRACKED -j FEATHERLB-FILTER-0
-A FEATHERLB-FILTER-0 -p tcp -j ACCEPT
"""
E, W = Severity.ERROR, Severity.WARNING


def saved(rules: str, policy: str = "ACCEPT", owner: str = "iptables") -> FilterTable:
    """The filter table, as iptables-save prints it."""
    text = f"""*filter
:INPUT ACCEPT [0:0]
:FORWARD {policy} [1:2]
:FEATHERLB-ERROR-0 - [0:0]
:FEATHERLB-FILTER-0 - [0:0]
:DOCKER-USER - [0:0]
:ZONES - [0:0]
{rules.strip()}
COMMIT"""
    (table,) = read_iptables(text.splitlines(), owner, 4)
    return table


def verdicts(table: FilterTable) -> list[tuple[Severity, str]]:
    return [(one.severity, one.command) for one in judge([table], ["forward"], FIX)]


@pytest.mark.parametrize(
    ("rules", "severity"),
    [
        ("", None),
        ("-A FORWARD -m conntrack --ctstate INVALID -j DROP", None),
        ("-A FORWARD -j ACCEPT\n-A FORWARD -j DROP", None),
        ("-A FORWARD -j LOG --log-prefix DROP", None),
        ("-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j RETURN", None),
        ("-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j RETURN\n-A DOCKER-USER -j DROP", None),
        ("-A FORWARD -j ZONES\n-A ZONES -j ZONES", None),
        ("-A FORWARD -j DROP", E),
        ("-A FORWARD -j REJECT --reject-with icmp-port-unreachable", E),
        ("-A FORWARD -m comment --comment 'a b' -j DROP", E),
        ("-A FORWARD -m conntrack ! --ctstate ESTABLISHED -j DROP", E),
        ("-A FORWARD -m state --state UNTRACKED -j DROP", E),
        ("-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j DROP", E),
        ("-A FORWARD -o docker0 -j DROP", W),
        ("-A FORWARD -p tcp -j ACCEPT\n-A FORWARD -j DROP", W),
        ("-A FORWARD -i eth0 -j ZONES\n-A ZONES -j DROP", W),
    ],
)
def test_what_stands_in_front_of_our_rules(rules: str, severity: Severity | None) -> None:
    expected = [] if severity is None else [(severity, FIX)]
    # The policy is for what our rules don't accept.
    assert verdicts(saved(rules + OURS, "DROP")) == expected


def test_what_stands_behind_our_rules_is_no_matter() -> None:
    assert verdicts(saved(OURS + "-A FORWARD -j DROP")) == []


def test_a_goto_ends_at_the_policy() -> None:
    assert verdicts(saved("-A FORWARD -g ZONES" + OURS, "DROP")) == [(E, FIX)]
    assert verdicts(saved("-A FORWARD -g ZONES" + OURS)) == []


def test_the_other_flavour_of_iptables_has_to_accept_as_well() -> None:
    rule = "-A FORWARD -m conntrack --ctstate UNTRACKED -j ACCEPT"
    fix = f"iptables-legacy -t filter {rule.replace('-A', '-I')}"
    assert verdicts(saved("", "DROP", "iptables-legacy")) == [(E, fix)]
    # What the command has done is seen.
    assert verdicts(saved(rule, "DROP", "iptables-legacy")) == []
    assert verdicts(saved("-A FORWARD -o docker0 -j DROP", "ACCEPT", "iptables-legacy")) == []


def native(*rules: Rule, policy: Action = Action.ACCEPT) -> FilterTable:
    return FilterTable(
        owner="nftables",
        table="inet firewalld",
        families=frozenset({4, 6}),
        hooked=(Hooked("fwd", "forward", policy), Hooked("in", "input", Action.DROP)),
        chains={"fwd": rules},
    )


def test_native_nftables() -> None:
    drop = Rule(Action.DROP, Applies.ALWAYS, "reject")
    tracked = Rule(Action.ACCEPT, Applies.NEVER, "ct bitwise cmp immediate")
    untracked = Rule(Action.ACCEPT, Applies.ALWAYS, "ct bitwise cmp immediate")
    some = Rule(Action.ACCEPT, Applies.SOMETIMES, "payload cmp immediate")
    fix = "nft insert rule inet firewalld fwd ct state untracked accept"
    assert verdicts(native(policy=Action.DROP)) == [(E, fix)]
    assert verdicts(native(tracked, drop)) == [(E, fix)]
    assert verdicts(native(untracked, drop)) == []
    assert verdicts(native(some, drop)) == [(W, fix)]


def test_nat_is_passed_by_and_unused_hooks_are_no_matter() -> None:
    assert list(read_iptables(["*nat", ":PREROUTING DROP [0:0]", "COMMIT"], "iptables", 4)) == []
    assert list(judge([native(policy=Action.DROP)], ["output"], FIX)) == []


@pytest.mark.parametrize(
    ("datapath", "kind"),
    [
        (Datapath.NFQUEUE, ""),
        (Datapath.OFFLOAD, ""),
        (Datapath.RAW, "doesn't see packets of web"),
        (Datapath.EBPF, "doesn't see packets that a program carries of web"),
    ],
)
def test_rules_that_packets_pass_by(datapath: Datapath, kind: str) -> None:
    drop = Rule(Action.DROP, Applies.SOMETIMES, "ip saddr @bad drop")
    tables = [native(drop), saved("-A FORWARD -s 192.0.2.1 -j DROP")]
    notes = list(judge_passed_by(tables, [service("10.1.0.1:80", datapath=datapath)]))
    assert [one.severity for one in notes] == [Severity.NOTE] * bool(kind)
    assert all(kind in one.message and "ip saddr @bad drop" in one.message for one in notes)
    assert not list(judge_passed_by(tables, []))

"""The native nftables rules of this host, through pyroute2: read, never changed.

The nf_tables variant of iptables keeps its rules there too, in tables with names of its own
(`iptables_tables`).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.nftables.main import NFTables

from featherlb.system.firewall import Action, Applies, FilterTable, Hooked, Rule, applies

_FAMILIES = {1: ("inet", {4, 6}), 2: ("ip", {4}), 10: ("ip6", {6})}  # NFPROTO_*
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")  # enum nf_inet_hooks
_IPTABLES = ("raw", "mangle", "nat", "filter", "security")
_UNTRACKED = 0x40  # NF_CT_STATE_UNTRACKED_BIT in linux/netfilter/nf_conntrack_common.h
_ACTIONS = {
    "NF_ACCEPT": Action.ACCEPT,
    "NF_DROP": Action.DROP,
    "NFT_JUMP": Action.JUMP,
    "NFT_GOTO": Action.GOTO,
    "NFT_RETURN": Action.RETURN,
}
_NO_CONDITION = {"counter", "log", "immediate", "reject", "target", "queue", "limit"}
"""Expressions that don't select packets. A `limit` does, but only briefly."""
_REJECT_TARGETS = ("REJECT", "DROP")


def filter_tables(*, with_iptables: bool) -> list[FilterTable]:
    """All tables of the families ip, ip6 and inet; empty if the kernel has no nftables.

    `with_iptables` includes those of iptables' nf_tables variant.
    """
    try:
        with _open() as nft:
            chains, rules = list(nft.get_chains()), list(nft.get_rules())
    except (NetlinkError, OSError):
        return []
    tables: dict[tuple[int, str], list[Any]] = {}
    for chain in chains:
        family, table = chain["nfgen_family"], chain.get_attr("NFTA_CHAIN_TABLE")
        if family in _FAMILIES and (with_iptables or not (family != 1 and table in _IPTABLES)):
            tables.setdefault((family, table), []).append(chain)
    return [
        _table(
            family,
            table,
            members,
            [
                rule
                for rule in rules
                if rule["nfgen_family"] == family and rule.get_attr("NFTA_RULE_TABLE") == table
            ],
        )
        for (family, table), members in tables.items()
    ]


def _table(family: int, table: str, chains: Iterable[Any], rules: Iterable[Any]) -> FilterTable:
    word, versions = _FAMILIES[family]
    found: dict[str, list[Rule]] = {}
    hooked = []
    for chain in chains:
        name = chain.get_attr("NFTA_CHAIN_NAME")
        found[name] = []
        hook = chain.get_attr("NFTA_CHAIN_HOOK")
        if hook is not None and chain.get_attr("NFTA_CHAIN_TYPE") != "nat":
            policy = chain.get_attr("NFTA_CHAIN_POLICY")
            hooked.append(
                Hooked(
                    name,
                    _HOOKS[hook.get_attr("NFTA_HOOK_HOOKNUM")],
                    Action.DROP if policy == 0 else Action.ACCEPT,
                )
            )
    for rule in rules:
        found[rule.get_attr("NFTA_RULE_CHAIN")].append(
            _rule(rule.get_attr("NFTA_RULE_EXPRESSIONS") or ())
        )
    return FilterTable(
        owner="nftables",
        table=f"{word} {table}",
        families=frozenset(versions),
        hooked=tuple(hooked),
        chains={name: tuple(members) for name, members in found.items()},
    )


def _rule(expressions: Sequence[Any]) -> Rule:
    action, chain = Action.OTHER, ""
    names = []
    for expression in expressions:
        name = expression.get_attr("NFTA_EXPR_NAME")
        data = expression.get_attr("NFTA_EXPR_DATA")
        names.append(name)
        if name == "reject" or (
            name == "target" and data.get_attr("NFTA_TARGET_NAME") in _REJECT_TARGETS
        ):
            action = Action.DROP
        elif name == "immediate" and (verdict := _verdict(data)) is not None:
            action = _ACTIONS.get(verdict.get_attr("NFTA_VERDICT_CODE"), Action.OTHER)
            chain = verdict.get_attr("NFTA_VERDICT_CHAIN") or ""
    return Rule(action, _applies(names, expressions), " ".join(names), chain)


def _applies(names: Sequence[str], expressions: Sequence[Any]) -> Applies:
    state = _state(names, expressions)
    rest = names[3:] if state is not None else names
    others = any(name not in _NO_CONDITION for name in rest)
    return applies([] if state is None else [state], others)


def _state(names: Sequence[str], expressions: Sequence[Any]) -> bool | None:
    """Whether a rule that starts with `ct state …` matches untracked packets; None for others."""
    if list(names[:3]) != ["ct", "bitwise", "cmp"]:
        return None
    tracking, mask, comparison = (one.get_attr("NFTA_EXPR_DATA") for one in expressions[:3])
    if tracking.get_attr("NFTA_CT_KEY") != "NFT_CT_STATE":
        return None
    bits = int.from_bytes(mask.get_attr("NFTA_BITWISE_MASK").get_attr("NFTA_DATA_VALUE"), "little")
    wanted = comparison.get_attr("NFTA_CMP_OP") == "NFT_CMP_NEQ"
    return bool(bits & _UNTRACKED) is wanted


def _verdict(data: Any) -> Any:
    value = data.get_attr("NFTA_IMMEDIATE_DATA")
    return value.get_attr("NFTA_DATA_VERDICT") if value is not None else None


@contextmanager
def _open() -> Iterator[Any]:
    # NFPROTO_UNSPEC: dumps cover all families.
    with NFTables(nfgen_family=0) as nft:
        yield nft

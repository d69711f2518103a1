"""docs/packet-path.md and the packet path have the same stages in the same order, the same table of
hooks and the same reasons."""

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, fragment

from featherlb import COMPILED
from featherlb.core.path.hooks import TABLE, Action
from featherlb.model import Datapath, Hook, Protocol
from featherlb.model.reason import DROPPED, PASSED, Reason
from tests.builders import tcp, udp
from tests.world import CLIENT, ONE, VIP, World, service

ROOT = Path(__file__).parents[4]
DOCUMENT = (ROOT / "docs/packet-path.md").read_text()
SOURCE = (ROOT / "featherlb/core/path/balancer.py").read_text()


def methods() -> dict[str, ast.FunctionDef]:
    """The stages of the balancer, in order."""
    (balancer,) = [
        node
        for node in ast.parse(SOURCE).body
        if isinstance(node, ast.ClassDef) and node.name == "Balancer"
    ]
    return {node.name: node for node in balancer.body if isinstance(node, ast.FunctionDef)}


def calls(node: ast.AST) -> list[str]:
    """What a function calls with the packet in hand, as the code has it: its stages."""
    found = [
        (call.lineno, call.col_offset, call.func.attr)
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and [ast.unparse(argument) for argument in call.args] == ["ctx"]
    ]
    return [name for _, _, name in sorted(found)]


HANDLE_PACKET = methods()["handle_packet"]
BRANCHES = {"handle", "look_up_fragment", "translate_fragment", "hand_over"}
"""The stages that are not of every packet."""


def test_the_stages_have_one_order_in_document_and_code() -> None:
    headings = re.findall(r"^## (\d+)\. (.*)$", DOCUMENT, re.MULTILINE)
    assert [int(number) for number, _ in headings] == list(range(1, len(headings) + 1))
    stages = [title.lower().replace(" ", "_") for _, title in headings]
    # `route` is called for fragments, too, which are decided first.
    called = [name for name in calls(HANDLE_PACKET) if name not in BRANCHES]
    called.remove("route")
    assert called == stages
    assert [name for name in methods() if name in stages] == stages


def test_a_stage_takes_the_packet_in_hand_and_answers_with_a_number() -> None:
    own = methods()
    for name in calls(HANDLE_PACKET):
        if name in own:
            assert ast.unparse(own[name].args) == "self, ctx: Context"
            assert ast.unparse(own[name].returns or own[name]) == "int"


@contextmanager
def recorded(stages: list[str]) -> Iterator[None]:
    """Note the stages that are called inside, by the interpreter's own record."""
    known = set(calls(HANDLE_PACKET))

    def note(frame: Any, event: str, _: object) -> None:
        if event == "call" and "/core/path/" in frame.f_code.co_filename:
            name = frame.f_code.co_name
            called_by_path = frame.f_back and frame.f_back.f_code.co_name == "handle_packet"
            if name in known and called_by_path:
                stages.append(name.replace("_", " "))

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


def rows(first: str) -> dict[str, list[str]]:
    """The table of the document whose head begins with this cell, by first cells."""
    table = DOCUMENT[DOCUMENT.index(f"\n| {first} | ") + 1 :].partition("\n\n")[0]
    split = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return {cells[0]: cells[1:] for cells in split if not cells[0].startswith("---")}


@pytest.mark.skipif(COMPILED, reason="only the interpreter records calls")
@pytest.mark.parametrize("datapath", Datapath)
def test_the_stages_that_a_packet_passes_through(datapath: Datapath) -> None:
    table = rows("packet")
    column = table["packet"].index(f"`{datapath}`")
    documented = {packet: cells[column] for packet, cells in table.items()}
    world = World(
        service(ONE, datapath=datapath),
        service(ONE, name="dns", protocol=Protocol.UDP, datapath=datapath),
    )
    hook = Hook.WIRE if datapath is Datapath.RAW else Hook.PREROUTING
    pieces = [bytes(piece) for piece in fragment(IP(udp(CLIENT, VIP, bytes(4000))), 1200)]
    sent = {
        "opens a flow": tcp(CLIENT, VIP, "S"),
        "of a known flow": tcp(CLIENT, VIP, "A"),
        "first fragment": pieces[0],
        "later fragment": pieces[1],
    }
    for packet, content in sent.items():
        stages: list[str] = []
        with recorded(stages):
            world.handle(content, hook)
        if not documented.get(packet, "none").startswith("none"):
            assert ", ".join(stages) == documented[packet]


def test_the_table_of_hooks() -> None:
    table = rows("row")
    assert table.pop("row")[1:] == [hook.name for hook in Hook]
    assert {row: cells[1:] for row, cells in table.items()} == {
        row.name: [Action(action).name.lower() for action in actions]
        for row, actions in TABLE.items()
    }


def test_every_reason_is_explained_with_its_fate() -> None:
    table = rows("reason")
    assert all(len(meaning) > 1 for _, meaning in table.values())
    assert [(reason, fate) for reason, (fate, _) in table.items()] == [
        ("reason", "fate"),
        *(
            (
                reason.label,
                "dropped" if reason in DROPPED else "passed" if reason in PASSED else "translated",
            )
            for reason in Reason
        ),
    ]

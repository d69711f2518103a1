"""The table of transitions against scenarios, a second description of it, and its own diagram."""

import re

import pytest

from featherlb.core.flows import tcp_state
from featherlb.core.flows.tcp_state import (
    ACTIVE,
    FORWARD,
    REPLY,
    REUSABLE,
    TIMEOUT_CLASS,
    TRANSITIONS,
    Event,
    State,
    TimeoutClass,
)

TCP_STATES = [
    State.NEW,
    State.SYN_SENT,
    State.SYN_RECEIVED,
    State.ESTABLISHED,
    State.FIN_WAIT,
    State.CLOSE_WAIT,
    State.CLOSING,
    State.CLOSED,
    State.SYN_RETRIED,
    State.ADOPTED,
]
EVENTS = {event.name.replace("_", "-"): event for event in Event}


def follow(story: str, state: State = State.NEW) -> list[State]:
    """The states after each step of a story such as `>SYN <SYN-ACK`."""
    states = []
    for step in story.split():
        direction = FORWARD if step[0] == ">" else REPLY
        state = TRANSITIONS[state][direction][EVENTS[step[1:]]]
        states.append(state)
    return states


STORIES = {
    "the client closes first": (
        ">SYN <SYN-ACK >ACK >ACK <ACK >FIN <ACK <FIN >ACK",
        "SYN_SENT SYN_RECEIVED ESTABLISHED ESTABLISHED ESTABLISHED FIN_WAIT FIN_WAIT CLOSING "
        "CLOSING",
    ),
    "the backend closes first": (
        ">SYN <SYN-ACK >ACK <FIN >ACK >FIN <ACK",
        "SYN_SENT SYN_RECEIVED ESTABLISHED CLOSE_WAIT CLOSE_WAIT CLOSING CLOSING",
    ),
    "both close at once": (
        ">SYN <SYN-ACK >ACK >FIN <FIN <ACK >ACK",
        "SYN_SENT SYN_RECEIVED ESTABLISHED FIN_WAIT CLOSING CLOSING CLOSING",
    ),
    "data goes on after a half close": (
        ">SYN <SYN-ACK >ACK >FIN <ACK <ACK >ACK <ACK",
        "SYN_SENT SYN_RECEIVED ESTABLISHED FIN_WAIT FIN_WAIT FIN_WAIT FIN_WAIT FIN_WAIT",
    ),
    "a FIN is sent again": (
        ">SYN <SYN-ACK >ACK >FIN >FIN <FIN <FIN >FIN",
        "SYN_SENT SYN_RECEIVED ESTABLISHED FIN_WAIT FIN_WAIT CLOSING CLOSING CLOSING",
    ),
    "the backend refuses": (">SYN <RST", "SYN_SENT CLOSED"),
    "the backend refuses late": (">SYN >SYN <RST", "SYN_SENT SYN_RETRIED CLOSED"),
    "the client gives up its attempt": (
        ">SYN <SYN-ACK >RST",
        "SYN_SENT SYN_RECEIVED CLOSED",
    ),
    "SYN and SYN-ACK are sent again": (
        ">SYN >SYN >SYN <SYN-ACK >SYN <SYN-ACK >ACK",
        "SYN_SENT SYN_RETRIED SYN_RETRIED SYN_RECEIVED SYN_RECEIVED SYN_RECEIVED ESTABLISHED",
    ),
    "nobody but the backend answers a SYN": (">SYN >ACK >FIN", "SYN_SENT SYN_SENT SYN_SENT"),
    "an ACK from the backend is no SYN-ACK": (">SYN <ACK <FIN", "SYN_SENT SYN_SENT SYN_SENT"),
    "the SYN-ACK's acknowledgement carries the FIN": (
        ">SYN <SYN-ACK >FIN <FIN",
        "SYN_SENT SYN_RECEIVED FIN_WAIT CLOSING",
    ),
    "the backend closes before the handshake's ACK was seen": (
        ">SYN <SYN-ACK <FIN >ACK >FIN",
        "SYN_SENT SYN_RECEIVED CLOSE_WAIT CLOSE_WAIT CLOSING",
    ),
    "a connection is adopted": (
        ">ACK >ACK <ACK >FIN <FIN",
        "ADOPTED ADOPTED ESTABLISHED FIN_WAIT CLOSING",
    ),
    "a closing connection is adopted": (">FIN <FIN", "ADOPTED CLOSE_WAIT"),
    "the backend knows nothing of the adopted one": (">ACK <RST", "ADOPTED CLOSED"),
    "the client's port was adopted before it connects": (
        ">ACK >SYN <SYN-ACK >ACK",
        "ADOPTED SYN_SENT SYN_RECEIVED ESTABLISHED",
    ),
    "a reset one is adopted": (">RST", "CLOSED"),
    "stragglers after a reset": (
        ">SYN <SYN-ACK >ACK <RST >ACK <ACK >FIN <FIN >SYN <SYN-ACK",
        "SYN_SENT SYN_RECEIVED ESTABLISHED" + " CLOSED" * 7,
    ),
    "a SYN on a live connection": (
        ">SYN <SYN-ACK >ACK >SYN <ACK >RST",
        "SYN_SENT SYN_RECEIVED ESTABLISHED ESTABLISHED ESTABLISHED CLOSED",
    ),
}


@pytest.mark.parametrize(("story", "states"), STORIES.values(), ids=STORIES.keys())
def test_stories(story: str, states: str) -> None:
    assert [state.name for state in follow(story)] == states.split()


def described(state: State, direction: int, event: Event) -> State:
    """What the table must say, from three facts: how far the handshake is, who has sent a FIN,
    and whether there was a RST."""
    if event is Event.RST or state is State.CLOSED:
        return State.CLOSED
    closed = {
        State.FIN_WAIT: {FORWARD},
        State.CLOSE_WAIT: {REPLY},
        State.CLOSING: {FORWARD, REPLY},
    }.get(state, set())
    if state is State.NEW:
        if direction == REPLY:
            return state
        return State.SYN_SENT if event is Event.SYN else State.ADOPTED
    answered = direction == REPLY and event is Event.SYN_ACK
    if state in (State.SYN_SENT, State.SYN_RETRIED):
        repeated = direction == FORWARD and event is Event.SYN
        return State.SYN_RECEIVED if answered else State.SYN_RETRIED if repeated else state
    if state is State.ADOPTED:
        if answered:
            return State.SYN_RECEIVED
        if direction == FORWARD or event is Event.SYN:
            return State.SYN_SENT if direction == FORWARD and event is Event.SYN else state
    if state is State.SYN_RECEIVED and event is not Event.FIN:
        completed = direction == FORWARD and event is Event.ACK
        return State.ESTABLISHED if completed else state
    if event is Event.FIN:
        closed = closed | {direction}
    return {
        frozenset[int](): State.ESTABLISHED,
        frozenset({FORWARD}): State.FIN_WAIT,
        frozenset({REPLY}): State.CLOSE_WAIT,
        frozenset({FORWARD, REPLY}): State.CLOSING,
    }[frozenset(closed)]


@pytest.mark.parametrize("state", TCP_STATES)
@pytest.mark.parametrize("direction", [FORWARD, REPLY], ids=["forward", "reply"])
def test_every_cell(state: State, direction: int) -> None:
    expected = [described(state, direction, event) for event in Event]
    assert list(TRANSITIONS[state][direction]) == expected


def test_every_state_has_all_cells_and_a_timeout() -> None:
    assert len(TRANSITIONS) == len(State)
    assert all(len(row) == 2 for row in TRANSITIONS)
    assert all(len(cells) == len(Event) for row in TRANSITIONS for cells in row)
    assert set(TIMEOUT_CLASS) == set(State)


def test_every_state_is_reached_and_can_end() -> None:
    reached, todo = {State.NEW}, [State.NEW]
    while todo:
        for cells in TRANSITIONS[todo.pop()]:
            for following in set(cells) - reached:
                reached.add(following)
                todo.append(following)
    assert set(TCP_STATES) <= reached


def test_active_flows_are_those_that_the_backend_has_not_closed() -> None:
    assert {state for state in TCP_STATES if state in ACTIVE} == {
        State.SYN_SENT,
        State.SYN_RETRIED,
        State.SYN_RECEIVED,
        State.ADOPTED,
        State.ESTABLISHED,
        State.FIN_WAIT,
    }
    assert {state for state in TCP_STATES if state in REUSABLE} == {
        State.FIN_WAIT,
        State.CLOSE_WAIT,
        State.CLOSING,
        State.CLOSED,
    }


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (State.SYN_SENT, TimeoutClass.HALF_OPEN),
        (State.SYN_RETRIED, TimeoutClass.HALF_OPEN),
        (State.SYN_RECEIVED, TimeoutClass.HALF_OPEN),
        (State.ADOPTED, TimeoutClass.HALF_OPEN),
        (State.ESTABLISHED, TimeoutClass.ESTABLISHED),
        (State.FIN_WAIT, TimeoutClass.FIN),
        (State.CLOSE_WAIT, TimeoutClass.FIN),
        (State.CLOSING, TimeoutClass.CLOSED),
        (State.CLOSED, TimeoutClass.CLOSED),
    ],
)
def test_timeout_classes(state: State, kind: TimeoutClass) -> None:
    assert TIMEOUT_CLASS[state] is kind


def test_the_diagram_is_the_table() -> None:
    text = tcp_state.__doc__ or ""
    arrows = re.findall(r"(\w+) ─([A-Z-]+)([→←]) (?=(\w+))", text)
    drawn = [arrow for arrow in arrows if arrow[0] in State.__members__]
    assert len(drawn) == 11
    for name, event, arrow, following in drawn:
        direction = FORWARD if arrow == "→" else REPLY
        assert TRANSITIONS[State[name]][direction][EVENTS[event]] is State[following]
    assert "any ─RST→ or ─RST← CLOSED" in text

"""Frames: whatever is received, it is frames or no node."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherlb.cluster.wire import (
    LONGEST,
    Frame,
    Greeting,
    NodeState,
    Reader,
    WireError,
    dump,
    frame,
    load_greeting,
    load_state,
    number_of,
)


@given(st.lists(st.tuples(st.sampled_from(Frame), st.binary(max_size=64))), st.integers(1, 7))
def test_frames_arrive_as_they_were_sent(sent: list[tuple[Frame, bytes]], size: int) -> None:
    stream = b"".join(frame(kind, content) for kind, content in sent)
    reader = Reader()
    parts = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert [one for part in parts for one in reader.feed(part)] == sent


@given(st.binary(max_size=200))
def test_garbage_is_frames_or_refused(data: bytes) -> None:
    reader = Reader()
    try:
        frames = reader.feed(data)
    except WireError:
        return
    assert sum(5 + len(content) for _, content in frames) <= len(data)


@pytest.mark.parametrize("length", [0, LONGEST + 2, 0xFFFFFFFF])
def test_a_frame_of_an_impossible_length_is_refused_before_it_is_stored(length: int) -> None:
    with pytest.raises(WireError, match=f"a frame of {length} bytes"):
        Reader().feed(struct.pack("<IB", length, Frame.FLOWS))


def test_greetings_and_states_survive_the_way() -> None:
    greeting, state = Greeting("lb1"), NodeState("abc", True)
    assert load_greeting(dump(greeting)) == greeting
    assert load_state(dump(state)) == state


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"{}",
        json.dumps({"digest": "", "ready": 1, "flows": 0}).encode(),
        json.dumps({"digest": "", "ready": True, "flows": 0, "more": 1}).encode(),
    ],
)
def test_what_is_no_state_is_refused(content: bytes) -> None:
    with pytest.raises(WireError):
        load_state(content)


@pytest.mark.parametrize(
    ("theirs", "why"),
    [
        (Greeting("lb1"), "both nodes are called lb1"),
        (Greeting("lb2", version=2), "protocol version 2, and lb1 has 1"),
        (Greeting("lb2", layout=99), "record layout"),
        (Greeting("lb2", byteorder="middle"), "byte order middle"),
        (Greeting("lb2"), ""),
    ],
)
def test_who_can_be_synchronised(theirs: Greeting, why: str) -> None:
    assert why in (refusal := theirs.refusal(Greeting("lb1")))
    assert bool(refusal) == bool(why)


def test_a_nodes_number_is_never_none() -> None:
    assert number_of("lb1") != number_of("lb2") != 0

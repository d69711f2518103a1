"""What a worker sends is data: it comes back as it was, or not at all."""

import pickle
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherlb.worker.data import dump, load
from featherlb.worker.protocol import Failed, FromWorker, Log, Outcomes

MESSAGES = st.one_of(*(st.from_type(kind) for kind in get_args(FromWorker)))


@given(message=MESSAGES)
@settings(max_examples=20, deadline=None)
def test_there_and_back(message: object) -> None:
    found = load(dump(message, FromWorker), FromWorker)
    # As text: NaN, which a field may hold, is unlike itself.
    assert (type(found), repr(found)) == (type(message), repr(message))


@given(
    message=MESSAGES,
    changes=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=5),
    end=st.integers(0, 1 << 16),
)
@settings(max_examples=40, deadline=None)
def test_changed_bytes_are_no_message_or_one_of_these_types(
    message: object, changes: list[tuple[int, int]], end: int
) -> None:
    data = bytearray(dump(message, FromWorker))[:end] or bytearray(1)
    for place, value in changes:
        data[place % len(data)] = value
    try:
        found = load(bytes(data), FromWorker)
    except ValueError:
        return
    # Whatever it says now, it is what it could have been from the start.
    assert repr(load(dump(found, FromWorker), FromWorker)) == repr(found)


class Exploit:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return self.path.touch, ()


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    content = pickle.dumps(Exploit(path))
    with pytest.raises(ValueError, match=r".*"):
        load(content, FromWorker)
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'["Log",["x","text"]]', "'x' is no int"),
        (b'["Log",[true,"text"]]', "True is no int"),
        (b'["Log",[1]]', "another length"),
        (b'["Start",[1]]', "KeyError"),
        (b'["Outcomes",[[["web",[1.5]]],false,0,[],[]]]', "1.5 is no int"),
        (b"[" * 100_000, "RecursionError"),
    ],
)
def test_what_is_wrong_is_said(text: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load(len(text).to_bytes(4, "little") + text, FromWorker)


def test_text_need_not_be_unicode() -> None:
    assert load(dump(Outcomes({"web": (1, 2)}), FromWorker), FromWorker) == Outcomes(
        {"web": (1, 2)}
    )
    assert load(dump(Log(10, "\udc80"), FromWorker), FromWorker) == Log(10, "\udc80")
    assert load(dump(Failed("x"), FromWorker), FromWorker) == Failed("x")

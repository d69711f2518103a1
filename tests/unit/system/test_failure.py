"""Exceptions in one line."""

import pytest

from featherlb.config.file import parse
from featherlb.model.errors import ConfigError, HostError
from featherlb.system.failure import explain, sentence


def test_the_place_is_the_last_one_in_featherlb() -> None:
    with pytest.raises(TypeError) as caught:
        parse(7, "f")  # type: ignore[arg-type]
    line = explain(caught.value)
    assert line.startswith("TypeError: ")
    # PyYAML is where it was raised.
    assert line.partition(" (")[2].startswith("config/loader.py:")


def test_an_exception_without_a_message_or_a_place() -> None:
    assert explain(KeyError()) == "KeyError"
    assert explain(ValueError("two\nlines")) == "ValueError: two lines"


def test_featherlbs_own_errors_are_sentences_already() -> None:
    assert sentence(HostError("no room")) == "no room"
    assert sentence(ConfigError(["a", "b"])) == "a\nb"
    assert sentence(OSError(24, "no descriptors")) == "OSError: [Errno 24] no descriptors"

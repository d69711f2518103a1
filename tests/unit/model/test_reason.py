"""Reasons: each has one fate and a name for people."""

import re

import pytest

from featherlb.model.reason import DROPPED, PASSED, TRANSLATED, Reason


def test_every_reason_has_exactly_one_fate() -> None:
    assert set(Reason) == TRANSLATED | PASSED | DROPPED
    assert len(TRANSLATED) + len(PASSED) + len(DROPPED) == len(Reason)


def test_directions_are_the_numbers_of_their_reasons() -> None:
    """The packet path counts a translated packet under its direction: 0 forward, 1 reply."""
    assert {int(reason) for reason in TRANSLATED - {Reason.ICMP_ERROR}} == {0, 1}
    assert (Reason.FORWARD, Reason.REPLY) == (0, 1)


@pytest.mark.parametrize("reason", Reason)
def test_labels_are_words_with_dashes(reason: Reason) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", reason.label)


def test_a_label() -> None:
    assert Reason.NO_SOURCE_PORT.label == "no-source-port"

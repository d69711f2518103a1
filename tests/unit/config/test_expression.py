"""Conditions on metrics: what they mean, and what is none."""

import pytest

from featherlb.config.expression import WINDOW, Condition, Samples, UnknownMetricError, Watch

SAMPLES: Samples = {
    "flows": [({"worker": "0"}, 3.0), ({"worker": "1"}, 4.0)],
    "packets": [({"result": "dropped"}, 10.0), ({"result": "passed"}, 5.0)],
    "none": [],
}


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("flows == 7", True),
        ("flows(worker='1') == 4", True),
        ("flows(worker='9') == 0", True),
        ("packets(result='dropped') / packets > 0.6", True),
        ("packets(result='dropped') / packets > 0.7", False),
        ("none / none == 0", True),
        ("not flows > 8 and (packets < 2 or 2 + 3 * 4 - 1 == 13)", True),
        ("1 < flows < 7", False),
        ("-flows < -6.5", True),
        ("rate(flows) > 0", False),
    ],
)
def test_what_a_condition_means(text: str, true: bool) -> None:
    assert Watch(Condition.parse(text)).is_true(SAMPLES, 1.0) is true


def test_a_rate_is_taken_over_a_window() -> None:
    watch = Watch(Condition.parse("flows > 1000000 or rate(flows) >= 5"))

    def look(now: float, value: float) -> bool:
        return watch.is_true({"flows": [({}, value)]}, now)

    assert not look(0, 100)
    assert look(1, 105)
    assert not look(2, 109)
    # What was before the window doesn't count.
    assert not look(2 + WINDOW, 109)
    assert look(3 + WINDOW, 109 + 5 * WINDOW + 5)
    # Another worker counts from 0.
    assert not look(4 + WINDOW, 3)


def test_a_metric_that_is_not_there() -> None:
    with pytest.raises(UnknownMetricError, match="drops"):
        Watch(Condition.parse("flows > 100 or drops > 1")).is_true(SAMPLES, 1.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "flows >",
        "flows > 'x'",
        "True",
        "flows > 1j",
        "x = 3",
        "flows if packets else none",
        "flows.real > 1",
        "flows[0] > 1",
        "flows ** 2 > 1",
        "flows is packets",
        "rate(rate(flows)) > 1",
        "rate(3) > 1",
        "rate(flows, 3) > 1",
        "flows() > 1",
        "flows('0') > 1",
        "flows(worker=0) > 1",
        "flows(**none) > 1",
        "(lambda: 1)() > 1",
        "__import__('os').system('true')",
        "[flows]",
        "flows > " + "(" * 300 + "1" + ")" * 300,
    ],
)
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(ValueError, match="is no condition"):
        Condition.parse(text)

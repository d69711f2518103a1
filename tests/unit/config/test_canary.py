"""When the trial of a canary fails: the conditions."""

import pytest

from featherlb.config.canary import DEFAULT_CONDITION, METRICS, condition, metrics_of, of_others
from featherlb.config.expression import Watch


def fails(text: str, own: float, others: float) -> bool:
    """Whether it is true if all metrics of the canary and of the others have these values."""
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for metric in METRICS:
        samples[metric], samples[of_others(metric)] = [({}, own)], [({}, others)]
    return Watch(condition(text)).is_true(samples, 0)


@pytest.mark.parametrize(
    ("text", "own", "others", "expected"),
    [
        ("failures > 2 * others", 0.11, 0.05, True),
        ("failures > 2 * others", 0.09, 0.05, False),
        ("others * 2 < failures", 0.11, 0.05, True),
        ("latency - others > 0.01", 0.05, 0.03, True),
        ("resets > 0.1 or latency > 1.5 * others", 0.05, 0.03, True),
        ("resets > 0.1 and latency > 1.5 * others", 0.05, 0.03, False),
        ("0.01 < timeouts <= others", 0.02, 0.03, True),
        ("failures > 2 * others", float("nan"), 0.0, False),
        ("failures > 2 * others", 1.0, float("nan"), False),
        (DEFAULT_CONDITION, 0.05, 0.0, False),
        (DEFAULT_CONDITION, 0.06, 0.0, True),
    ],
)
def test_a_condition_compares_the_canary_with_the_others(
    text: str, own: float, others: float, expected: bool
) -> None:
    assert fails(text, own, others) is expected
    assert str(condition(text)) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("failures >", ""),
        ("failures", ": 'failures' compares nothing"),
        ("failure > others", ": there is no failure"),
        ("others > 3", ": 'others > 3' is not about one metric"),
        ("failures > latency", ": 'failures > latency' is not about one metric"),
        ("rate(failures) > 2", ": it is about one canary and has no labels or rates"),
        ("failures > 2 ** others", ": '2 ** others' is not understood"),
        ("not failures > others", ": 'not failures > others' compares nothing"),
        ("__import__('os') > 1", ": '__import__('os')' is not understood"),
    ],
)
def test_a_fault_is_named(text: str, why: str) -> None:
    with pytest.raises(ValueError, match="is no condition") as caught:
        condition(text)
    assert str(caught.value).startswith(f"'{text}' is no condition{why} (expected one such as")


def test_the_metrics_of_a_condition() -> None:
    found = metrics_of(condition("latency > 2 * others or failures > 0.1"))
    assert found == ["failures", "latency"]

"""scripts/bench/redispatch.py: what counts as an answer, and its table."""

import pytest

from scripts.bench.redispatch import describe, is_page, summed


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nbackend8080\n", True),
        (b"", False),  # a proxy accepts before it knows of a server, and then closes
        (b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nback", False),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n\n", False),
    ],
)
def test_only_a_whole_page_is_an_answer(answer: bytes, expected: bool) -> None:
    assert is_page(answer) is expected


def test_the_table_counts_failures_and_late_answers() -> None:
    times = [0.0004, 0.0004, 0.02, 1.02, 3.1, None, None, None]
    row = describe([summed("haproxy", "1 serves", times)]).splitlines()[-1]
    assert row == ("| haproxy | 1 serves | 3 of 8 | 20.00 ms | 3,100.0 ms | 25.0% | 50.0% |")


def test_nobody_answered() -> None:
    row = describe([summed("haproxy", "1 serves", [None, None])]).splitlines()[-1]
    assert row == "| haproxy | 1 serves | 2 of 2 | nan ms | nan ms | 0.0% | 0.0% |"

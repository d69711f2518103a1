"""docs/packet-path.md and the packet path have the same stages and the same reasons."""

import re
from pathlib import Path

from featherlb.model.reason import DROPPED, PASSED, Reason

ROOT = Path(__file__).parents[4]
DOCUMENT = (ROOT / "docs/packet-path.md").read_text()
SOURCE = (ROOT / "featherlb/core/path/balancer.py").read_text()


def test_the_stages_have_the_numbers_and_names_of_the_comments() -> None:
    # A comment that names several ("3. to 5.") is about where they begin.
    comments = re.findall(r"^ +# (\d+)\. ([A-Z][^.:,]*)", SOURCE, re.MULTILINE)
    headings = re.findall(r"^## (\d+)\. (.*)$", DOCUMENT, re.MULTILINE)
    assert sorted(comments) == headings
    assert [int(number) for number, _ in headings] == list(range(1, len(headings) + 1))


def test_every_reason_is_explained_with_its_fate() -> None:
    rows = re.findall(r"^\| ([a-z-]+) \| ([a-z]+) \| \S.* \|$", DOCUMENT, re.MULTILINE)
    assert rows == [
        ("reason", "fate"),
        *(
            (
                reason.label,
                "dropped" if reason in DROPPED else "passed" if reason in PASSED else "translated",
            )
            for reason in Reason
        ),
    ]

"""What `pytest --one-of-each` chooses of the kernel tests."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEST = re.compile(r"(^@pytest\.mark\.no_packets.*\n(?:@.*\n)*)?^def (test_\w+)", re.MULTILINE)
"""A test, and what marks it as none that packets pass."""
ALL_WITHOUT = re.compile(r"^pytestmark = (?:.+\n)*?.*no_packets", re.MULTILINE)


def test_each_function_has_one_case_and_each_driver_its_turn() -> None:
    command = [sys.executable, "-m", "pytest", "tests/netns", "--one-of-each", "--collect-only"]
    done = subprocess.run([*command, "-q"], cwd=ROOT, capture_output=True, text=True, check=True)
    cases = [line for line in done.stdout.splitlines() if "::" in line]
    assert sorted(case.partition("[")[0] for case in cases) == sorted(
        f"tests/netns/{path.name}::{name}"
        for path in (ROOT / "tests/netns").glob("test_*.py")
        if not ALL_WITHOUT.search(text := path.read_text())
        for marked, name in TEST.findall(text)
        if not marked
    )
    words = Counter(word for case in cases for word in re.split(r"[\[\]-]", case)[1:])
    assert min(words[name] for name in ("netlink", "netfilterqueue", "raw", "offload")) >= 10
    assert min(words[name] for name in ("dnat", "full")) >= 20

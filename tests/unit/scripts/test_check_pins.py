"""The check of what the image installs, on this tree and on copies with a fault each."""

import shutil
from pathlib import Path

import pytest

from scripts.check_pins import BUILD, RUN, check

ROOT = Path(__file__).parents[3]
HASH = f" --hash=sha256:{'0' * 64}"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    (tmp_path / "docker").mkdir()
    for file in (RUN, BUILD, "pyproject.toml", "Dockerfile"):
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def test_this_tree_is_right() -> None:
    assert check(ROOT) == []


@pytest.mark.parametrize(
    ("file", "before", "after", "fault"),
    [
        (RUN, "\naiohttp==", "\naiohttp>=", "'aiohttp>="),
        (RUN, "\nyarl==", "\nnothing==1.0\nyarl==", "'nothing==1.0' is not a version with hashes"),
        (
            RUN,
            "\nyarl==",
            f"\nnothing==1.0{HASH}\nyarl==",
            "nothing needs nothing: run `make lock`",
        ),
        (RUN, "\nmultidict==", "\nnothing==", "multidict is not pinned: run `make lock`"),
        (BUILD, "\nsetuptools==", f"\nsetuptools==7{HASH}\nother==", "setuptools is 7, and "),
        ("pyproject.toml", '"click>=8.1"', '"click>=88"', "and click>=88 is asked for"),
        ("pyproject.toml", '"click>=8.1"', '"clock>=8.1"', "clock is not installed here"),
        ("Dockerfile", "--require-hashes", "--no-cache", "checks no hashes"),
    ],
)
def test_a_fault_is_found(copy: Path, file: str, before: str, after: str, fault: str) -> None:
    content = (copy / file).read_text()
    assert before in content
    (copy / file).write_text(content.replace(before, after, 1))
    found = check(copy)
    assert any(fault in line for line in found), found

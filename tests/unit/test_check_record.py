"""scripts/check_record.py, run as a program on this tree and on copies that were changed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("featherlb", "scripts", "tests")


def run(root: Path, *arguments: str) -> tuple[int, str]:
    script = root / "scripts" / "check_record.py"
    process = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, check=False
    )
    assert not process.stderr
    return process.returncode, process.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    return tmp_path


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_this_tree() -> None:
    assert run(ROOT) == (0, "")


def test_the_c_structure_follows_the_table(tree: Path) -> None:
    edit(
        tree / "featherlb/core/flows/record.py",
        'Field("queue", "uint8_t"',
        'Field("line", "uint8_t"',
    )
    pxd = tree / "featherlb/core/flows/record.pxd"
    before = pxd.read_text()
    code, output = run(tree)
    assert (code, pxd.read_text()) == (1, before)
    assert "--write" in output
    assert run(tree, "--write") == (0, "")
    assert pxd.read_text() == before.replace("uint8_t queue", "uint8_t line")
    assert run(tree) == (0, "")


def test_so_do_the_types(tree: Path) -> None:
    source = tree / "featherlb/core/flows/record_types.py"
    before = source.read_text()
    edit(source, "    queue: int", "    line: int")
    code, output = run(tree)
    assert code == 1
    assert output.startswith("featherlb/core/flows/record_types.py differs")
    assert run(tree, "--write") == (0, "")
    assert source.read_text() == before


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("featherlb/core/path/nat.py", "low = flows.u64[flow * 16 + 5]"),
        ("featherlb/core/flows/table.py", "state = memory[(ref >> 1) * 128 + 121]"),
        ("tests/unit/core/path/test_nat.py", "records[2 * 128 : 3*128]"),
    ],
)
def test_nobody_else_computes_where_a_record_stands(tree: Path, file: str, line: str) -> None:
    path = tree / file
    number = len(path.read_text().splitlines()) + 1
    path.write_text(f"{path.read_text()}{line}\n")
    code, output = run(tree)
    assert code == 1
    assert output.startswith(f"{file}:{number}: {line}\n")

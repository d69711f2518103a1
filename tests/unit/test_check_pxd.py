"""scripts/check_pxd.py, on a small module and on this project."""

from pathlib import Path

import pytest

from scripts.check_pxd import main

ROOT = Path(__file__).parents[2]
SOURCE = """\
import cython

from featherlb.net.checksum import words

if not cython.compiled:
    from featherlb.net.packet import SYN

LIMIT = 64
FIRST, LAST = 0, 9

class Table:
    def __init__(self, flows: object) -> None:
        self.flows = flows
        self.used, self.free = 0, LIMIT
        self.slots[0].length = 1

    def find(self, key: int, limit: int) -> int:
        for i in range(limit):
            at = i
        return at

def fold(total: int) -> int:
    return total
"""
TYPES = """\
cimport cython
from featherlb.core.flows.table cimport FlowTable
from featherlb.net.checksum cimport words
from featherlb.net.packet cimport SYN

cdef extern from "<errno.h>" nogil:
    int c_errno "errno"

cdef int LIMIT
cdef unsigned int FIRST, LAST


cdef class Table:
    cdef FlowTable flows
    cdef readonly Py_ssize_t used, free
    cdef unsigned char[::1] slots[64]

    @cython.locals(i=cython.int, at=cython.Py_ssize_t)
    cpdef Py_ssize_t find(self, unsigned long long key, Py_ssize_t limit) except -1

cdef unsigned int fold(total) noexcept
"""


def write(root: Path, source: str, types: str) -> None:
    package = root / "featherlb"
    package.mkdir()
    (package / "table.py").write_text(source)
    (package / "table.pxd").write_text(types)


def test_this_project_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    assert (main(ROOT), capsys.readouterr().out) == (0, "")


def test_what_agrees_is_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, SOURCE, TYPES)
    assert (main(tmp_path), capsys.readouterr().out) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (
            "cimport words",
            "cimport update",
            "3: update of featherlb.net.checksum is not imported there",
        ),
        ("cdef int LIMIT", "cdef int LIMITS", "9: LIMITS is not assigned there"),
        ("FIRST, LAST", "FIRST, LASTLY", "10: LASTLY is not assigned there"),
        ("class Table", "class Tables", "13: class Tables is not defined there"),
        ("used, free", "used, lost", "15: Table does not assign lost there"),
        ("at=cython", "to=cython", "19: find() does not assign its local to there"),
        ("Py_ssize_t find(", "Py_ssize_t seek(", "19: seek() is not defined there"),
        (
            "unsigned long long key, Py_ssize_t limit",
            "Py_ssize_t limit, unsigned long long key",
            "19: find(self, limit, key) has the parameters self, key, limit there",
        ),
        ("fold(total)", "fold(sum)", "21: fold(sum) has the parameters total there"),
        (
            "cdef unsigned int fold",
            "cdef nothing ???",
            "21: Syntax error in C variable declaration",
        ),
    ],
)
def test_what_differs_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, fault: str
) -> None:
    assert TYPES.count(old) == 1
    write(tmp_path, SOURCE, TYPES.replace(old, new))
    assert main(tmp_path) == 1
    assert capsys.readouterr().out == f"featherlb/table.pxd:{fault}\n"


def test_what_only_the_interpreter_imports_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, SOURCE.replace("import SYN", "import RST, SYN"), TYPES)
    fault = "RST of featherlb.net.packet is not cimported (table.py:6 imports it)"
    assert main(tmp_path) == 1
    assert capsys.readouterr().out == f"featherlb/table.pxd:1: {fault}\n"


def test_types_of_nothing_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, SOURCE, TYPES)
    (tmp_path / "featherlb" / "table.py").unlink()
    assert main(tmp_path) == 1
    assert capsys.readouterr().out == "featherlb/table.pxd:1: there is no table.py\n"

"""Who else may change what root runs."""

import os
from pathlib import Path

import pytest

from featherlb.system import trust

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "directory" / "check.sh"
    path.parent.mkdir(mode=0o755)
    path.write_text("")
    path.chmod(0o755)
    return path


def test_what_root_alone_may_change(program: Path) -> None:
    assert trust.fault(program) == ""
    assert trust.fault(program.with_name("absent")) == ""


def test_modes_and_owners_of_file_and_directories(program: Path) -> None:
    for part in (program, program.parent):
        part.chmod(0o757)
        assert trust.fault(program) == f"{part} may be written by others (mode 0757)"
        part.chmod(0o775)
        assert trust.fault(program) == ""  # root's group
        os.chown(part, 0, 1234)
        assert trust.fault(program) == f"{part} may be written by others (mode 0775)"
        os.chown(part, 1234, 0)
        assert trust.fault(program) == f"{part} belongs to user 1234"
        os.chown(part, 0, 0)
    program.parent.chmod(0o1777)
    assert trust.fault(program) == ""  # others can't replace it there


def test_a_link_and_what_it_leads_to(program: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(program)
    assert trust.fault(link) == ""
    program.chmod(0o777)
    assert trust.fault(link) == f"{program} may be written by others (mode 0777)"
    program.chmod(0o755)
    os.lchown(link, 1234, 1234)
    assert trust.fault(link) == f"{link} belongs to user 1234"


def test_a_search_path_without_what_others_may_change(program: Path) -> None:
    good = str(program.parent)
    assert trust.search_path(f"/usr/bin::.:bin:{good}:/tmp") == f"/usr/bin:{good}"
    program.parent.chmod(0o777)
    assert trust.search_path(f"{good}:/usr/bin") == "/usr/bin"

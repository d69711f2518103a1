"""Files that root must not believe, and links that it must not follow."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from featherlb.system import state_file
from featherlb.system.state_file import UnusableError, open_to_read, open_to_write, set_aside


def link(path: Path) -> None:
    target = path.with_name("target")
    target.write_text("of somebody else")
    path.symlink_to(target)


def writable(path: Path) -> None:
    path.write_text("")
    path.chmod(0o666)


def of_another(path: Path) -> None:
    path.write_text("")
    os.chown(path, 1234, 1234)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (link, "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (Path.mkdir, "not a regular file"),
        (writable, "others may write it (mode 0666)"),
        pytest.param(
            of_another,
            "user 1234 owns it",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_must_not_be_used(
    tmp_path: Path, make: Callable[[Path], None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "0.json"
    make(path)
    with pytest.raises(UnusableError) as caught:
        open_to_read(path)
    assert reason in str(caught.value)
    with caplog.at_level(logging.WARNING, "featherlb"):
        set_aside(path, str(caught.value), "and is not used")
    assert not os.path.lexists(path)
    assert os.path.lexists(tmp_path / "0.json.bad")
    (line,) = caplog.messages
    assert line == f"{path} can't be used: {caught.value}; it is 0.json.bad now, and is not used"
    with pytest.raises(FileNotFoundError):
        open_to_read(path)
    set_aside(path, "", "")


def test_writing_replaces_a_link_and_leaves_its_target_alone(tmp_path: Path) -> None:
    path = tmp_path / "0.new"
    link(path)
    with open_to_write(path, 0o600) as file:
        file.write(b"ours")
    assert (tmp_path / "target").read_text() == "of somebody else"
    assert not path.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600
    with open_to_read(path) as file:
        assert file.read() == b"ours"


def test_what_cannot_be_moved_stays_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "0.json"
    path.write_text("")
    (tmp_path / f"0.json{state_file.SET_ASIDE}").mkdir()
    set_aside(path, "it is cut", "and is not used")
    assert path.exists()
    assert "it is cut; and is not used" in caplog.text

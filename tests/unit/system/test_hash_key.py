"""The key of the hashes that place flows, where the configuration has none."""

import os
from pathlib import Path

import pytest

from featherlb.system import hash_key
from featherlb.system.hash_key import CONFIGURED, THIS_RUN, HashKey, choose


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the key is."""
    directory = tmp_path / "state"
    monkeypatch.setenv("STATE_DIRECTORY", str(directory))
    return directory / "hash-key"


def test_a_configured_key_is_used(place: Path) -> None:
    assert choose("secret") == HashKey(b"secret", CONFIGURED)
    assert not place.parent.exists()


def test_a_key_is_made_once_and_kept(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first = choose("")
    assert first.place == str(place)
    assert len(first.key) == 32
    assert place.stat().st_mode & 0o777 == 0o600
    assert str(place) in caplog.text
    caplog.clear()
    assert choose("") == first
    assert caplog.text == ""
    assert [one.name for one in place.parent.iterdir()] == ["hash-key"]
    place.unlink()
    assert choose("").key != first.key


def test_without_systemd_it_is_in_var_lib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert hash_key.directory() == Path("/var/lib/featherlb")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/one:/var/lib/two")
    assert hash_key.directory() == Path("/var/lib/one")


@pytest.mark.parametrize("content", ["", "x" * 32, "0" * 31, "0" * 33, "0" * 16 + "\n" + "0" * 16])
def test_what_is_no_key_is_set_aside(
    place: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    place.parent.mkdir()
    place.write_text(content)
    place.chmod(0o600)
    found = choose("")
    assert (found.place, len(found.key)) == (str(place), 32)
    assert place.with_name("hash-key.bad").read_text() == content
    assert "it is hash-key.bad now, and a new key is made" in caplog.text
    assert choose("") == found


def test_a_key_that_others_may_write_is_none(place: Path) -> None:
    first = choose("")
    place.chmod(0o622)
    assert choose("").key != first.key


def test_a_key_that_others_may_read_is_told(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = choose("")
    place.chmod(0o644)
    assert choose("") == first
    assert f"others may read {place}" in caplog.text


def test_a_link_is_not_followed(place: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("0" * 32)
    place.parent.mkdir()
    place.symlink_to(elsewhere)
    assert choose("").key != b"0" * 32
    assert not place.is_symlink()


def test_where_it_can_not_be_kept_it_is_for_this_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a read-only file system: even root can't make a directory below a file."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "file" / "state"))
    first, second = choose(""), choose("")
    assert first.place == second.place == THIS_RUN
    assert first.key != second.key
    assert len(caplog.records) == 2
    assert "a generated one can't be kept" in caplog.text
    assert "not a directory" in caplog.text


def test_a_directory_of_others_is_not_trusted(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place.parent.mkdir()
    place.parent.chmod(0o777)
    assert choose("").place == THIS_RUN
    assert "others may write it (mode 0777)" in caplog.text


def test_of_two_that_make_one_at_once_both_use_the_first(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[HashKey] = []
    link = os.link

    def late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        made.append(choose(""))
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert [choose("")] == made

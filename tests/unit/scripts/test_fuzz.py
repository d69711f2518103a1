"""The fuzzer at work: a little of each target, and what it does with a fault."""

from pathlib import Path

import pytest

from scripts import fuzz


@pytest.mark.parametrize("target", list(fuzz.TARGETS))
def test_a_little_of_each_target(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fuzz.run(target, 0.2, seed=1) >= 64


def test_a_fault_is_kept_and_comes_again_with_its_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def give(content: bytes) -> None:
        assert content != b"abd", "found"

    monkeypatch.setitem(fuzz.TARGETS, "messages", lambda: ([b"abc"], give))
    said = []
    for _ in range(2):
        with pytest.raises(SystemExit) as caught:
            fuzz.run("messages", 60, seed=7)
        said.append(str(caught.value))
    assert said[0] == said[1]
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == b"abd"

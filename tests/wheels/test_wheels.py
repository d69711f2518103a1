"""`make wheels`: the sources as `python -m build` makes them, built, installed and tested with each
Python of this machine that featherlb supports."""

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MINORS = (11, 12, 13, 14)
NEEDED = ("hypothesis", "pytest", "pytest-xdist", "scapy")


def pythons() -> Iterator[tuple[str, str]]:
    """Version and program of one interpreter for each minor version: of PATH, or else of pyenv."""
    for minor in MINORS:
        version = f"3.{minor}"
        found = [shutil.which(f"python{version}")]
        found += sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python3")))
        for program in filter(None, found):
            # A shim of pyenv is there for versions that are not chosen, and fails.
            if subprocess.run([program, "-c", "import venv"], capture_output=True).returncode == 0:
                yield version, program
                break


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What a program prints; its complaints are part of the failure."""
    # Nothing of the checkout, or of the virtual environment that this test runs in.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    clean.pop("FEATHERLB_PURE", None)
    done = subprocess.run(command, cwd=cwd, env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked archive of the sources."""
    directory = tmp_path_factory.mktemp("sources")
    build = ("build", "--no-isolation", "--sdist", "--outdir", str(directory), str(ROOT))
    run(sys.executable, "-m", *build, cwd=directory, FEATHERLB_PURE="1")
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(directory, filter="data")
    return directory / archive.name.removesuffix(".tar.gz")


@pytest.mark.parametrize(
    ("version", "python"), [pytest.param(*one, id=one[0]) for one in pythons()]
)
def test_the_wheel_runs(version: str, python: str, sources: Path, tmp_path: Path) -> None:
    run(python, "-m", "venv", "venv", cwd=tmp_path)
    programs = tmp_path / "venv" / "bin"
    run(programs / "pip", "wheel", "--no-deps", sources, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert f"-cp{version.replace('.', '')}-" in wheel.name
    run(programs / "pip", "install", wheel, *NEEDED, cwd=tmp_path)

    assert "compiled" in run(programs / "featherlb", "--version", cwd=tmp_path)
    run(
        programs / "featherlb",
        "check",
        "venv/share/featherlb/examples/featherlb.yaml",
        cwd=tmp_path,
    )

    # The tests find the installed package: there is no other beside them.
    beside = tmp_path / "beside"
    shutil.copytree(sources, beside, ignore=shutil.ignore_patterns("featherlb", "*.egg-info"))
    tests = ["-q", "-n", str(os.cpu_count()), "tests/unit/core", "tests/unit/net"]
    # Compares a document with a source.
    tests.append("--ignore=tests/unit/core/path/test_packet_path.py")
    for pure in "0", "1":
        form = "interpreted" if pure == "1" else "compiled"
        said = run(programs / "python", "-m", "pytest", *tests, cwd=beside, FEATHERLB_PURE=pure)
        assert "passed" in said
        assert form in run(programs / "featherlb", "--version", cwd=tmp_path, FEATHERLB_PURE=pure)

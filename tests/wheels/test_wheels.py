"""`make wheels`: the sources as `python -m build` makes them, built, installed and tested with each
Python of this machine that featherlb supports."""

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MINORS = (11, 12, 13, 14)
NEEDED = ("hypothesis", "pytest", "pytest-xdist", "scapy")
IMPORT_ALL = """
import importlib, pkgutil, featherlb
for module in pkgutil.walk_packages(featherlb.__path__, "featherlb."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


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
    """The output of a program; its complaints are part of the failure."""
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


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel."""

    directory: Path

    def run(
        self, program: str, *arguments: str, cwd: Path | None = None, pure: bool = False
    ) -> str:
        path = self.directory / "venv" / "bin" / program
        here = cwd or self.directory
        return run(path, *arguments, cwd=here, FEATHERLB_PURE="1" if pure else "0")


@pytest.fixture(scope="module", params=[pytest.param(one, id=one[0]) for one in pythons()])
def installed(
    request: pytest.FixtureRequest, sources: Path, tmp_path_factory: pytest.TempPathFactory
) -> Installed:
    version, python = request.param
    found = Installed(tmp_path_factory.mktemp("installed"))
    run(python, "-m", "venv", "venv", cwd=found.directory)
    found.run("pip", "wheel", "--no-deps", str(sources))
    (wheel,) = found.directory.glob("*.whl")
    assert f"-cp{version.replace('.', '')}-" in wheel.name
    found.run("pip", "install", str(wheel))
    return found


@pytest.mark.parametrize("pure", [False, True], ids=["compiled", "interpreted"])
def test_the_wheel_runs(installed: Installed, pure: bool) -> None:
    """All of it can be imported, and its commands work."""
    form = "interpreted" if pure else "compiled"
    assert form in installed.run("featherlb", "--version", pure=pure)
    installed.run("python", "-c", IMPORT_ALL, pure=pure)
    example = "venv/share/featherlb/examples/featherlb.yaml"
    installed.run("featherlb", "check", example, pure=pure)


def test_the_installed_packet_path_passes_its_tests(
    installed: Installed, sources: Path, tmp_path: Path
) -> None:
    installed.run("pip", "install", *NEEDED)
    # The tests find the installed package: there is no other beside them.
    beside = tmp_path / "beside"
    shutil.copytree(sources, beside, ignore=shutil.ignore_patterns("featherlb", "*.egg-info"))
    tests = ["-q", "-n", str(os.cpu_count()), "tests/unit/core", "tests/unit/net"]
    # Compares a document with a source.
    tests.append("--ignore=tests/unit/core/path/test_packet_path.py")
    for pure in False, True:
        said = installed.run("python", "-m", "pytest", *tests, cwd=beside, pure=pure)
        assert "passed" in said

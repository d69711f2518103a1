"""What `python -m build` makes: a wheel for users, and an archive of the sources for builders."""

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with both, the wheel made from the archive, with nothing compiled in it."""
    directory = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(directory), str(ROOT)]
    subprocess.run(build, env=os.environ | {"FEATHERLB_PURE": "1"}, capture_output=True, check=True)
    return directory


@pytest.fixture(scope="module")
def wheel(built: Path) -> Iterator[ZipFile]:
    (path,) = built.glob("*.whl")
    with ZipFile(path) as archive:
        yield archive


def tracked(*folders: str) -> set[str]:
    """The files of this checkout in these folders, as far as they are sources."""
    return {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in {".pyc", ".so"}
        if path.suffix != ".c" or path.parent.name == "bpf"  # others are Cython's
    }


def test_the_wheel_installs_featherlb_and_nothing_beside_it(wheel: ZipFile) -> None:
    version = "featherlb-0.1.0"
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert top == {"featherlb", f"{version}.dist-info", f"{version}.data"}
    parts = {name.split("/")[1] for name in wheel.namelist() if name.startswith(f"{version}.data/")}
    assert parts == {"data"}


def test_the_wheel_has_the_whole_package(wheel: ZipFile) -> None:
    wanted = tracked("featherlb") - {"featherlb/lab/topology.md"}
    assert {name for name in wheel.namelist() if name.startswith("featherlb/")} == wanted


def test_the_wheel_has_what_an_operator_needs(wheel: ZipFile) -> None:
    data = "featherlb-0.1.0.data/data/"
    files = {name.removeprefix(data) for name in wheel.namelist() if name.startswith(data)}
    assert files == {
        "lib/systemd/system/featherlb.service",
        "share/featherlb/examples/featherlb.yaml",
        "share/featherlb/examples/go-routes.yaml",
        "share/featherlb/grafana/featherlb.json",
        "share/featherlb/prometheus/alerts.yaml",
        "share/man/man8/featherlb.8",
    }


def test_the_wheel_says_what_it_is(wheel: ZipFile) -> None:
    metadata = wheel.read("featherlb-0.1.0.dist-info/METADATA").decode()
    assert "Project-URL: Documentation, https://" in metadata
    assert "Classifier: Operating System :: POSIX :: Linux" in metadata
    assert "Requires-Python: >=3.11" in metadata


def test_the_sources_have_what_a_checkout_has(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = tracked("featherlb", "tests", "docs", "scripts", "contrib", "examples", "netns")
    assert wanted <= names
    assert {"Makefile", "CHANGELOG.md", "Dockerfile", "setup.py", "pyproject.toml"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]

"""Checks that the image installs what is pinned, and nothing else. Needs no network.

Every requirement in docker/*requirements.txt has an exact version and hashes; together they are all
that pyproject.toml asks for, with what those packages need themselves (as the installed ones
say), and nothing else; each version is one that pyproject.toml accepts; and the Dockerfile installs
from the index only with `--require-hashes`. Prints what is wrong, and exits with 1 if something is.

It can't know whether a pinned version has a known hole: `pip-audit -r docker/requirements.txt`
does, with network.

    python scripts/check_pins.py [ROOT]
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

RUN, BUILD = "docker/requirements.txt", "docker/build-requirements.txt"
PIN = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;]+)(?P<hashes>( --hash=sha256:[0-9a-f]{64})+)"
)


def pins(text: str, faults: list[str], file: str) -> dict[str, str]:
    """Versions by package."""
    found: dict[str, str] = {}
    lines = text.replace("\\\n", "").splitlines()
    for line in lines:
        line = " ".join(line.split())
        if not line or line.startswith("#"):
            continue
        pin = PIN.fullmatch(line)
        if pin is None:
            faults.append(f"{file}: '{line[:60]}' is not a version with hashes")
        else:
            found[canonicalize_name(pin["name"])] = pin["version"]
    return found


def needed(wanted: list[str], faults: list[str]) -> Iterator[Requirement]:
    """These requirements, and those of the packages that meet them, on this Python."""
    waiting = [Requirement(one) for one in wanted]
    known: set[str] = set()
    while waiting:
        one = waiting.pop()
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        yield one
        name = canonicalize_name(one.name)
        if name not in known:
            known.add(name)
            try:
                waiting += [Requirement(text) for text in requires(name) or ()]
            except PackageNotFoundError:
                faults.append(f"{name} is not installed here: run `make setup`")


def check(root: Path) -> list[str]:
    """What is wrong, as lines."""
    faults: list[str] = []
    project = tomllib.loads((root / "pyproject.toml").read_text())
    for file, wanted in (
        (RUN, project["project"]["dependencies"]),
        (BUILD, project["build-system"]["requires"]),
    ):
        pinned = pins((root / file).read_text(), faults, file)
        names: set[str] = set()
        for one in needed(wanted, faults):
            name: str = canonicalize_name(one.name)
            names.add(name)
            if name not in pinned:
                faults.append(f"{file}: {name} is not pinned: run `make lock`")
            elif not one.specifier.contains(pinned[name], prereleases=True):
                faults.append(f"{file}: {name} is {pinned[name]}, and {one} is asked for")
        for name in sorted(pinned.keys() - names):
            faults.append(f"{file}: nothing needs {name}: run `make lock`")
    dockerfile = (root / "Dockerfile").read_text().replace("\\\n", "")
    for command in re.findall(r"pip install [^&\n]*", dockerfile):
        if "--require-hashes" not in command and "--no-index" not in command:
            faults.append(f"Dockerfile: '{' '.join(command.split())}' checks no hashes")
    return faults


if __name__ == "__main__":
    found = check(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[1])
    print("\n".join(dict.fromkeys(found)), end="\n" if found else "")
    sys.exit(bool(found))

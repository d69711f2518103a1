"""Which form of the hot modules runs: compiled, or the same source interpreted.

A hot module is one with a `.pxd` (its C types) beside it. They are used in one form, all of them:
what they share in C is invisible to Python.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parent
SHARED = PACKAGE / "_cyutility.py"
"""What the compiled modules share: there is no such source, only its compiled form (setup.py)."""


def hot_modules() -> dict[str, Path]:
    """Names and sources of the modules that can be compiled."""
    sources = (path.with_suffix(".py") for path in sorted(PACKAGE.rglob("*.pxd")))
    return {
        ".".join(source.relative_to(PACKAGE.parent).with_suffix("").parts): source
        for source in sources
    }


def binary(source: Path) -> Path | None:
    """The compiled form of a source file, if there is one for this Python."""
    candidates = (source.with_suffix(suffix) for suffix in EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.exists()), None)


def up_to_date() -> bool:
    """Whether every hot module has been compiled, and none was edited since."""
    return _not_usable() is None


def why_interpreted() -> tuple[str, str] | None:
    """Why the packet path runs interpreted, and the command that changes it; None if it doesn't."""
    if os.environ.get("FEATHERLB_PURE") == "1":
        return "FEATHERLB_PURE=1 is in the environment", "unset FEATHERLB_PURE"
    reason = _not_usable()
    if reason is None:
        return None
    command = "make setup" if _in_checkout() else "pip install --force-reinstall featherlb"
    return f"{reason}; install gcc and Python's headers, and build it again", command


def _not_usable() -> str | None:
    """What is wrong with the compiled form.

    Only a checkout is edited; what a package manager installed is taken as it is.
    """
    if binary(SHARED) is None:
        return "what the hot modules share is not compiled"
    for name, source in hot_modules().items():
        compiled = binary(source)
        if compiled is None:
            return f"{name} is not compiled"
        if _in_checkout():
            built = compiled.stat().st_mtime
            if any(p.stat().st_mtime > built for p in (source, source.with_suffix(".pxd"))):
                return f"{name} was edited since it was compiled"
    return None


def _in_checkout() -> bool:
    return (PACKAGE.parent / "setup.py").exists()


class SourceFinder:
    """Finds the source of the hot modules before Python would find their compiled form.

    A finder of sys.meta_path; without the base class that importlib.abc has for those, as that
    module imports a dozen others.
    """

    def __init__(self) -> None:
        self._sources = hot_modules()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        source = self._sources.get(fullname)
        return None if source is None else spec_from_file_location(fullname, source)


def choose() -> bool:
    """Make the hot modules importable in one form; True if that is the compiled one.

    FEATHERLB_PURE=1 in the environment forces the interpreter.
    """
    if os.environ.get("FEATHERLB_PURE") != "1" and up_to_date():
        return True
    sys.meta_path.insert(0, SourceFinder())
    return False

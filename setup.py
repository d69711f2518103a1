"""Compiles the hot modules, where a C compiler is present and FEATHERLB_PURE=1 is not set.

Everything else about the project stands in pyproject.toml.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DIRECTIVES = {
    "language_level": 3,
    "annotation_typing": False,  # types come from the .pxd files alone
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "show_performance_hints": False,
    "warn.unreachable": False,  # `if cython.compiled` leaves one branch out
}


def hot_extensions() -> list[Extension]:
    """An extension for each module with a .pxd beside it."""
    if os.environ.get("FEATHERLB_PURE") == "1":
        return []
    from Cython.Build import cythonize

    extensions = [
        Extension(
            ".".join(pxd.with_suffix("").parts),
            [str(pxd.with_suffix(".py"))],
            # Sizes and indexes are compared as Python compares them, which C warns of each time.
            # What a debugger wants to know is a third of the compiler's time, and most of the file.
            extra_compile_args=["-O3", "-fno-strict-aliasing", "-Wno-sign-compare", "-g0"],
        )
        for pxd in sorted(Path("featherlb").rglob("*.pxd"))
    ]
    compiled: list[Extension] = cythonize(
        extensions,
        compiler_directives=DIRECTIVES,
        build_dir="build/cython",
        nthreads=os.cpu_count() or 1,
        quiet=True,
    )
    return compiled


class BuildAllOrNone(build_ext):
    """Builds every hot module or, with one warning, none: they can't be mixed."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            for extension in self.distribution.ext_modules or []:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions = []
            print(
                f"warning: featherlb's packet path was not compiled ({error}); it runs"
                " interpreted, several times slower",
                file=sys.stderr,
            )


setup(ext_modules=hot_extensions(), cmdclass={"build_ext": BuildAllOrNone})

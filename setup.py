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

# -O3 takes a quarter longer to compile, for code that is no faster.
# Sizes and indexes are compared as Python compares them, which C warns of each time.
# What a debugger wants to know is a third of the compiler's time, and most of the file.
C_OPTIONS = ["-O2", "-fno-strict-aliasing", "-Wno-sign-compare", "-g0"]

SHARED = "featherlb._cyutility"
"""What Cython would otherwise put into every module that uses memoryviews: half of all C code.
`featherlb.compiled` knows the name as well."""

CPUS = len(os.sched_getaffinity(0))


def hot_extensions() -> list[Extension]:
    """An extension for each module with a .pxd beside it, and the one they share."""
    if os.environ.get("FEATHERLB_PURE") == "1":
        return []
    from Cython.Build import cythonize

    sources = {
        ".".join(pxd.with_suffix("").parts): str(pxd.with_suffix(".py"))
        for pxd in sorted(Path("featherlb").rglob("*.pxd"))
    }
    sources[SHARED] = SHARED.replace(".", "/") + ".c"
    compiled: list[Extension] = cythonize(
        [
            Extension(name, [source], extra_compile_args=C_OPTIONS)
            for name, source in sources.items()
        ],
        compiler_directives=DIRECTIVES,
        shared_utility_qualified_name=SHARED,
        build_dir="build/cython",
        nthreads=CPUS,
        quiet=True,
    )
    # The largest first, so that no processor waits for one of them at the end.
    compiled.sort(key=lambda extension: Path(extension.sources[0]).stat().st_size, reverse=True)
    return compiled


class BuildAllOrNone(build_ext):
    """Builds every hot module or, with one warning, none: they can't be mixed."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or CPUS

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

"""Compiles the hot modules, where a C compiler is present and FEATHERLB_PURE=1 is not set, and the
programs for the kernel, where clang is.

Everything else about the project stands in pyproject.toml.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, setup
from setuptools.command.build import build
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

BPF_SOURCES = sorted(Path("featherlb/bpf").glob("*.c"))
BPF_OPTIONS = ["-target", "bpf", "-mcpu=v3", "-O2", "-Wall", "-Wextra"]
"""The instructions of Linux 5.12 include what changes a flow's state atomically."""

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


class BuildBpf(Command):
    """Compiles the programs for the kernel, or says with one warning that they are missing."""

    description = "compile the eBPF programs"
    user_options: ClassVar = [("inplace", "i", "put what is compiled beside its source")]
    boolean_options: ClassVar = ["inplace"]

    def initialize_options(self) -> None:
        self.inplace = False
        self.editable_mode = False
        self.build_lib = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        try:
            for source, compiled in self.get_output_mapping().items():
                Path(compiled).parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(
                    ["clang", *BPF_OPTIONS, "-c", source, "-o", compiled],
                    check=True,
                    env={**os.environ, "LC_ALL": "C"},
                )
        except (OSError, subprocess.CalledProcessError) as error:
            for compiled in self.get_outputs():
                Path(compiled).unlink(missing_ok=True)
            print(
                f"warning: featherlb's eBPF programs were not compiled ({error}); the datapath ebpf"
                " will be unavailable",
                file=sys.stderr,
            )

    def get_output_mapping(self) -> dict[str, str]:
        """Sources and what they are compiled to."""
        root = Path("." if self.inplace or self.editable_mode else self.build_lib)
        return {str(one): str(root / one.with_suffix(".o")) for one in BPF_SOURCES}

    def get_outputs(self) -> list[str]:
        return list(self.get_output_mapping().values())

    def get_source_files(self) -> list[str]:
        return [
            str(one) for pattern in ("*.c", "*.h") for one in Path("featherlb/bpf").glob(pattern)
        ]


class Build(build):
    sub_commands: ClassVar = [*build.sub_commands, ("build_bpf", None)]


setup(
    ext_modules=hot_extensions(),
    cmdclass={"build": Build, "build_bpf": BuildBpf, "build_ext": BuildAllOrNone},
)

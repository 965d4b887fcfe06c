"""Build the package: clang compiles its BPF programs and its library in C.

All else is in pyproject.toml.

A wheel is for any Python, and for Linux on machines of the build's kind. The objects have the byte
order of that machine, and the sizes of types in its kernel headers.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Final

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.errors import ExecError

_CAPTURE: Final = Path("ocsf_nft/attribution/bpf/capture.bpf.c")
#: Source and options of each object, which is in the folder of its source. The capture has two: for
#: kernels that describe their types, and for all.
_OBJECTS: Final = {
    "types.bpf.o": (_CAPTURE, ["-DWITH_TYPES"]),
    "plain.bpf.o": (_CAPTURE, []),
    "gate.bpf.o": (Path("ocsf_nft/fence/bpf/gate.bpf.c"), []),
}
#: Library that converts the usual log lines. Without it, Python code converts all lines.
_LIBRARY: Final = Path("ocsf_nft/conversion/native")
#: Environment variable that leaves the library out.
_NO_LIBRARY: Final = "OCSF_NFT_NO_EXTENSIONS"
#: Where Debian keeps the one header that differs from machine to machine.
_MULTIARCH: Final = Path("/usr/include") / f"{platform.machine()}-linux-gnu"


class BuildWithPrograms(build_py):
    """Compile the BPF programs beside the modules."""

    def run(self) -> None:
        """Build."""
        super().run()
        where = Path() if self.editable_mode else Path(self.build_lib)
        for name, (source, options) in _OBJECTS.items():
            folder = where / source.parent
            folder.mkdir(parents=True, exist_ok=True)
            compile_program(source, folder / name, options)
        folder = where / _LIBRARY
        folder.mkdir(parents=True, exist_ok=True)
        if os.environ.get(_NO_LIBRARY):
            (folder / "libconverter.so.1").unlink(missing_ok=True)
        else:
            compile_library(sorted(_LIBRARY.glob("*.c")), folder / "libconverter.so.1")


def compile_program(source: Path, target: Path, options: list[str]) -> None:
    """Compile one object; raises ExecError, which ends the build with a sentence."""
    command = [
        _clang(), "-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Werror",
        # The folder of the build is not in the object, which so is the same in any folder.
        "-fdebug-compilation-dir=.",
        "-isystem", str(_MULTIARCH), *options,
        "-c", str(source), "-o", str(target),
    ]  # fmt: skip
    _run(command, "the BPF programs (is libbpf-dev there?)")


def compile_library(sources: list[Path], target: Path) -> None:
    """Compile the library in C; raises ExecError, which ends the build with a sentence."""
    # The library needs no more than the C library: one file serves all versions of Python.
    command = [
        _clang(), "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared",
        "-fvisibility=hidden", "-fstack-protector-strong", "-U_FORTIFY_SOURCE",
        "-D_FORTIFY_SOURCE=2", "-Wl,-z,relro,-z,now,-z,noexecstack",
        *map(str, sources), "-o", str(target),
    ]  # fmt: skip
    _run(command, f"{_LIBRARY} (is libc6-dev there? {_NO_LIBRARY}=1 builds without it)")


def _clang() -> str:
    clang = shutil.which("clang")
    if clang is None:
        raise ExecError(
            "clang is missing, which compiles the BPF programs (Debian, Ubuntu: apt-get install "
            "clang libbpf-dev)"
        )
    return clang


def _run(command: list[str], what: str) -> None:
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise ExecError(f"clang can't compile {what}: {result.stderr}")


class DistributionOfOnePlatform(Distribution):
    """Distribution with files that depend on the machine, as extension modules do."""

    def has_ext_modules(self) -> bool:
        """Return true: setuptools asks this to choose the folders and the wheel's tag."""
        return True


class WheelOfAnyPython(bdist_wheel):
    """Wheel whose tag names the platform, and no version or ABI of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of Python, its ABI and the platform."""
        _, _, platform_tag = super().get_tag()
        return "py3", "none", platform_tag


setup(
    distclass=DistributionOfOnePlatform,
    cmdclass={"build_py": BuildWithPrograms, "bdist_wheel": WheelOfAnyPython},
)

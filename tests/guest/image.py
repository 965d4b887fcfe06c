"""Content of the guest: layers of an initramfs, each a folder packed in the kernel's format.

The kernel unpacks consecutive archives over each other (early userspace:
Documentation/driver-api/early-userspace/buffer-format.rst). So parts that are slow to pack are
separate layers in the cache. Python and its extensions' libraries are those that run this test, at
the same paths.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.guest import cache, kernel
from tests.guest.cache import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tests.guest.kernel import Kernel

_PACKAGE: Final = "ocsf-nft"
#: A dependency of the extra `journal`.
_JOURNAL: Final = "systemd-python"
#: The guest's folder of the package and its dependencies.
SITE: Final = "usr/lib/ocsf-nft/site"
GUEST_INIT: Final = "usr/lib/ocsf-nft/guest-init"
#: The guest's folder of the tests' own programs.
TESTS: Final = "usr/lib/guest-tests"
_ARCHIVE: Final = "layer.cpio"
_NFT: Final = Path("/usr/sbin/nft")
#: The loader of the BPF programs that name processes; the package loads it by this name.
_LIBBPF: Final = "libbpf.so.1"
#: Parts of Python's library that no program in the guest imports.
_LEFT_OUT: Final = shutil.ignore_patterns(
    "__pycache__", "config-*", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests", "tkinter", "turtledemo", "_test*.so", "_tkinter*.so", "*.a",
)  # fmt: skip
_TESTS: Final = ("kernel/attempts.py", "kernel/escapes.py", "kernel/means.py", "kernel/packets.py")
#: The minimum of metadata, for the version.
_METADATA: Final = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
_COMMAND: Final = """#!{python}
import sys

sys.path.insert(0, "/{site}")
from ocsf_nft.cli import main

main()
"""


def initramfs(folder: Path, layers: Iterable[Path]) -> Path:
    """Write the layers one after the other to an initramfs in ``folder``, a folder of the test."""
    made = folder / "initramfs"
    with made.open("wb") as file:
        for layer in layers:
            file.write((layer / _ARCHIVE).read_bytes())
    return made


def files(folder: Path, texts: Mapping[str, str], links: Mapping[str, str] | None = None) -> Path:
    """Build a layer of files and symbolic links, given by their paths in the guest."""
    for name, content in texts.items():
        path = folder / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    for name, target in (links or {}).items():
        path = folder / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
    return _pack(folder / "root", folder)


def modules(folder: Path, of: Kernel, *names: str) -> Path:
    """Build the layer of these kernel modules and their dependencies."""
    kernel.copy_modules(of, names, folder / "root")
    return _pack(folder / "root", folder)


def busybox() -> Path:
    """Build the layer of a guest without a distribution: busybox and the required folders."""

    def make(folder: Path) -> None:
        root = folder / "root"
        for name in ("dev", "etc", "proc", "run", "sys", "tmp", "usr/bin", "usr/sbin", "var/log"):
            (root / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (root / name).symlink_to(f"usr/{name}")
        listed = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True)
        shutil.copy("/usr/bin/busybox", root / "usr/bin/busybox")
        for applet in {*listed.stdout.split(), "sh"} - {"busybox"}:
            (root / "usr/bin" / applet).symlink_to("busybox")
        (root / "usr/sbin/modprobe").symlink_to("../bin/busybox")
        finish(root, folder)

    return cache.build_once("busybox", [cache.stamp(Path("/usr/bin/busybox")), _own()], make)


def python() -> Path:
    """Build the layer of Python, nft, libbpf and the package's dependencies."""
    executable = Path(sys.executable).resolve()
    libbpf = _shared(_LIBBPF)
    distributions = sorted(_dependencies(_PACKAGE) | {_JOURNAL})
    versions = [f"{name} {importlib.metadata.version(name)}" for name in distributions]

    def make(folder: Path) -> None:
        root = folder / "root"
        for folder_of_python in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
            target = below(root, Path(folder_of_python))
            shutil.copytree(folder_of_python, target, ignore=_LEFT_OUT)
        for name in distributions:
            _copy_distribution(name, root / SITE)
        _copy(executable, root)
        _copy(_NFT, root)
        _copy(libbpf, root)
        binaries = [executable, _NFT, libbpf, *root.rglob("*.so")]
        for library in sorted(_libraries(binaries)):
            _copy(library, root)
        compile_modules(root)
        finish(root, folder)

    of = [sys.version, *versions, *map(cache.stamp, (executable, _NFT, libbpf)), _own()]
    return cache.build_once("python", of, make)


def package(folder: Path) -> Path:
    """Build the layer of the package in the working tree, guest-init, and the tests' programs."""
    root = folder / "root"
    site = root / SITE
    bytecode = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "ocsf_nft", site / "ocsf_nft", ignore=bytecode)
    shutil.copytree(PROJECT / "rules", site / "ocsf_nft/rules")
    version = importlib.metadata.version(_PACKAGE)
    about = site / f"ocsf_nft-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(_METADATA.format(name=_PACKAGE, version=version), "utf-8")
    for name in _TESTS:
        (root / TESTS / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / "tests" / name, root / TESTS / "tests" / name)
    shutil.copytree(
        PROJECT / "tests/guest/inside", root / TESTS / "tests/guest/inside", ignore=bytecode
    )
    shutil.copy(PROJECT / "deploy/guest-init/guest-init", root / GUEST_INIT)
    command = root / "usr/bin/ocsf-nft"
    command.parent.mkdir()
    command.write_text(
        _COMMAND.format(python=Path(sys.executable).resolve(), site=SITE), encoding="utf-8"
    )
    command.chmod(0o755)
    compile_modules(root)
    return _pack(root, folder)


def _own() -> str:
    return cache.stamp(Path(__file__))


def below(root: Path, path: Path) -> Path:
    """Return the path below ``root`` for a file of this machine, without links in its folder."""
    return root / (path.parent.resolve() / path.name).relative_to("/")


def _copy(path: Path, root: Path) -> None:
    target = below(root, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)


def _copy_distribution(name: str, site: Path) -> None:
    for file in importlib.metadata.files(name) or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(file.locate()), target)


def _dependencies(name: str) -> set[str]:
    """Return the distributions that a distribution requires without its extras."""
    found: set[str] = set()
    pending = [name]
    while pending:
        for requirement in importlib.metadata.requires(pending.pop()) or ():
            needed = re.sub(
                r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
            ).lower()
            # Requirements that a marker excludes on this machine are not installed here.
            if "extra ==" not in requirement and needed not in found and _installed(needed):
                found.add(needed)
                pending.append(needed)
    return found


def _installed(name: str) -> bool:
    return any(importlib.metadata.Distribution.discover(name=name))


def _shared(name: str) -> Path:
    """Return the file of a library that this machine loads."""
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True)
    found = re.search(rf"^\t{re.escape(name)} .* => (/\S+)$", listed.stdout, re.MULTILINE)
    assert found is not None, f"{name} is not installed here"
    return Path(found[1])


def _libraries(binaries: Iterable[Path]) -> Iterator[Path]:
    for binary in binaries:
        listed = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False)
        for path in re.findall(r"(/\S+) \(0x", listed.stdout):
            yield Path(path)


def compile_modules(root: Path) -> None:
    """Compile all Python modules below ``root`` to bytecode that does not depend on file times.

    Linux gives the files of an initramfs new times, unless CONFIG_INITRAMFS_PRESERVE_MTIME is set.
    With the times of the sources in it, the bytecode would never be valid in the guest.
    """
    subprocess.run(
        # In a process of its own: the workers of compileall would live as long as the tests.
        [sys.executable, "-m", "compileall", "-qq", "-j", "0", "-s", root,
         "--invalidation-mode", "unchecked-hash", root],
        check=False,  # a template in the libraries is no valid Python
    )  # fmt: skip


def finish(root: Path, folder: Path) -> None:
    """Pack the folder and remove it, so that only the archive remains."""
    _pack(root, folder)
    shutil.rmtree(root)


def _pack(root: Path, folder: Path) -> Path:
    """Pack a folder as a layer in which root owns everything."""
    names = subprocess.run(["find", "."], cwd=root, capture_output=True, check=True).stdout
    with (folder / _ARCHIVE).open("wb") as archive:
        subprocess.run(
            ["busybox", "cpio", "-o", "-H", "newc", "-R", "0:0"],
            cwd=root, input=names, stdout=archive, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
    return folder

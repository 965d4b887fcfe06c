"""What is in the guest: layers of an initramfs, each a folder packed as the kernel reads it.

The kernel unpacks archives that follow each other over one another (early userspace:
Documentation/driver-api/early-userspace/buffer-format.rst), so what is slow to pack is a layer of
its own in the cache. Python is the one that runs this test, at its own path, and so are its
extensions' libraries.
"""

from __future__ import annotations

import compileall
import importlib.metadata
import os
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
#: Of its extra `journal`.
_JOURNAL: Final = "systemd-python"
#: Where the package and what it depends on are in the guest.
SITE: Final = "usr/lib/ocsf-nft/site"
GUEST_INIT: Final = "usr/lib/ocsf-nft/guest-init"
#: Where this test's own programs are.
TESTS: Final = "usr/lib/guest-tests"
_ARCHIVE: Final = "layer.cpio"
_NFT: Final = Path("/usr/sbin/nft")
#: What loads the programs that name processes; the package has it loaded by this name.
_LIBBPF: Final = "libbpf.so.1"
#: Of Python's library, what no program here imports.
_LEFT_OUT: Final = shutil.ignore_patterns(
    "__pycache__", "config-*", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests", "tkinter", "turtledemo", "_test*.so", "_tkinter*.so", "*.a",
)  # fmt: skip
_TESTS: Final = ("kernel/attempts.py", "kernel/escapes.py", "kernel/means.py", "kernel/packets.py")
#: As much as says which version it is.
_METADATA: Final = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
_COMMAND: Final = """#!{python}
import sys

sys.path.insert(0, "/{site}")
from ocsf_nft.cli import main

main()
"""


def initramfs(folder: Path, layers: Iterable[Path]) -> Path:
    """Layers one upon the other; ``folder`` is one of the test's own, where it is made."""
    made = folder / "initramfs"
    with made.open("wb") as file:
        for layer in layers:
            file.write((layer / _ARCHIVE).read_bytes())
    return made


def files(folder: Path, texts: Mapping[str, str], links: Mapping[str, str] | None = None) -> Path:
    """A layer of files and of symbolic links, by their paths in the guest."""
    for name, content in texts.items():
        place = folder / "root" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content, encoding="utf-8")
    for name, target in (links or {}).items():
        place = folder / "root" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    return _pack(folder / "root", folder)


def modules(folder: Path, of: Kernel, *names: str) -> Path:
    """The layer of a kernel's modules: these, and what they depend on."""
    kernel.copy_modules(of, names, folder / "root")
    return _pack(folder / "root", folder)


def busybox() -> Path:
    """The layer of a guest without a distribution: busybox, and the folders that there must be."""

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

    return cache.made("busybox", [cache.stamp(Path("/usr/bin/busybox")), _own()], make)


def python() -> Path:
    """The layer of Python, nft, libbpf, and what the package depends on."""
    executable = Path(sys.executable).resolve()
    libbpf = _shared(_LIBBPF)
    wanted = sorted(_dependencies(_PACKAGE) | {_JOURNAL})
    versions = [f"{name} {importlib.metadata.version(name)}" for name in wanted]

    def make(folder: Path) -> None:
        root = folder / "root"
        for folder_of_python in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
            place = below(root, Path(folder_of_python))
            shutil.copytree(folder_of_python, place, ignore=_LEFT_OUT)
        for name in wanted:
            _copy_distribution(name, root / SITE)
        _copy(executable, root)
        _copy(_NFT, root)
        _copy(libbpf, root)
        binaries = [executable, _NFT, libbpf, *root.rglob("*.so")]
        for library in sorted(_libraries(binaries)):
            _copy(library, root)
        compileall.compile_dir(root, quiet=2, stripdir=root, workers=os.cpu_count() or 1)
        finish(root, folder)

    of = [sys.version, *versions, *map(cache.stamp, (executable, _NFT, libbpf)), _own()]
    return cache.made("python", of, make)


def package(folder: Path) -> Path:
    """The layer of the package as it is in the tree now, guest-init, and this test's programs."""
    root = folder / "root"
    site = root / SITE
    shutil.copytree(PROJECT / "ocsf_nft", site / "ocsf_nft")
    shutil.copytree(PROJECT / "rules", site / "ocsf_nft/rules")
    version = importlib.metadata.version(_PACKAGE)
    about = site / f"ocsf_nft-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(_METADATA.format(name=_PACKAGE, version=version), "utf-8")
    for name in _TESTS:
        (root / TESTS / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / "tests" / name, root / TESTS / "tests" / name)
    shutil.copytree(PROJECT / "tests/guest/inside", root / TESTS / "tests/guest/inside")
    shutil.copy(PROJECT / "deploy/guest-init/guest-init", root / GUEST_INIT)
    command = root / "usr/bin/ocsf-nft"
    command.parent.mkdir()
    command.write_text(
        _COMMAND.format(python=Path(sys.executable).resolve(), site=SITE), encoding="utf-8"
    )
    command.chmod(0o755)
    compileall.compile_dir(root, quiet=2, stripdir=root)
    return _pack(root, folder)


def _own() -> str:
    return cache.stamp(Path(__file__))


def below(root: Path, path: Path) -> Path:
    """The place below ``root`` of a file of this machine, its links in the way resolved."""
    return root / (path.parent.resolve() / path.name).relative_to("/")


def _copy(path: Path, root: Path) -> None:
    place = below(root, path)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, place)


def _copy_distribution(name: str, site: Path) -> None:
    for file in importlib.metadata.files(name) or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            place = site / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(file.locate()), place)


def _dependencies(name: str) -> set[str]:
    """The distributions that one needs without any extra of its."""
    found: set[str] = set()
    wanted = [name]
    while wanted:
        for requirement in importlib.metadata.requires(wanted.pop()) or ():
            needed = re.sub(
                r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
            ).lower()
            # What a marker leaves out on this machine is not installed here.
            if "extra ==" not in requirement and needed not in found and _installed(needed):
                found.add(needed)
                wanted.append(needed)
    return found


def _installed(name: str) -> bool:
    return any(importlib.metadata.Distribution.discover(name=name))


def _shared(name: str) -> Path:
    """The file of a library, as it is loaded here."""
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True)
    found = re.search(rf"^\t{re.escape(name)} .* => (/\S+)$", listed.stdout, re.MULTILINE)
    assert found is not None, f"{name} is not installed here"
    return Path(found[1])


def _libraries(binaries: Iterable[Path]) -> Iterator[Path]:
    for binary in binaries:
        told = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False)
        for path in re.findall(r"(/\S+) \(0x", told.stdout):
            yield Path(path)


def finish(root: Path, folder: Path) -> None:
    """Keep the archive alone."""
    _pack(root, folder)
    shutil.rmtree(root)


def _pack(root: Path, folder: Path) -> Path:
    """Pack a folder as a layer; everything in it is root's."""
    names = subprocess.run(["find", "."], cwd=root, capture_output=True, check=True).stdout
    with (folder / _ARCHIVE).open("wb") as archive:
        subprocess.run(
            ["busybox", "cpio", "-o", "-H", "newc", "-R", "0:0"],
            cwd=root, input=names, stdout=archive, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
    return folder

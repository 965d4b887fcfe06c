"""Files of the CNI plugin on a node: a Python of its own, and a program that starts it.

A container runtime starts the plugin outside of containers, where a node may have no Python, or
another C library. So the running Python is copied: its program, the shared libraries that it has
loaded, and the standard library. A node needs nothing but a shell.
"""

from __future__ import annotations

import compileall
import hashlib
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft import unix_http
from ocsf_nft.cni import main
from ocsf_nft.cni.network_file import TYPE
from ocsf_nft.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Imported for their files, and for the libraries that they load.
_USED: Final = (main, unix_http)
#: Parts of the standard library that are large and not used.
_UNUSED: Final = shutil.ignore_patterns(
    "__pycache__", "*.so", "*.a", "config-*", "dist-packages", "ensurepip", "idlelib", "lib2to3",
    "lib-dynload", "pydoc_data", "site-packages", "test", "tests", "tkinter", "turtledemo", "venv",
)  # fmt: skip
_LOADER: Final = "ld-linux"
_LAUNCHER: Final = """\
#!/bin/sh
# Written by ocsf-nft. It starts the plugin with a Python that uses no file of the node.
d={folder}
PYTHONHOME=$d PYTHONPATH=$d/packages exec "$d/lib/{loader}" --inhibit-cache \\
    --library-path "$d/lib" "$d/bin/python3" -S -s -P -B -c \\
    'from ocsf_nft.cni.main import main; main()'
"""


def install(host: Path, folder: Path, programs: Path) -> None:
    """Install the plugin on a node.

    ``host`` is the mount point of the node's file system. ``folder`` (for our files) and
    ``programs`` (for plugins) are absolute paths on the node. The change to a new version is one
    rename; the version before it stays, because a program may be using it. Raises UnsupportedError
    if this Python can't be copied.
    """
    files = sorted(_files())
    name = _digest(files)
    version = folder / name
    made = host / version.relative_to("/")
    if not made.exists():
        _copy(files, made)
    launcher = host / programs.relative_to("/") / TYPE
    before = launcher.read_text("utf-8", "replace") if launcher.exists() else ""
    _write_program(launcher, _LAUNCHER.format(folder=version, loader=_loader().name))
    for other in made.parent.iterdir():
        if other.name != name and other.name not in before:
            shutil.rmtree(other, ignore_errors=True)  # it may be a file of another program


def remove(host: Path, folder: Path, programs: Path) -> None:
    """Remove the files that :func:`install` has written."""
    (host / programs.relative_to("/") / TYPE).unlink(missing_ok=True)
    shutil.rmtree(host / folder.relative_to("/"), ignore_errors=True)


def _files() -> Iterator[tuple[Path, str]]:
    """Yield the files to copy, and their paths below the folder of a version."""
    yield Path(sys.executable).resolve(), "bin/python3"
    library = f"lib/python{sysconfig.get_python_version()}"
    for path in _mapped():
        # Extension modules of Python, and the libraries of the system.
        folder = f"{library}/lib-dynload" if path.parent.name == "lib-dynload" else "lib"
        for each in _names(path):
            yield path, f"{folder}/{each}"
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] == "ocsf_nft" and module.__file__ is not None:
            found = Path(module.__file__)
            parts = name.split(".")
            target = (
                [*parts, found.name] if found.name == "__init__.py" else [*parts[:-1], found.name]
            )
            yield found, "/".join(("packages", *target))


def _mapped() -> set[Path]:
    """Return the shared libraries that this process has loaded."""
    lines = Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()
    paths = {
        Path(words[5]) for words in (line.split(maxsplit=5) for line in lines) if len(words) > 5
    }
    return {path for path in paths if ".so" in path.name and "packages" not in str(path)}


def _names(library: Path) -> Iterator[str]:
    """Yield the names of a library: its own, and those of symbolic links, by which it is loaded."""
    stem = library.name.partition(".so")[0]
    for path in library.parent.glob(f"{stem}.so*"):
        if path.resolve() == library:
            yield path.name


def _loader() -> Path:
    found = [path for path in _mapped() if path.name.startswith(_LOADER)]
    if not found:
        raise UnsupportedError(
            "this Python has no dynamic loader of glibc: install the plugin from the image"
        )
    return found[0]


def _digest(files: list[tuple[Path, str]]) -> str:
    digest = hashlib.sha256()
    for source, target in files:
        digest.update(f"{target}\0".encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _copy(files: list[tuple[Path, str]], target: Path) -> None:
    temporary = target.with_name(f".{target.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    standard = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(standard, temporary / "lib" / standard.name, ignore=_UNUSED)
    for source, name in files:
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, temporary / name)
    # The launcher writes no compiled modules. The paths in them are those on the node.
    compileall.compile_dir(temporary, quiet=2, stripdir=str(temporary), prependdir=str(target))
    os.replace(temporary, target)


def _write_program(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(content, encoding="ascii")
    temporary.chmod(0o755)
    os.replace(temporary, path)

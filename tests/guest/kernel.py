"""A kernel for the guest: Debian's cloud kernel, downloaded by apt and only unpacked."""

from __future__ import annotations

import lzma
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from tests.guest import cache

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: Depends on the newest kernel.
_METAPACKAGE: Final = "linux-image-cloud-amd64"
#: Modules of the machine, and modules of a fence inside it. Their dependencies are added;
#: nf_conntrack is not among them.
DEVICES: Final = ("virtio_net", "virtio_rng")
FENCE: Final = (
    "nf_tables",
    "nft_fib_inet",
    "nft_limit",
    "nft_log",
    "nft_reject_inet",
    "nfnetlink_log",
    "nf_log_syslog",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel image, and the folder of its modules, as Debian packs them."""

    image: Path
    modules: Path

    @property
    def version(self) -> str:
        return self.modules.name


def unpacked() -> Kernel:
    """Return the newest kernel that apt offers; skip the test if this is not Debian for amd64."""
    package = _package() or _package(update=True)
    if package is None:
        is_debian = platform.freedesktop_os_release().get("ID") == "debian"
        end = pytest.fail if is_debian and platform.machine() == "x86_64" else pytest.skip
        end(f"apt has no {_METAPACKAGE}: a guest needs Debian's kernel for amd64")
    cached = cache.build_once("kernel", [package], lambda folder: _unpack(package, folder))
    (image,) = cached.glob("boot/vmlinuz-*")
    (modules,) = cached.glob("usr/lib/modules/*")
    return Kernel(image=image, modules=modules)


def copy_modules(kernel: Kernel, names: Iterable[str], root: Path) -> None:
    """Copy modules and their dependencies below ``root``, to the folder that modprobe reads."""
    packed = {
        path.name.removesuffix(".ko.xz").replace("-", "_"): path
        for path in kernel.modules.rglob("*.ko.xz")
    }
    target = root / "usr/lib/modules" / kernel.version
    target.mkdir(parents=True)
    for name in ("modules.builtin", "modules.order"):
        shutil.copy(kernel.modules / name, target)
    done: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name in done:
            continue
        done.add(name)
        module = lzma.decompress(packed[name].read_bytes())
        file = target / packed[name].relative_to(kernel.modules).with_suffix("")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(module)
        pending += _dependencies(module)
    subprocess.run(["busybox", "depmod", "-b", root / "usr", kernel.version], check=True)


def _dependencies(module: bytes) -> list[str]:
    """Return a module's dependencies from its .modinfo section (kernel/module/main.c)."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    names = found[1].decode() if found else ""
    return [name.replace("-", "_") for name in names.split(",") if name]


def _package(*, update: bool = False) -> str | None:
    if update:
        subprocess.run(["apt-get", "update", "-qq"], check=True, timeout=300)
    listed = subprocess.run(
        ["apt-cache", "depends", _METAPACKAGE], capture_output=True, text=True, check=False
    )
    found = re.search(r"^  Depends: (linux-image-\S+)$", listed.stdout, re.MULTILINE)
    return None if found is None else found[1]


def _unpack(package: str, folder: Path) -> None:
    # apt's own user for downloads may not write here.
    command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package]
    if subprocess.run(command, cwd=folder, check=False, timeout=600).returncode != 0:
        subprocess.run(["apt-get", "update", "-qq"], check=True, timeout=300)
        subprocess.run(command, cwd=folder, check=True, timeout=600)
    (archive,) = folder.glob("*.deb")
    subprocess.run(["dpkg", "-x", archive, folder], check=True)
    archive.unlink()

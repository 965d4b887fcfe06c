"""A kernel for the guest: Debian's, for clouds; downloaded by apt, unpacked, never installed."""

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

#: Depends on the newest one.
_METAPACKAGE: Final = "linux-image-cloud-amd64"
#: What the machine itself needs, and what a fence needs inside it. Those that these depend on
#: come along; nf_conntrack is not among them.
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
    """What QEMU boots, and the folder that holds its modules, as Debian packs them."""

    image: Path
    modules: Path

    @property
    def version(self) -> str:
        return self.modules.name


def unpacked() -> Kernel:
    """The newest kernel that apt knows of; elsewhere than on Debian for amd64 it skips the test."""
    package = _package() or _package(update=True)
    if package is None:
        is_debian = platform.freedesktop_os_release().get("ID") == "debian"
        end = pytest.fail if is_debian and platform.machine() == "x86_64" else pytest.skip
        end(f"apt knows no {_METAPACKAGE}: a guest takes a kernel of Debian's for amd64")
    place = cache.made("kernel", [package], lambda folder: _unpack(package, folder))
    (image,) = place.glob("boot/vmlinuz-*")
    (modules,) = place.glob("usr/lib/modules/*")
    return Kernel(image=image, modules=modules)


def copy_modules(kernel: Kernel, names: Iterable[str], root: Path) -> None:
    """Put modules, and all that they depend on, where modprobe looks for them below ``root``."""
    packed = {
        path.name.removesuffix(".ko.xz").replace("-", "_"): path
        for path in kernel.modules.rglob("*.ko.xz")
    }
    target = root / "usr/lib/modules" / kernel.version
    target.mkdir(parents=True)
    for name in ("modules.builtin", "modules.order"):
        shutil.copy(kernel.modules / name, target)
    done: set[str] = set()
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        if name in done:
            continue
        done.add(name)
        module = lzma.decompress(packed[name].read_bytes())
        place = target / packed[name].relative_to(kernel.modules).with_suffix("")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(module)
        wanted += _dependencies(module)
    subprocess.run(["busybox", "depmod", "-b", root / "usr", kernel.version], check=True)


def _dependencies(module: bytes) -> list[str]:
    """What its .modinfo section says (kernel/module/main.c)."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    names = found[1].decode() if found else ""
    return [name.replace("-", "_") for name in names.split(",") if name]


def _package(*, update: bool = False) -> str | None:
    if update:
        subprocess.run(["apt-get", "update", "-qq"], check=True, timeout=300)
    told = subprocess.run(
        ["apt-cache", "depends", _METAPACKAGE], capture_output=True, text=True, check=False
    )
    found = re.search(r"^  Depends: (linux-image-\S+)$", told.stdout, re.MULTILINE)
    return None if found is None else found[1]


def _unpack(package: str, folder: Path) -> None:
    # Its own user for downloads may not write here.
    command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package]
    if subprocess.run(command, cwd=folder, check=False, timeout=600).returncode != 0:
        subprocess.run(["apt-get", "update", "-qq"], check=True, timeout=300)
        subprocess.run(command, cwd=folder, check=True, timeout=600)
    (archive,) = folder.glob("*.deb")
    subprocess.run(["dpkg", "-x", archive, folder], check=True)
    archive.unlink()

"""OCI bundle with busybox, for runc itself."""

from __future__ import annotations

import json
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

from tests.engines import image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def write(folder: Path, command: Sequence[str], cgroup: str) -> Path:
    """Write a bundle for a container without a terminal that runs a command; return its folder."""
    folder.mkdir()
    with tarfile.open(image.root_archive(folder / "root.tar")) as archive:
        archive.extractall(folder / "rootfs", filter="tar")
    subprocess.run(["runc", "spec", "--bundle", folder], check=True)
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    config["process"] |= {"args": list(command), "terminal": False}
    config["linux"]["cgroupsPath"] = f"{cgroup}/{folder.name}"
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder

"""Image of the test containers: busybox as a tar archive, and as an OCI archive. No registry."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME: Final = "ocsf-nft-test"
_APPLETS: Final = ("cat", "echo", "ip", "nc", "sh", "sleep", "touch")
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_INDEX: Final = "application/vnd.oci.image.index.v1+json"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"


def root_archive(path: Path) -> Path:
    """Write a root file system with busybox as a tar archive, for `docker import`."""
    path.write_bytes(_root())
    return path


def oci_archive(path: Path) -> Path:
    """Write an image with busybox as an OCI archive, for `ctr images import`."""
    root = _root()
    layer = gzip.compress(root, mtime=0)
    config = {
        "architecture": _ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(root)]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _descriptor(_CONFIG, _json(config)),
        "layers": [_descriptor(_LAYER, layer)],
    }
    named = _descriptor(_MANIFEST, _json(manifest)) | {
        "annotations": {"io.containerd.image.name": f"localhost/{NAME}:latest"}
    }
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [named]}
    with tarfile.open(path, "w") as archive:
        _add(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(archive, "index.json", _json(index))
        for blob in (layer, _json(config), _json(manifest)):
            _add(archive, f"blobs/sha256/{_digest(blob).removeprefix('sha256:')}", blob)
    return path


def _root() -> bytes:
    found = shutil.which("busybox")
    assert found is not None, "busybox is missing: install busybox-static"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for each in _entries():
            archive.addfile(each)
        _add(archive, "bin/busybox", Path(found).read_bytes(), mode=0o755)
    return content.getvalue()


def _entries() -> Iterator[tarfile.TarInfo]:
    for folder in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        entry = tarfile.TarInfo(folder)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        yield entry
    for applet in _APPLETS:
        entry = tarfile.TarInfo(f"bin/{applet}")
        entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
        yield entry


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _json(found: Any) -> bytes:
    return json.dumps(found).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _descriptor(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _digest(content), "size": len(content)}

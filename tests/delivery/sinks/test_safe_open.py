from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.delivery.sinks.file import File
from ocsf_nft.errors import DeliveryError
from tests.delivery.sinks.batches import messages
from tests.delivery.sinks.disks import disk

if TYPE_CHECKING:
    from collections.abc import Iterator

_OTHER_USER_ID = 65534


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """Return a world-writable directory."""
    folder = tmp_path / "public"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


async def put(path: Path) -> None:
    async with File(path=path) as sink:
        await sink.deliver(messages(b"{}"))


@pytest.mark.parametrize("target", ["other.jsonl", "../files/other.jsonl", "new/other.jsonl"])
async def test_a_link_of_our_own_is_followed(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "events.jsonl").symlink_to("middle")
    (folder / "middle").symlink_to(target)
    await put(folder / "events.jsonl")
    await put(folder / "events.jsonl")
    assert (folder / target).read_bytes() == b"{}\n{}\n"
    assert (folder / "middle").is_symlink()


async def test_file_that_is_our_own_descriptor_is_appended_to(tmp_path: Path) -> None:
    """A shell opens /dev/stdout write-only if it is redirected to a file."""
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'{"a":1}\n{"torn')
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
    try:
        for _ in range(2):
            await put(Path(f"/proc/self/fd/{descriptor}"))
    finally:
        os.close(descriptor)
    assert file.read_bytes() == b'{"a":1}\n{}\n{}\n'


@pytest.mark.kernel
@pytest.mark.parametrize("is_there", [True, False])
async def test_link_of_another_user_is_refused(tmp_path: Path, *, is_there: bool) -> None:
    link, target = tmp_path / "events.jsonl", tmp_path / "target"
    link.symlink_to(target)
    os.lchown(link, _OTHER_USER_ID, _OTHER_USER_ID)
    if is_there:
        target.write_bytes(b"no line")
    with pytest.raises(DeliveryError, match=r"is a symbolic link of user 65534.*: remove it"):
        await put(link)
    assert (target.read_bytes() if is_there else target.exists()) == (b"no line" if is_there else 0)


@pytest.mark.kernel
async def test_a_link_that_comes_later_is_refused_too(tmp_path: Path) -> None:
    path, target = tmp_path / "events.jsonl", tmp_path / "target"
    async with File(path=path) as sink:
        await sink.deliver(messages(b"{}"))
        path.unlink()
        path.symlink_to(target)
        os.lchown(path, _OTHER_USER_ID, _OTHER_USER_ID)
        with pytest.raises(DeliveryError, match="symbolic link"):
            await sink.deliver(messages(b"{}"))
    assert not target.exists()


async def test_error_for_circular_links_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(DeliveryError, match="Too many levels of symbolic links"):
        await put(tmp_path / "a")


async def test_standard_output_has_a_path_too(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    (tmp_path / "stdout").symlink_to(f"/proc/self/fd/{writer}")
    try:
        await put(tmp_path / "stdout")
        assert os.read(reader, 10) == b"{}\n"
    finally:
        os.close(writer)
        os.close(reader)


async def test_a_device_is_written_to() -> None:
    async with File(path=Path(os.devnull)) as sink:
        await sink.deliver(messages(b"{}"))


@pytest.mark.kernel
async def test_file_of_another_user_in_a_public_directory_is_refused(public: Path) -> None:
    path = public / "events.jsonl"
    path.touch()
    os.chown(path, _OTHER_USER_ID, _OTHER_USER_ID)
    with pytest.raises(DeliveryError, match="has a second hard link, in a world-writable"):
        await put(path)
    assert path.read_bytes() == b""


async def test_hard_link_in_a_public_directory_is_refused(public: Path) -> None:
    path, other = public / "events.jsonl", public.parent / "other"
    other.touch()
    path.hardlink_to(other)
    with pytest.raises(DeliveryError, match="second hard link"):
        await put(path)
    path.unlink()
    await put(path)
    await put(path)
    assert (path.read_bytes(), other.read_bytes()) == (b"{}\n{}\n", b"")


@pytest.mark.kernel
async def test_file_of_another_user_in_a_private_directory_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.touch()
    os.chown(path, _OTHER_USER_ID, _OTHER_USER_ID)
    await put(path)
    assert path.read_bytes() == b"{}\n"


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path, size="64k", options="ro"):
        yield tmp_path


@pytest.mark.kernel
async def test_error_for_a_read_only_disk_is_one_sentence(read_only: Path) -> None:
    with pytest.raises(DeliveryError, match="Read-only file system"):
        await put(read_only / "events.jsonl")


async def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="Is a directory"):
        await put(tmp_path)

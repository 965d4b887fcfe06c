"""Tests of the file with the key of redacted secrets."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.errors import UnsupportedError
from ocsf_nft.redaction import KEY_BYTES
from ocsf_nft.state import redaction_key

if TYPE_CHECKING:
    from pathlib import Path


def test_redaction_key_is_created_once_and_private(tmp_path: Path) -> None:
    directory = tmp_path / "new"
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: redaction_key.load(directory), range(32)))
    assert len(keys) == 1
    (key,) = keys
    assert len(key) == KEY_BYTES
    (file,) = directory.iterdir()
    assert file.name == redaction_key.FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert bytes.fromhex(file.read_text(encoding="ascii")) == key
    assert redaction_key.load(tmp_path / "other") != key


def test_redaction_key_that_others_may_read_becomes_private(tmp_path: Path) -> None:
    key = redaction_key.load(tmp_path)
    (tmp_path / redaction_key.FILE).chmod(0o644)
    assert redaction_key.load(tmp_path) == key
    assert stat.S_IMODE((tmp_path / redaction_key.FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["", "00", "x" * 64, "0" * 66, "ä"])
def test_redaction_key_file_with_another_content_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / redaction_key.FILE).write_text(content, encoding="utf-8")
    with pytest.raises(UnsupportedError, match="remove it"):
        redaction_key.load(tmp_path)


def test_redaction_key_that_cannot_be_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / redaction_key.FILE).symlink_to("/dev/zero")
    with pytest.raises(UnsupportedError, match="make the state directory writable"):
        redaction_key.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UnsupportedError, match="make the state directory writable"):
        redaction_key.load(tmp_path / "file")

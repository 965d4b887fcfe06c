from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ocsf_nft.delivery.secrets import Secret
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from pathlib import Path


def test_secret_file_is_read_again_each_time_without_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    secret = Secret("file", str(path))
    assert secret.read() == "first"
    path.write_text(" second ünd \n\n")
    assert secret.read() == " second ünd"


def test_secret_file_of_65536_bytes_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("x" * 65_536)
    assert Secret("file", str(path)).read() == "x" * 65_536


def test_secret_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "t0p")
    assert Secret("environment", "TOKEN").read() == "t0p"


def test_secret_is_read_from_a_systemd_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "hec").write_text("t0p\n")
    assert Secret("credential", "hec").read() == "t0p"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "can't be read: No such file or directory"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"t0ps3cret\r\nX-Other: 1", "is more than one line"),
        (b"t0ps3cret\0", "is more than one line"),
        (b"t0ps3cret\xff", "is not text in UTF-8"),
        (b"t0ps3cret" + b"x" * 65_528, "has more than 65536 bytes"),
    ],
)
def test_invalid_secret_is_an_error_that_does_not_contain_it(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DeliveryError) as refused:
        Secret("file", str(path)).read()
    assert sentence in str(refused.value)
    assert str(path) in str(refused.value)
    assert "t0ps3cret" not in str(refused.value)


def test_missing_secret_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKEN", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(DeliveryError, match="the environment has no TOKEN"):
        Secret("environment", "TOKEN").read()
    with pytest.raises(DeliveryError, match="no credential hec: give the unit LoadCredential="):
        Secret("credential", "hec").read()

"""Tests of the configuration of redaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from ocsf_nft import config
from ocsf_nft.errors import UsageError
from ocsf_nft.service import startup
from ocsf_nft.state import redaction_key

if TYPE_CHECKING:
    from pathlib import Path


def parsed(directory: Path, **table: Any) -> config.Config:
    values = {"host_log": "kmsg", "state_dir": str(directory), "redaction": table}
    return config.parse(values, where="c.toml")


def test_redaction_is_on_by_default_and_uses_the_key_of_the_state(tmp_path: Path) -> None:
    found = [startup.redactor(parsed(tmp_path)).text("token=x") for _ in range(2)]
    assert found[0] == found[1] != "token=x"
    (tmp_path / redaction_key.FILE).unlink()
    assert startup.redactor(parsed(tmp_path)).text("token=x") != found[0]


def test_redaction_that_is_off_has_no_key(tmp_path: Path) -> None:
    assert startup.redactor(parsed(tmp_path, enabled=False)).text("token=x") == "token=x"
    assert not (tmp_path / redaction_key.FILE).exists()


def test_redaction_has_the_configured_patterns(tmp_path: Path) -> None:
    redactor = startup.redactor(parsed(tmp_path, patterns=["corp-[0-9]+", "pin=([0-9]+)"]))
    assert redactor.text("a corp-1 pin=2").startswith("a [redacted:")


def test_redaction_without_a_usable_key_warns_and_redacts(tmp_path: Path) -> None:
    (tmp_path / redaction_key.FILE).write_text("damaged")
    with capture_logs() as logs:
        redactor = startup.redactor(parsed(tmp_path))
    assert redactor.text("token=x").startswith("token=[redacted:")
    (entry,) = logs
    assert entry["log_level"] == "warning"
    assert "remove it" in entry["reason"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"patterns": ["("]}, "no regular expression"),
        ({"patterns": ["x" * 513]}, "shorten it"),
        ({"patterns": ["x"] * 33}, "redaction.patterns"),
        ({"patterns": [7]}, "must be text"),
        ({"key": "x"}, "redaction.key"),
    ],
)
def test_redaction_with_a_wrong_value_is_refused(
    tmp_path: Path, table: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        parsed(tmp_path, **table)

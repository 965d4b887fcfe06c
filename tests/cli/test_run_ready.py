"""Report of a run that is ready."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

import orjson
import pytest
import structlog

from ocsf_nft import config
from ocsf_nft.cli import logs

if TYPE_CHECKING:
    from collections.abc import Iterator

#: In the package, the name is the command.
_RUN = import_module("ocsf_nft.cli.run")
_CONFIG = config.parse(
    {"host_log": "journal", "sandbox": [{"name": "a"}, {"name": "b"}]}, where="the test"
)


@pytest.fixture(autouse=True)
def _configured() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def _shown(settings: logs.LogSettings, capfd: pytest.CaptureFixture[str]) -> str:
    logs.to_stderr(settings)
    _RUN._report_ready(_CONFIG, settings)
    return capfd.readouterr().err


def test_run_that_is_ready_names_its_sandboxes(capfd: pytest.CaptureFixture[str]) -> None:
    record = orjson.loads(_shown(logs.LogSettings("json"), capfd))
    assert (record["event"], record["level"]) == ("ready", "info")
    assert (record["sandboxes"], record["host_log"]) == (["a", "b"], "journal")
    text = _shown(logs.LogSettings("text"), capfd)
    assert text == "ready: watching a, b, logs of other firewalls (journal)\n"


@pytest.mark.parametrize("form", ["json", "text"])
def test_quiet_run_does_not_report_that_it_is_ready(
    capfd: pytest.CaptureFixture[str], form: logs.LogForm
) -> None:
    assert _shown(logs.LogSettings(form, logging.WARNING), capfd) == ""

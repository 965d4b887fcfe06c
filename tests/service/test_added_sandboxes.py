"""Stored sandboxes that were added while a service ran."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from ocsf_nft.config import SandboxConfig
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.netns import HOST
from ocsf_nft.service import added_sandboxes

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.kernel

_KEYS = {"proxy": ["10.200.0.1:3128"]}


def test_stored_sandbox_has_its_namespace(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    config = SandboxConfig.model_validate({"name": "agent", **_KEYS})
    added_sandboxes.store(state, config)
    assert [*added_sandboxes.stored(state)] == [(config, False, HOST.identity())]


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", "{}", '{"sandbox": {}}', '{"sandbox": {}, "namespace": []}',
        '{"sandbox": {}, "namespace": null}', '{"sandbox": {"proxy": 7}, "namespace": []}',
    ],
)  # fmt: skip
def test_stored_sandbox_that_cannot_be_read_is_logged_and_hides_no_other(
    tmp_path: Path, content: str
) -> None:
    state = StateDirectory(tmp_path)
    state.store_added("damaged", content.encode())
    config = SandboxConfig.model_validate({"name": "other", **_KEYS})
    added_sandboxes.store(state, config)
    with capture_logs() as logs:
        assert [each.config for each in added_sandboxes.stored(state)] == [config]
    assert [each["sandbox"] for each in logs] == ["damaged"]

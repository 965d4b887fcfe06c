"""Hooks for Podman and CRI-O; tests/engines runs them in Podman."""

from __future__ import annotations

import json
import re

from ocsf_nft.control_request import SECONDS
from tests.deploy.manifests import ROOT

_HOOKS = ROOT / "deploy/containers/hooks.d"


def test_each_stage_has_a_hook_with_more_time_than_a_request() -> None:
    stages = set()
    for path in _HOOKS.iterdir():
        found = json.loads(path.read_text("utf-8"))
        program, command, stage = found["hook"]["args"]
        assert (program, command) == ("ocsf-nft-oci", "hook")
        assert found["hook"]["path"] == f"/usr/bin/{program}"
        assert found["hook"]["timeout"] > SECONDS
        assert found["stages"] == [stage]
        stages.add(stage)
    assert stages == {"createRuntime", "poststop"}


def test_condition_of_the_guide_is_valid() -> None:
    guide = (_HOOKS.parent / "README.md").read_text("utf-8")
    (condition,) = re.findall(r"`(\"when\": .*?)`", guide)
    ((pattern, value),) = json.loads(f"{{{condition}}}")["when"]["annotations"].items()
    assert re.search(pattern, "org.ocsf-nft.policy")
    assert re.search(value, "agents")

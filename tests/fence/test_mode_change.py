"""The previous mode of a fence, when another fence replaces it."""

from __future__ import annotations

import dataclasses

import pytest

from ocsf_nft.fence import installer
from tests.standing import INSTALLED


@pytest.mark.parametrize(
    ("identity", "had_changed", "was_permissive", "has_changed"),
    [
        (INSTALLED.identity, False, False, False),
        (INSTALLED.identity, False, True, True),
        (INSTALLED.identity, True, False, True),
        ("another namespace", False, True, False),
        ("another namespace", True, False, False),
    ],
)
def test_installer_knows_whether_a_fence_of_the_namespace_had_the_other_mode(
    identity: str, *, had_changed: bool, was_permissive: bool, has_changed: bool
) -> None:
    spec = dataclasses.replace(
        INSTALLED.spec, is_permissive=was_permissive, has_changed=had_changed
    )
    before = dataclasses.replace(INSTALLED, spec=spec)
    found = installer._with_previous_mode(INSTALLED.spec, before, identity)
    assert found == dataclasses.replace(INSTALLED.spec, has_changed=has_changed)

"""Recorded fence, and its verification, for tests without a kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ocsf_nft.fence import installer, verification
from ocsf_nft.fence.spec import FenceSpec, Surroundings
from ocsf_nft.fence.state import InstalledFence
from ocsf_nft.fence.values import endpoint
from ocsf_nft.fence.verification import Verification
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    import pytest

INSTALLED = InstalledFence(
    spec=FenceSpec(sandbox="sb1", proxies=(endpoint("10.200.0.1:3128"),)),
    around=Surroundings(links=("sb0",)),
    namespace=Namespace(),
    identity="4:1",
    transport="nflog",
    policy="",
    listings={"inet ocsf_nft": ""},
)
PERMISSIVE = replace(INSTALLED, spec=replace(INSTALLED.spec, is_permissive=True))


def verified(
    monkeypatch: pytest.MonkeyPatch,
    verdict: Any,
    difference: str = "",
    error: Exception | None = None,
    *,
    installed: InstalledFence = INSTALLED,
) -> None:
    """Make the installer return this verdict, and raise ``error``, if given, on removal."""

    def remove(*_: object) -> bool:
        if error is not None:
            raise error
        return bool(verdict != "absent")

    found = Verification(verdict=verdict, difference=difference, installed=installed)
    monkeypatch.setattr(verification, "verify", lambda *_: found)
    monkeypatch.setattr(installer, "remove", remove)

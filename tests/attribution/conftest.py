"""Fixtures of the attribution tests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.attribution import fallback_chain, socket_lookups
from tests.attribution.calling import NETNS
from tests.attribution.fallback_host import Host

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    here = Host()
    events = (here.sockets.unblocked, here.names.unblocked)
    for event in events:
        event.set()
    monkeypatch.setattr(fallback_chain, "Capture", here.capture)
    for module in (fallback_chain, socket_lookups):
        monkeypatch.setattr(module, "cookie", lambda _namespace: NETNS)
    monkeypatch.setattr(socket_lookups, "SocketLookup", here.lookup)
    monkeypatch.setattr(fallback_chain, "UserNames", lambda: here.names)
    yield here
    for event in events:
        event.set()
    os.close(here.programs.descriptor)

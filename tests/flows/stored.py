"""State database with the account of one sandbox, for tests without a service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from ocsf_nft.flows import codec
from ocsf_nft.state.archive import Archive
from ocsf_nft.state.change import Change
from ocsf_nft.state.state_db import FILE, StateDatabase

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ocsf_nft.flows.sandbox_account import SandboxAccount
    from ocsf_nft.state.change import AccountChange, Position

__all__ = ["FILE", "SANDBOX", "AccountFile"]

SANDBOX: Final = "sb"


class AccountFile(StateDatabase):
    """State database that commits and loads the account of :data:`SANDBOX`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, max_bytes=1 << 30, max_seconds=1e9, drops=False)

    def opened(self) -> Self:
        self.open()
        return self

    def put(
        self, change: AccountChange, events: Sequence[str] = (), position: Position | None = None
    ) -> None:
        """Commit an account's changes, and events with the given uids."""
        lines = [b'{"metadata":{"version":"1.8.0","uid":"%s"}}' % each.encode() for each in events]
        self.commit([Change(events=lines, account=change or None, position=position)])

    def load(self, account: SandboxAccount) -> None:
        codec.restore(account, self.account(SANDBOX).parts)

    def uids(self) -> list[str]:
        """Return the uids of all stored events."""
        with Archive(self.path) as archive:
            return [each.uid for each in archive.read(0)]

"""Accounts of a service's sandboxes by name, for the pipeline."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ocsf_nft.service.account_loop import AccountLoop


class Accounts:
    """Open accounts by the names of their sandboxes.

    A source may have records of a sandbox whose account is not open yet: :meth:`find` waits for it.
    """

    def __init__(self) -> None:
        self._opened: dict[str, AccountLoop] = {}
        self._expected: dict[str, asyncio.Event] = {}

    def expect(self, sandbox: str) -> None:
        """Let :meth:`find` wait for the account of a sandbox, until it is set or dropped."""
        self._expected.setdefault(sandbox, asyncio.Event())

    def set(self, sandbox: str, account: AccountLoop) -> None:
        """Give the records of a sandbox to ``account`` from now on."""
        self._opened[sandbox] = account
        self._settle(sandbox)

    def drop(self, sandbox: str, account: AccountLoop | None = None) -> None:
        """Give no more records to an account; with None, no longer expect one."""
        if account is None:
            self._settle(sandbox)
        elif self._opened.get(sandbox) is account:
            del self._opened[sandbox]

    def _settle(self, sandbox: str) -> None:
        if (expected := self._expected.pop(sandbox, None)) is not None:
            expected.set()

    async def find(self, sandbox: str | None) -> AccountLoop | None:
        """Return the account of a sandbox; None if it has none."""
        if sandbox is None:
            return None
        if (expected := self._expected.get(sandbox)) is not None:
            await expected.wait()
        return self._opened.get(sandbox)

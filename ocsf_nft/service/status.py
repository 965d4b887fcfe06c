"""How the accounts of the sandboxes stand, whether or not anybody runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocsf_nft.accounting.book import FILE, Book
from ocsf_nft.accounting.ledger import Ledger
from ocsf_nft.errors import AbsentError
from ocsf_nft.fence.counters import Counters

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.accounting.balance import Balance
    from ocsf_nft.accounting.book import Lost
    from ocsf_nft.fence.state import Installed, StateDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One sandbox: its rules, what its sources lost, and whether a run watches it now.

    ``read_ns`` is when a run last read the counters (since the epoch, UTC), None when none did.
    """

    sandbox: str
    is_watched: bool
    read_ns: int | None
    balances: tuple[Balance, ...]
    lost: tuple[Lost, ...]


def statuses(state: StateDirectory, sandbox: str | None = None) -> Iterator[Status]:
    """The status of one sandbox, or of all that are on record; blocks for milliseconds each.

    Needs CAP_NET_ADMIN over their namespaces. Raises AbsentError when there is no fence on record,
    and what reading one may raise.
    """
    names = [sandbox] if sandbox is not None else list(state.sandboxes())
    if not names:
        raise AbsentError(f"{state.path} has no sandbox on record: `ocsf-nft install` one")
    for name in names:
        installed = state.read(name)
        if installed is None:
            raise AbsentError(f"{state.path} has no record of sandbox {name}: is it fenced?")
        yield _status(installed, state)


def _status(installed: Installed, state: StateDirectory) -> Status:
    sandbox = installed.spec.sandbox
    ledger = Ledger(sandbox, begun_ns=time.time_ns())
    lost: tuple[Lost, ...] = ()
    path = state.directory(sandbox) / FILE
    with Counters(installed) as counters:
        if path.exists():
            book = Book(path).open(read_only=True)
            try:
                book.load(ledger)
                lost = book.lost()
            finally:
                book.close()
        read_ns = ledger.read_ns
        # Twice: what one reading lacks may be on its way, what both lack has been forgotten.
        for reading in (counters.read(), counters.read()):
            for _ in ledger.observe(reading):
                pass
    return Status(
        sandbox=sandbox,
        is_watched=state.is_watched(sandbox),
        read_ns=read_ns,
        balances=ledger.balances(),
        lost=lost,
    )

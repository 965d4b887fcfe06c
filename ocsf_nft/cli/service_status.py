"""Status of the sandboxes of a running service, in the form of the command `status`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.control.answers import NoServiceError
from ocsf_nft.control.http_call import call, sandbox_target
from ocsf_nft.errors import AbsentError
from ocsf_nft.flows.sandbox_account import Balance
from ocsf_nft.service.status import Status
from ocsf_nft.state.change import DroppedRecords

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_BALANCE: Final = (
    "sandbox", "rule", "mode", "refused", "allowed", "reported", "aggregated", "pending", "dropped",
)  # fmt: skip


def watched_by(control: Path, sandbox: str | None) -> dict[str, Status]:
    """Return the status of each sandbox that a service watches, or of one, by name.

    Omit sandboxes without counts. Raises the errors of
    :func:`http_call.call`.
    """
    if sandbox is not None:
        names = [sandbox]
    else:
        names = [each["name"] for each in call(control, "GET", "/v1/sandboxes")["sandboxes"]]
    found = {}
    for name in names:
        try:
            answer = call(control, "GET", sandbox_target(name))
        except NoServiceError:  # it has stopped
            raise
        except AbsentError:  # it is not the service's, or was released just now
            continue
        if answer["counts"]:
            found[name] = _status(answer)
    return found


def _status(answer: Mapping[str, Any]) -> Status:
    rows = answer["counts"]
    return Status(
        sandbox=answer["name"],
        is_watched=rows[0]["is_watched"],
        mode=rows[0]["fence"],
        absent=tuple(answer["missing_counters"]),
        verdict=rows[0]["verdict"],
        surroundings=tuple(rows[0]["surroundings"]),
        guard_note=answer["guard_note"],
        balances=tuple(Balance(**{key: row[key] for key in _BALANCE}) for row in rows),
        dropped_records=tuple(DroppedRecords(**each) for each in answer["dropped_records"]),
    )

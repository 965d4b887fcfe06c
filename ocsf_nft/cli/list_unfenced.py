"""Part of the command ``list``: network namespaces that no fence encloses."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.cli import output
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.inventory import UnfencedNamespace
    from ocsf_nft.process import Container

_HEADINGS: Final = ("namespace", "fence", "processes", "containers", "reason")
#: Processes and containers that a table names.
_MOST_NAMED: Final = 3


def list_unfenced(state_dir: Path, *, as_json: bool) -> None:
    """Write the network namespaces of this host that no fence encloses.

    ``state_dir`` has the records of the fences. Raises UnsupportedError if /proc can't be read.
    """
    from ocsf_nft.cli.table import write_table
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.inventory import find_unfenced

    found = find_unfenced(StateDirectory(state_dir))
    if as_json:
        for each in found.namespaces:
            output.write_json_of_any_size(_json(each))
    elif found.namespaces:
        write_table(_HEADINGS, [_row(each) for each in found.namespaces])
    else:
        output.show("a fence encloses each network namespace other than the host's")
    for gap in found.gaps:
        output.show(f"ocsf-nft: {gap}")


def _json(found: UnfencedNamespace) -> dict[str, Any]:
    return dataclasses.asdict(found) | {
        "paths": [visible(str(path)) for path in found.paths],
        "containers": [
            {key: value for key, value in dataclasses.asdict(each).items() if value is not None}
            for each in found.containers
        ],
    }


def _row(found: UnfencedNamespace) -> list[str]:
    processes = [f"{each.name or '?'}[{each.pid}]" for each in found.processes]
    return [
        ", ".join(map(str, found.paths)) or found.identity,
        found.verdict,
        _shortened(processes, found.process_count),
        _shortened([_called(each) for each in found.containers], len(found.containers)),
        found.reason,
    ]


def _shortened(names: list[str], number: int) -> str:
    rest = number - min(len(names), _MOST_NAMED)
    return ", ".join([*names[:_MOST_NAMED], *([f"{rest} more"] if rest else [])])


def _called(container: Container) -> str:
    return container.name or container.uid or container.pod_uid or "?"

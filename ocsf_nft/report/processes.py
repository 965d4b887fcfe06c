"""Processes behind events, and their tree: ancestors above the processes that they started."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocsf_nft.ocsf.json_values import at, items, number, text
from ocsf_nft.report.clipped import clipped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ocsf_nft.report.tables import Counts

#: Maximum numbers of ancestors of a process, and of possible senders of one event.
_ANCESTORS: Final = 16
_CANDIDATES: Final = 64
#: Maximum number of characters of a command line.
_ARGUMENTS: Final = 400


class ProcessId(NamedTuple):
    """Name and number of a process, and its program if known."""

    pid: int | None
    name: str
    path: str = ""

    def __str__(self) -> str:
        """Return a text such as ``curl[4242]``."""
        if self.pid is None:
            return self.name
        return f"{self.name}[{self.pid}]" if self.name else f"pid {self.pid}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """Facts about a process that sent packets, or about the sender if only a user is known.

    Unknown texts are empty. All texts are short, and have no invisible characters.
    """

    sandbox: str
    process: ProcessId | None = None
    user: str = ""
    cmd_line: str = ""
    folder: str = ""
    container: str = ""
    sha256: str = ""
    started_ms: int | None = None
    #: The direct parent first.
    ancestors: tuple[ProcessId, ...] = ()
    #: Whether it is only one of several possible senders.
    is_possible: bool = False

    @property
    def name(self) -> str:
        """Return a text such as ``curl[4242]``."""
        return "unknown process" if self.process is None else str(self.process)


def senders(event: Mapping[str, Any], sandbox: str) -> tuple[ProcessFacts, ...]:
    """Return the processes that an event of a sandbox names, the actor first; at least one.

    Without a process, the only item has the user. Possible senders are marked, unless the
    event counts packets of each of them.
    """
    found: dict[int | None, ProcessFacts] = {}
    evidences = items(event.get("evidences"), _CANDIDATES)
    user = _user(at(event, "actor", "user")) or _user(at(event, "evidences", 0, "actor", "user"))
    for source in (at(event, "actor", "process"), *_of_evidences(evidences)):
        if isinstance(source, dict):
            facts = _facts(source, sandbox, user)
            found.setdefault(facts.process and facts.process.pid, facts)
    for source, was_sender in _candidates(event):
        facts = _facts(source, sandbox, user, is_possible=not was_sender)
        found.setdefault(facts.process and facts.process.pid, facts)
    return tuple(found.values()) or (ProcessFacts(sandbox=sandbox, user=user),)


def _of_evidences(evidences: list[Any]) -> Iterator[Any]:
    for each in evidences:
        yield at(each, "process") or at(each, "actor", "process")


def _candidates(event: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield the processes of the enrichment about attribution, and whether each sent a packet."""
    for each in items(event.get("enrichments"), _CANDIDATES):
        if at(each, "type") == "attribution":
            for process in items(at(each, "data", "processes"), _CANDIDATES):
                if isinstance(process, dict):
                    yield process, number(process.get("calls")) is not None


def _facts(
    source: Mapping[str, Any], sandbox: str, user: str, *, is_possible: bool = False
) -> ProcessFacts:
    process = _identity(source)
    return ProcessFacts(
        sandbox=sandbox,
        process=None if process.pid is None and not process.name else process,
        user=_user(source.get("user")) or user,
        cmd_line=clipped(source.get("cmd_line"), _ARGUMENTS),
        folder=clipped(source.get("working_directory")),
        container=_container(source.get("container")),
        sha256=_sha256(source),
        started_ms=number(source.get("created_time")),
        ancestors=tuple(_ancestors(source)),
        is_possible=is_possible,
    )


def _identity(source: Any) -> ProcessId:
    # The attribute path exists from OCSF 1.4 on.
    path = text(at(source, "path")) or text(at(source, "file", "path"))
    name = text(at(source, "name")) or path.rpartition("/")[2] or text(at(source, "file", "name"))
    return ProcessId(number(at(source, "pid")), clipped(name, 64), clipped(path))


def _ancestors(source: Mapping[str, Any]) -> Iterator[ProcessId]:
    listed = items(source.get("ancestry"), _ANCESTORS)
    if listed:
        yield from map(_identity, listed)
        return
    parent = source.get("parent_process")  # OCSF before 1.4 has no ancestry
    for _ in range(_ANCESTORS):
        if not isinstance(parent, dict):
            return
        yield _identity(parent)
        parent = parent.get("parent_process")


def _user(user: Any) -> str:
    uid, name = at(user, "uid"), text(at(user, "name"))
    uid_text = str(number(uid)) if number(uid) is not None else text(uid)
    shown = f"uid {uid_text}" if uid_text else ""
    return clipped(f"{name} ({shown})" if name and shown else name or shown, 80)


def _container(container: Any) -> str:
    name = text(at(container, "name")) or text(at(container, "uid"))
    image = text(at(container, "image", "name"))
    return clipped(f"{name} ({image})" if name and image else name or image)


def _sha256(source: Mapping[str, Any]) -> str:
    for each in items(at(source, "file", "hashes"), 8):
        if at(each, "algorithm_id") == 3:  # SHA-256
            return clipped(at(each, "value"), 64)
    return ""


@dataclass(slots=True)
class ProcessNode:
    """Process in a tree; without rows, it is only an ancestor of others."""

    name: str
    path: str = ""
    rows: list[tuple[ProcessFacts, Counts]] = field(default_factory=list)
    children: dict[tuple[int | None, str], ProcessNode] = field(default_factory=dict)


def tree(rows: Iterable[tuple[ProcessFacts, Counts]]) -> dict[str, ProcessNode]:
    """Return a tree for each sandbox: the oldest known ancestors are its first level.

    A process with several rows, for example after a second program, is one node if the programs
    have the same name.
    """
    roots: dict[str, ProcessNode] = {}
    # Processes with known ancestors come before those without.
    for facts, counts in sorted(rows, key=lambda row: not row[0].ancestors):
        node = roots.setdefault(facts.sandbox, ProcessNode(facts.sandbox))
        for each in reversed(facts.ancestors):
            node = _child(node, each)
        node = _child(node, facts.process or ProcessId(None, facts.name))
        node.rows.append((facts, counts))
    return roots


def _child(node: ProcessNode, process: ProcessId) -> ProcessNode:
    key = process.pid, process.name
    return node.children.setdefault(key, ProcessNode(str(process), process.path))

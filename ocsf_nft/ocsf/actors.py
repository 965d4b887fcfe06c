"""OCSF actors: the user and, if known, the process behind an event, and how it was found."""

from __future__ import annotations

import re
from functools import lru_cache
from posixpath import basename
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf import objects
from ocsf_nft.ocsf.endpoints import observable, observables_below
from ocsf_nft.ocsf.enums import FileType, FingerprintAlgorithm, ObservableType
from ocsf_nft.ocsf.model import CACHED
from ocsf_nft.ocsf.safe_text import shown, visible

if TYPE_CHECKING:
    from ocsf_nft.process import Attribution, Container, Process, Seen
    from ocsf_nft.record import Record

#: Prefix of the "path" of a program without a file (memfd). The name after it may have slashes.
MEMORY: Final = "memfd:"
#: Form of a pod's uid in the schema. The uid of a pod that no API server knows has other forms.
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
#: The attribute that the enrichment is about, also if the event lacks it: then the enrichment
#: states that the process is unknown.
ATTRIBUTION_NAME: Final = "actor.process"
ATTRIBUTION_TYPE: Final = "attribution"


def actor_of(
    record: Record, attribution: Attribution | None, unmapped: dict[str, Any]
) -> objects.Actor | None:
    """Return the sender of a log record's packet as an OCSF actor; None if the sender is unknown.

    ``unmapped`` collects values for which OCSF has no attribute. If the record has a group id but
    no user id, the group id is added to ``unmapped``.
    """
    if record.uid is None and record.gid is not None:
        unmapped["gid"] = record.gid
    user = group = process = None
    if attribution is not None:
        user, group = attribution.user_name, attribution.group_name
        process = attribution.process
    if process is None:
        return None if record.uid is None else user_actor(record.uid, record.gid, user, group)
    # The user of the process may differ from the user of the socket, which the record has.
    if process.uid == record.uid:
        user = process.user_name or user
    if process.gid == record.gid:
        group = process.group_name or group
    return objects.Actor(
        process=_process(process),
        user=None if record.uid is None else _user(record.uid, record.gid, user, group),
    )


def actor_of_process(process: Process) -> objects.Actor:
    """Return an OCSF actor that consists only of a process."""
    return objects.Actor(process=_process(process))


def unmapped_of(process: Process | None) -> dict[str, str]:
    """Return the facts about a process that have no OCSF attribute, such as its systemd unit."""
    if process is None:
        return {}
    inside = container_of(process.container)
    has_pod = inside is not None and inside.pod_uuid is not None
    has_hash = (file := _file(process)) is not None and file.hashes is not None
    facts = {
        "unit": process.unit,
        "pod_uid": None if process.container is None or has_pod else process.container.pod_uid,
        "sha256": None if has_hash else process.sha256,
    }
    return {name: visible(fact) for name, fact in facts.items() if fact is not None}


@lru_cache(maxsize=CACHED)
def user_actor(
    uid: int, gid: int | None = None, name: str | None = None, group: str | None = None
) -> objects.Actor:
    """Return an OCSF actor that consists only of a user, and of the user's group if known."""
    return objects.Actor(user=_user(uid, gid, name, group)).cache_json()


def _user(uid: int, gid: int | None, name: str | None, group: str | None) -> objects.User:
    return objects.User(
        name=shown(name),
        uid=str(uid),
        groups=None if gid is None else (objects.Group(uid=str(gid), name=shown(group)),),
    )


def _process(process: Process) -> objects.Process:
    user = None
    if process.uid is not None:
        user = _user(process.uid, process.gid, process.user_name, process.group_name)
    return objects.Process(
        name=name_of(process),
        pid=process.pid,
        ptid=process.tid,
        path=shown(process.path),
        cmd_line=shown(process.cmd_line),
        working_directory=shown(process.working_directory),
        created_time=None if process.created_ns is None else process.created_ns // 1_000_000,
        file=_file(process),
        user=user,
        parent_process=_parent(process.ancestors[0]) if process.ancestors else None,
        ancestry=tuple(map(_ancestor, process.ancestors)) or None,
        namespace_pid=process.namespace_pid,
        container=container_of(process.container),
    )


def _parent(parent: Process) -> objects.ParentProcess:
    return objects.ParentProcess(
        name=name_of(parent),
        pid=parent.pid,
        path=shown(parent.path),
        file=_file(parent),
    )


def _ancestor(ancestor: Process) -> objects.ProcessEntity:
    return objects.ProcessEntity(
        name=name_of(ancestor), pid=ancestor.pid, path=shown(ancestor.path)
    )


def name_of(process: Process) -> str | None:
    """Return the name of a process's program, else the name that the process gave itself."""
    return shown(program(process) or process.name)


def program(process: Process) -> str:
    """Return the name of a process's program, with or without a file; empty if unknown."""
    path = process.path or ""
    return path if path.startswith(MEMORY) else basename(path)


def _file(process: Process) -> objects.File | None:
    name = program(process)
    if process.path is None or not name:
        return None
    return objects.File(
        name=visible(name),
        path=visible(process.path),
        type_id=FileType.REGULAR_FILE,
        is_deleted=process.is_deleted,
        hashes=_hashes(process.sha256),
    )


def _hashes(sha256: str | None) -> tuple[objects.Fingerprint, ...] | None:
    if sha256 is None or not is_valid_hash(sha256):
        return None
    return (objects.Fingerprint(algorithm_id=FingerprintAlgorithm.SHA_256, value=sha256),)


@lru_cache(maxsize=CACHED)
def container_of(container: Container | None) -> objects.Container | None:
    """Convert a container to its OCSF object; return None if it has neither an id nor a name."""
    if container is None or container.uid is container.name is None:
        return None
    image = None
    if container.image_uid is not None:
        image = objects.Image(uid=visible(container.image_uid), name=shown(container.image_name))
    pod = container.pod_uid
    return objects.Container(
        uid=shown(container.uid),
        name=shown(container.name),
        runtime=shown(container.runtime),
        image=image,
        pod_uuid=None if pod is None or not is_valid_pod_uid(pod) else pod,
        orchestrator=shown(container.orchestrator),
        labels=tuple(map(visible, container.labels)) or None,
    ).cache_json()


def is_valid_hash(text: str) -> bool:
    """Return True if ``text`` is a SHA-256 hash, as OCSF requires."""
    return _SHA256.fullmatch(text) is not None


def is_valid_pod_uid(text: str) -> bool:
    """Return True if the uid of a pod is a UUID, as OCSF requires."""
    return _UUID.fullmatch(text) is not None


def observables_of(actor: objects.Actor | None) -> tuple[objects.Observable, ...]:
    """Return the OCSF observables of an actor, such as the name, pid and user id of its process."""
    if actor is None:
        return ()
    user = () if actor.user is None else _uid_observables(actor.user.uid)
    return user if actor.process is None else (*_of_process(actor.process), *user)


def _of_process(process: objects.Process) -> tuple[objects.Observable, ...]:
    path = sha256 = None
    if (file := process.file) is not None:
        path = file.path
        sha256 = file.hashes[0].value if file.hashes else None
    return observables_below(
        "actor.process",
        ("name", ObservableType.PROCESS_NAME, process.name),
        ("pid", ObservableType.PROCESS_ID, process.pid),
        ("cmd_line", ObservableType.COMMAND_LINE, process.cmd_line),
        ("file.path", ObservableType.FILE_PATH, path),
        ("file.hashes[0].value", ObservableType.HASH, sha256),
    )


@lru_cache(maxsize=CACHED)
def _uid_observables(uid: str) -> tuple[objects.Observable, ...]:
    return (observable("actor.user.uid", ObservableType.USER_UID, uid),)


def enrichments_of(attribution: Attribution | None) -> tuple[objects.Enrichment, ...] | None:
    """Return the event's attribute ``enrichments``: one enrichment, or None."""
    if attribution is None:
        return None
    if attribution.names_no_process:
        return _without_process(attribution)
    return (_enrichment(attribution),)


@lru_cache(maxsize=CACHED)
def _without_process(attribution: Attribution) -> tuple[objects.Enrichment, ...]:
    return (_enrichment(attribution).cache_json(),)


def _enrichment(attribution: Attribution) -> objects.Enrichment:
    process = attribution.process
    data: dict[str, Any] = {"method": attribution.method}
    if attribution.confidence is not None:
        data["confidence"] = attribution.confidence.capitalize()
    data["reason"] = visible(attribution.reason)
    if attribution.seen or attribution.unnamed:
        data["processes"] = [_process_json(each) for each in attribution.seen]
        data["unnamed"] = attribution.unnamed
    return objects.Enrichment(
        name=ATTRIBUTION_NAME,
        value="unknown" if process is None else str(process.pid),
        type=ATTRIBUTION_TYPE,
        provider="ocsf-nft",
        data=data,
    )


def _process_json(seen: Seen) -> dict[str, Any]:
    process = seen.process
    facts = {
        "pid": process.pid,
        "name": name_of(process),
        "path": shown(process.path),
        "cmd_line": shown(process.cmd_line),
        "calls": seen.calls,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def count_others(attribution: Attribution) -> int:
    """Return the number of possible senders other than ``attribution.process``."""
    one = attribution.process
    named = sum(one is None or each.process.pid != one.pid for each in attribution.seen)
    return named + attribution.unnamed


def count_text(number: int, *, was_each: bool) -> str:
    """Return "3 processes", or "one or more of 3 processes" if ``was_each`` is false."""
    processes = f"{number} processes"
    return processes if was_each else f"one or more of {processes}"

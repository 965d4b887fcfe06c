"""Copied values of an attribution, for the slots of an event template.

Two attributions with the same shape differ only in values that an event copies, such as names and
pids. So one template serves all processes with the same known facts.
"""

from __future__ import annotations

import secrets
import uuid
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, cast

import orjson

from ocsf_nft.ocsf import actors
from ocsf_nft.ocsf.cache_sizes import CACHED
from ocsf_nft.ocsf.messages import short_name
from ocsf_nft.ocsf.safe_text import visible
from ocsf_nft.process import Attribution, Container, Process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.process import ConfidenceLevel, Method
    from ocsf_nft.record import Record

#: Shape of a text: True if it is only copied, else the text itself: None or empty.
TextShape: TypeAlias = Literal[True, ""] | None
#: Values for slots: numbers, and texts as JSON without quotation marks.
Values: TypeAlias = tuple[bytes | int | None, ...]

_MEMORY: Final = "memfd:"
#: Half of the characters of a name that is too long for a sentence.
_LONG: Final = 48
#: Characters of the longest path in a cache.
_MAX_CACHED: Final = 256
_PathKind: TypeAlias = Literal["file", "memory", "folder"]


class _ProgramShape(NamedTuple):
    """Facts about a process or an ancestor that the form of an event depends on."""

    name: TextShape
    #: Path of a file, of a program without a file, or another path.
    path: _PathKind | None
    is_deleted: bool | None
    #: Whether a hash is valid; None without a hash.
    has_valid_hash: bool | None


class ContainerShape(NamedTuple):
    """Facts about a container that the form of an event depends on."""

    uid: TextShape
    name: TextShape
    runtime: TextShape
    image_uid: TextShape
    image_name: TextShape
    #: Whether a pod's uid is valid; None without a pod.
    has_valid_pod: bool | None


class _ProcessShape(NamedTuple):
    """Facts about a process that the form of an event depends on."""

    program: _ProgramShape
    #: Whether sentences have only the first characters of its name.
    has_long_name: bool
    has_tid: bool
    cmd_line: TextShape
    working_directory: TextShape
    has_created_time: bool
    has_namespace_pid: bool
    has_uid: bool
    user_name: TextShape
    has_gid: bool
    group_name: TextShape
    container: ContainerShape | None
    unit: TextShape
    ancestors: tuple[_ProgramShape, ...]


class _Program(NamedTuple):
    """Shape of a program, and its copied values: the same for all processes that run it."""

    shape: _ProgramShape
    #: Name, path and hash.
    values: Values
    #: Name in a sentence.
    short_name: bytes | None
    has_long_name: bool


class AttributionShape(NamedTuple):
    """Facts about an attribution that the form of an event depends on."""

    method: Method
    confidence: ConfidenceLevel | None
    reason: str
    user_name: TextShape
    group_name: TextShape
    process: _ProcessShape | None
    #: Whether the process has the user and the group of the record.
    has_uid_of_record: bool
    has_gid_of_record: bool


def text_shape(text: str | None) -> TextShape:
    """Return the shape of a text that an event only copies."""
    return True if text else None if text is None else ""


def text_value(text: str | None) -> bytes | None:
    """Return a text as JSON without quotation marks; invisible characters are escaped."""
    return None if text is None else orjson.dumps(visible(text))[1:-1]


@lru_cache(maxsize=CACHED)
def name_value(name: str | None) -> bytes | None:
    """Return a name that many events have, as :func:`text_value` does."""
    return text_value(name)


def placeholder() -> str:
    """Return a random text, which no event contains by chance."""
    return secrets.token_hex(16)


def number_placeholder() -> int:
    """Return a random number of 18 or 19 digits, which no event contains by chance."""
    # The end of an attempt is the sum of two such numbers, which must fit into 64 bits.
    return (1 << 59) + secrets.randbits(59)


def shape(by: Attribution, record: Record) -> AttributionShape | None:
    """Return the shape of an attribution of ``record``.

    Return None if it can't have a template, for example because it names several processes.
    """
    if by.seen or by.unnamed:
        return None
    process = by.process
    return AttributionShape(
        by.method,
        by.confidence,
        by.reason,
        text_shape(by.user_name),
        text_shape(by.group_name),
        None if process is None else _process_shape(process),
        process is not None and process.uid == record.uid,
        process is not None and process.gid == record.gid,
    )


def values(by: Attribution | None) -> Values:
    """Return the copied values of an attribution; their order depends only on its shape."""
    if by is None:
        return ()
    names = (name_value(by.user_name), name_value(by.group_name))
    return names if by.process is None else names + _process_values(by.process)


def specimen(form: AttributionShape, uid: int | None, gid: int | None) -> Attribution:
    """Return an attribution of a shape, with a random placeholder for each copied value.

    ``uid`` and ``gid`` are the ids of its record.
    """
    process = None
    if (of := form.process) is not None:
        process = replace(
            _program_specimen(of.program, has_long_name=of.has_long_name),
            tid=number_placeholder() if of.has_tid else None,
            cmd_line=_text(of.cmd_line),
            working_directory=_text(of.working_directory),
            created_ns=number_placeholder() * 1_000_000 if of.has_created_time else None,
            namespace_pid=number_placeholder() if of.has_namespace_pid else None,
            uid=_id(uid, has=of.has_uid, is_of_record=form.has_uid_of_record),
            user_name=_text(of.user_name),
            gid=_id(gid, has=of.has_gid, is_of_record=form.has_gid_of_record),
            group_name=_text(of.group_name),
            container=container_specimen(of.container),
            unit=_text(of.unit),
            ancestors=tuple(_program_specimen(each) for each in of.ancestors),
        )
    return Attribution(
        method=form.method,
        confidence=form.confidence,
        reason=form.reason,
        process=process,
        user_name=_text(form.user_name),
        group_name=_text(form.group_name),
    )


def _process_shape(process: Process) -> _ProcessShape:
    found = _program_of(process)
    return _ProcessShape(
        found.shape,
        found.has_long_name,
        process.tid is not None,
        text_shape(process.cmd_line),
        text_shape(process.working_directory),
        process.created_ns is not None,
        process.namespace_pid is not None,
        process.uid is not None,
        text_shape(process.user_name),
        process.gid is not None,
        text_shape(process.group_name),
        container_shape(process.container),
        text_shape(process.unit),
        _ancestor_shapes(process.ancestors),
    )


def _ancestor_shapes(ancestors: Sequence[Process]) -> tuple[_ProgramShape, ...]:
    """Return the shapes of a process's ancestors, the parent first.

    An event has the file of the parent, but only the name and path of the others.
    """
    found = [_program_of(each).shape for each in ancestors]
    return (*found[:1], *map(_without_file, found[1:]))


def _without_file(found: _ProgramShape) -> _ProgramShape:
    # The path of a program with a name may as well be that of a file.
    path = found.path and ("file" if found.name is True else found.path)
    return _ProgramShape(found.name, path, None, None)


def _program_of(process: Process) -> _Program:
    # A program may choose a long path: the cache must not need much memory.
    is_cached = process.path is None or len(process.path) <= _MAX_CACHED
    make = _program if is_cached else _program.__wrapped__
    return make(process.name, process.path, process.is_deleted, process.sha256)


@lru_cache(maxsize=CACHED)
def _program(
    name: str | None, path: str | None, is_deleted: bool | None, sha256: str | None
) -> _Program:
    process = Process(pid=0, name=name, path=path)
    shown, kind = actors.name_of(process), None
    if path is not None and not actors.program(process):
        kind = "folder"
    elif path is not None:
        kind = "memory" if path.startswith(_MEMORY) else "file"
    return _Program(
        _ProgramShape(
            text_shape(shown),
            cast("_PathKind | None", kind),
            is_deleted,
            None if sha256 is None else actors.is_valid_hash(sha256),
        ),
        (text_value(shown), text_value(path), text_value(sha256)),
        text_value(short_name(process)),
        short_name(process) != shown,
    )


@lru_cache(maxsize=CACHED)
def container_shape(container: Container | None) -> ContainerShape | None:
    """Return the shape of a container."""
    if container is None:
        return None
    pod = container.pod_uid
    return ContainerShape(
        text_shape(container.uid),
        text_shape(container.name),
        text_shape(container.runtime),
        text_shape(container.image_uid),
        text_shape(container.image_name),
        None if pod is None else actors.is_valid_pod_uid(pod),
    )


def _process_values(process: Process) -> Values:
    program = _program_of(process)
    return (
        process.pid,
        *program.values,
        program.short_name,
        process.tid,
        text_value(process.cmd_line),
        text_value(process.working_directory),
        None if process.created_ns is None else process.created_ns // 1_000_000,
        process.namespace_pid,
        process.uid,
        name_value(process.user_name),
        process.gid,
        name_value(process.group_name),
        *container_values(process.container),
        name_value(process.unit),
        *(value for each in process.ancestors for value in (each.pid, *_program_of(each).values)),
    )


@lru_cache(maxsize=CACHED)
def container_values(container: Container | None) -> Values:
    """Return the copied values of a container; their number depends only on its shape."""
    if container is None:
        return ()
    return tuple(
        map(
            text_value,
            (
                container.uid,
                container.name,
                container.runtime,
                container.image_uid,
                container.image_name,
                container.pod_uid,
            ),
        )
    )


def _text(form: TextShape) -> str | None:
    return placeholder() if form is True else form


def _id(of_record: int | None, *, has: bool, is_of_record: bool) -> int | None:
    if is_of_record:
        return of_record
    return number_placeholder() if has else None


def _program_specimen(form: _ProgramShape, *, has_long_name: bool = False) -> Process:
    name = secrets.token_hex(_LONG) if has_long_name else placeholder()
    paths = {
        "memory": f"{_MEMORY}{name}",
        "file": f"/{placeholder()}/{name}",
        "folder": f"/{placeholder()}/",
    }
    has_hash, is_valid = form.has_valid_hash is not None, form.has_valid_hash
    return Process(
        name=name if form.name is True else form.name,
        pid=number_placeholder(),
        path=None if form.path is None else paths[form.path],
        is_deleted=form.is_deleted,
        sha256=(secrets.token_hex(32) if is_valid else placeholder()) if has_hash else None,
    )


def container_specimen(form: ContainerShape | None) -> Container | None:
    """Return a container of a shape, with a random placeholder for each copied value."""
    if form is None:
        return None
    has_pod, is_valid = form.has_valid_pod is not None, form.has_valid_pod
    return Container(
        uid=_text(form.uid),
        name=_text(form.name),
        runtime=_text(form.runtime),
        image_uid=_text(form.image_uid),
        image_name=_text(form.image_name),
        pod_uid=(str(uuid.uuid4()) if is_valid else placeholder()) if has_pod else None,
    )

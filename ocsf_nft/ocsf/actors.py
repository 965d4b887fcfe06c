"""Who did it: the user that the kernel's record names, and the process, where somebody looked."""

from __future__ import annotations

from functools import lru_cache
from posixpath import basename
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf import objects
from ocsf_nft.ocsf.caching import CACHED
from ocsf_nft.ocsf.endpoints import observable
from ocsf_nft.ocsf.enums import FileType, ObservableType
from ocsf_nft.ocsf.objects import (
    Actor,
    File,
    Group,
    Image,
    Observable,
    ParentProcess,
    ProcessEntity,
    User,
)
from ocsf_nft.ocsf.text import visible

if TYPE_CHECKING:
    from ocsf_nft.process import Container, Process
    from ocsf_nft.record import Record

_PROCESS: Final = "actor.process"


def actor_of(record: Record, process: Process | None, left_over: dict[str, Any]) -> Actor | None:
    """Who sent it, by all that is known; a group without a user goes to ``left_over``."""
    if record.uid is None and record.gid is not None:
        left_over["gid"] = record.gid
    if process is None:
        return None if record.uid is None else _user_actor(record.uid, record.gid)
    return Actor(
        process=_process(process),
        user=None if record.uid is None else _user(record.uid, record.gid, process),
    )


def actor_of_process(process: Process) -> Actor:
    """A process alone, that no record of a packet names a user of."""
    return Actor(process=_process(process))


@lru_cache(maxsize=CACHED)
def _user_actor(uid: int, gid: int | None) -> Actor:
    return Actor(user=_user(uid, gid, None)).keep_json()


def _user(uid: int, gid: int | None, process: Process | None) -> User:
    is_its = process is not None and process.uid == uid
    return User(
        name=_shown(process.user_name) if is_its and process is not None else None,
        uid=str(uid),
        groups=None if gid is None else (Group(uid=str(gid)),),
    )


def _process(process: Process) -> objects.Process:
    path = _shown(process.path)
    return objects.Process(
        name=name_of(process),
        pid=process.pid,
        path=path,
        cmd_line=_shown(process.cmd_line),
        working_directory=_shown(process.working_directory),
        created_time=None if process.created_ns is None else process.created_ns // 1_000_000,
        file=_file(path, is_deleted=process.is_deleted),
        user=(
            None
            if process.uid is None
            else User(name=_shown(process.user_name), uid=str(process.uid))
        ),
        parent_process=_parent(process.ancestors[0]) if process.ancestors else None,
        ancestry=tuple(map(_ancestor, process.ancestors)) or None,
        namespace_pid=process.namespace_pid,
        container=container_of(process.container),
    )


def _parent(parent: Process) -> ParentProcess:
    path = _shown(parent.path)
    return ParentProcess(
        name=name_of(parent),
        pid=parent.pid,
        path=path,
        file=_file(path, is_deleted=parent.is_deleted),
    )


def _ancestor(ancestor: Process) -> ProcessEntity:
    return ProcessEntity(name=name_of(ancestor), pid=ancestor.pid, path=_shown(ancestor.path))


def name_of(process: Process) -> str | None:
    """What to call a process: by its program, for it chooses its own name itself."""
    return _shown(basename(process.path or "") or process.name)


def _file(path: str | None, *, is_deleted: bool | None) -> File | None:
    name = basename(path or "")
    if path is None or not name:
        return None
    return File(name=name, path=path, type_id=FileType.REGULAR_FILE, is_deleted=is_deleted)


@lru_cache(maxsize=CACHED)
def container_of(container: Container | None) -> objects.Container | None:
    """A container as OCSF has it; None when it has no name of any kind."""
    if container is None or container.uid is container.name is None:
        return None
    image = None
    if container.image_uid is not None:
        image = Image(uid=visible(container.image_uid), name=_shown(container.image_name))
    return objects.Container(
        uid=_shown(container.uid),
        name=_shown(container.name),
        runtime=_shown(container.runtime),
        image=image,
    ).keep_json()


def _shown(text: str | None) -> str | None:
    return None if text is None else visible(text)


def observables_of(actor: Actor | None) -> tuple[Observable, ...]:
    """What to look up of who did it."""
    if actor is None:
        return ()
    user = () if actor.user is None else _uid_observables(actor.user.uid)
    return user if actor.process is None else (*_of_process(actor.process), *user)


def _of_process(process: objects.Process) -> tuple[Observable, ...]:
    found = (
        ("name", ObservableType.PROCESS_NAME, process.name),
        ("pid", ObservableType.PROCESS_ID, str(process.pid)),
        ("cmd_line", ObservableType.COMMAND_LINE, process.cmd_line),
        (
            "file.path",
            ObservableType.FILE_PATH,
            None if process.file is None else process.file.path,
        ),
    )
    return tuple(
        observable(f"{_PROCESS}.{name}", kind, value)
        for name, kind, value in found
        if value is not None
    )


@lru_cache(maxsize=CACHED)
def _uid_observables(uid: str) -> tuple[Observable, ...]:
    return (observable("actor.user.uid", ObservableType.USER_UID, uid),)

"""Inventory of the host's network namespaces that no fence encloses."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from ocsf_nft import namespace_names, namespace_processes, proc
from ocsf_nft.attribution import containers
from ocsf_nft.errors import AbsentError, OcsfNftError, UsageError
from ocsf_nft.fence import table_query
from ocsf_nft.fence.spec import tables_of
from ocsf_nft.netns import HOST, Namespace, of_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.namespace_names import NamespaceName
    from ocsf_nft.process import Container

#: ``unfenced``: the namespace has no fence. ``unrecorded``: it has a table with our name, but the
#: state directory has no record of that fence. ``unknown``: it could not be checked.
FenceVerdict: TypeAlias = Literal["unfenced", "unrecorded", "unknown"]

#: Time limit, in seconds. Of this, the search for processes takes at most half.
_SECONDS: Final = 10.0
#: Maximum number of processes of a namespace with name and container.
_MOST_PROCESSES: Final = 20
#: Maximum number of files to try, because the processes of a namespace may exit.
_MOST_FILES: Final = 32
_LATE: Final = "there was no time to check it"
_TABLE, _ = tables_of(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceProcess:
    """Process in a network namespace.

    The process itself chose ``name``, which may contain any characters. ``name`` is None if it is
    unknown, for example because the process has exited.
    """

    pid: int
    name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfencedNamespace:
    """Network namespace without a fence, or with an unknown one.

    ``paths`` are the paths of its file, such as ``/run/netns/NAME``, without paths in /proc; any of
    their characters may be unprintable. ``processes`` are those with the lowest pids, and
    ``process_count`` is the number of all processes. ``containers`` are those of ``processes``.
    ``reason`` explains the verdict in one sentence, which may contain untrusted text.
    """

    identity: str
    paths: tuple[Path, ...]
    processes: tuple[NamespaceProcess, ...]
    process_count: int
    containers: tuple[Container, ...]
    verdict: FenceVerdict
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Unfenced network namespaces, and reasons why there may be more (``gaps``: sentences)."""

    namespaces: tuple[UnfencedNamespace, ...]
    gaps: tuple[str, ...]


def find_unfenced(state: StateDirectory | None = None, *, timeout_s: float = _SECONDS) -> Inventory:
    """Return all network namespaces of the host that no fence encloses.

    A namespace is fenced if it has the nftables table ``inet ocsf_nft``. A process with
    CAP_NET_ADMIN in the namespace can create such a table. With ``state``, the state directory must
    also have a record of a fence in this namespace for the sandbox in the table's comment. The
    fence of a VM encloses only the VM, so it does not count.

    The result omits the namespaces of this process and of pid 1: they are the host's, with its own
    traffic. It can't contain a namespace that has neither a process nor a name in our mount
    namespace, for example if only an open descriptor holds the namespace.

    An error of one namespace becomes an entry with the verdict ``unknown``. This also applies to
    namespaces that were not checked within ``timeout_s`` seconds. The entries are sorted by
    identity. Blocks. Raises UnsupportedError if /proc can't be read.
    """
    end = time.monotonic() + timeout_s
    names: dict[str, list[NamespaceName]] = {}
    for name in namespace_names.find_names():
        names.setdefault(name.identity, []).append(name)
    scan = namespace_processes.scan(timeout_s=timeout_s / 2)
    candidates = sorted({*names, *scan.threads} - set(_of_host()), key=_numbers)
    found = (
        _inspect(_Candidate(identity, names.get(identity, ()), scan.of(identity)), state, end)
        for identity in candidates
    )
    return Inventory(namespaces=tuple(filter(None, found)), gaps=scan.gaps)


class _Candidate(NamedTuple):
    """Network namespace to check; ``threads`` are ids of threads by pid."""

    identity: str
    names: Sequence[NamespaceName]
    threads: Mapping[int, int]

    def files(self) -> Iterator[Namespace]:
        """Yield the files of the namespace; some may have been replaced or covered."""
        for name in self.names:
            yield Namespace(name.path)
        for pid, thread in self.threads.items():
            yield Namespace(namespace_processes.thread_file(pid, thread))


class _Check(NamedTuple):
    verdict: FenceVerdict
    reason: str


class _Details(NamedTuple):
    name: str | None = None
    container: Container | None = None


def _of_host() -> Iterator[str]:
    yield HOST.identity()
    with contextlib.suppress(OcsfNftError):  # then the scan can't read it either
        yield of_process(1).identity()


def _numbers(identity: str) -> tuple[int, ...]:
    return tuple(map(int, identity.split(":")))


def _inspect(
    candidate: _Candidate, state: StateDirectory | None, end: float
) -> UnfencedNamespace | None:
    """Return None if the namespace is fenced, or if it no longer exists."""
    has_time = time.monotonic() < end
    try:
        check = _check(candidate, state) if has_time else _Check("unknown", _LATE)
    except OcsfNftError as error:
        check = _Check("unknown", str(error))
    if check is None:
        return None
    pids = sorted(candidate.threads)[:_MOST_PROCESSES]
    details = [_details(pid, candidate) if has_time else _Details() for pid in pids]
    return UnfencedNamespace(
        identity=candidate.identity,
        paths=tuple(sorted({name.path for name in candidate.names})),
        processes=tuple(
            NamespaceProcess(pid=pid, name=each.name)
            for pid, each in zip(pids, details, strict=True)
        ),
        process_count=len(candidate.threads),
        containers=tuple(dict.fromkeys(filter(None, (each.container for each in details)))),
        verdict=check.verdict,
        reason=check.reason,
    )


def _check(candidate: _Candidate, state: StateDirectory | None) -> _Check | None:
    """Return None if the namespace is fenced, or if it no longer exists.

    Raises an error if the namespace can't be checked.
    """
    refusal: OcsfNftError | None = None
    for file in islice(candidate.files(), _MOST_FILES):
        try:
            is_of_it = file.has_identity(candidate.identity)
        except OcsfNftError as error:  # another file may be permitted
            refusal = error
            continue
        if is_of_it:
            with contextlib.suppress(AbsentError):
                check = _check_file(file, candidate.identity, state)
                # Before and after the check, the file is that of the namespace.
                if file.has_identity(candidate.identity):
                    return check
    if refusal is not None:
        raise refusal
    if any(name.is_hidden for name in candidate.names):
        return _Check("unknown", "another mount covers its path")
    if len(candidate.threads) > _MOST_FILES:
        return _Check("unknown", "its processes exited while it was checked")
    return None


def _check_file(file: Namespace, identity: str, state: StateDirectory | None) -> _Check | None:
    table = " ".join(_TABLE)
    if table_query.comment(file, *_TABLE) is None:
        return _Check("unfenced", f"it has no table {table}")
    if state is None or _is_recorded(table_query.owning_sandbox(file, _TABLE), identity, state):
        return None
    return _Check("unrecorded", f"{state.path} has no record of the fence of its table {table}")


def _is_recorded(sandbox: str | None, identity: str, state: StateDirectory) -> bool:
    """Return True if there is a record of a fence of this sandbox in this namespace."""
    if sandbox is None:
        return False
    try:
        installed = state.read_or_none(sandbox)
    except UsageError:  # not a valid sandbox name
        return False
    return (
        installed is not None and installed.identity == identity and _TABLE in installed.spec.tables
    )


def _details(pid: int, candidate: _Candidate) -> _Details:
    """Read the name and the container of a process; unknown values are None."""
    found = _Details()
    with contextlib.suppress(OSError, ValueError, OcsfNftError), proc.opened(f"/proc/{pid}") as at:
        found = _Details(proc.text(proc.stat(at).name))
        with contextlib.suppress(FileNotFoundError):  # a kernel without cgroups
            cgroups = proc.text(proc.read("cgroup", at))
            found = found._replace(container=containers.parse_cgroups(cgroups).container)
        # The descriptor never refers to a later process with the same pid.
        thread = Path(f"/proc/self/fd/{at}/task/{candidate.threads[pid]}/ns/net")
        if Namespace(thread).has_identity(candidate.identity):
            return found
    return _Details()

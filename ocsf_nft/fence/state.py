"""State directory: one file for each sandbox, with the record of the sandbox's installed fence.

Commands such as ``verify``, ``remove`` and ``run`` find this record by the sandbox's name.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import pydantic

from ocsf_nft.errors import DeliveryError, FenceError, OcsfNftError
from ocsf_nft.fence import values
from ocsf_nft.fence.spec import FenceSpec, LogTransport, Surroundings, TableId
from ocsf_nft.fence.state_locks import StateLocks, unwritable
from ocsf_nft.fence.surroundings.facts import Snapshot
from ocsf_nft.netns import HOST, Namespace
from ocsf_nft.nfnetlink import Generation

DEFAULT_DIRECTORY: Final = Path("/var/lib/ocsf-nft")

_FILE: Final = "fence.json"
#: Name of a file that is being written; the number is that of the process.
_TEMPORARY: Final = re.compile(r"\.[a-z.]+\.([0-9]+)", re.ASCII)
#: File with the keys of a sandbox that was added while a service ran.
_SANDBOX: Final = "sandbox.json"
#: Id of the BPF program of the last gate, after the boot that it belongs to.
_GATE: Final = "gate"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
#: File with the identity and the path of the database that has the sandbox's packet counts.
_DATABASE: Final = "database"


class AccountPlace(NamedTuple):
    """State database that has the packet counts of a sandbox: its path, and its identity.

    The identity is a random text inside the database.
    """

    path: Path
    identity: str


def _stored_namespace(namespace: Namespace) -> dict[str, Path | None]:
    return {"path": namespace.path}  # ``identity`` has what a pin has


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledFence:
    """Record of an installed fence, as the state directory stores it."""

    #: The operator's request.
    spec: FenceSpec
    #: Network interfaces and next hops, as found at the installation.
    around: Surroundings
    namespace: Annotated[Namespace, pydantic.PlainSerializer(_stored_namespace)]
    #: :meth:`Namespace.identity` of ``namespace``. If another namespace later has the same path,
    #: the identity normally differs.
    identity: str
    transport: LogTransport
    #: Reason why the fence can't log packets; None in the normal case.
    degraded: str | None = None
    #: Digest of the loaded rulesets.
    policy: str
    #: nft's listing of each table, by name, such as ``inet ocsf_nft``.
    listings: Mapping[str, str]
    #: True while the fence is turned off, before its removal.
    is_ending: bool = False
    #: Surroundings that were accepted at the first installation in this namespace. None for a VM,
    #: and in a record of an older version.
    accepted: Snapshot | None = field(default=None, compare=False)
    #: Generation of the ruleset with these listings in each namespace of :class:`RulesetVersion`;
    #: not stored, and None if unknown.
    generations: Annotated[tuple[Generation, ...] | None, pydantic.Field(exclude=True)] = field(
        default=None, compare=False
    )

    def tables_by_namespace(self) -> list[tuple[Namespace, tuple[TableId, ...]]]:
        """Return the namespaces of the fence's tables, each with its tables; the sandbox's first.

        Raises AbsentError if the sandbox's namespace does not exist, UnsupportedError.
        """
        tables, guard = tuple(self.spec.tables), tuple(self.spec.guard_tables)
        if guard and self.namespace.identity() != HOST.identity():
            return [(self.namespace, tables), (HOST, guard)]
        return [(self.namespace, (*tables, *guard))]


_INSTALLED_FENCE: Final = pydantic.TypeAdapter(InstalledFence)


class StateDirectory(StateLocks):
    """Directory with the records of installed fences, locks, and sysctl values to restore later.

    The first write or lock creates the directory, with mode 0700.
    """

    def __init__(self, path: Path = DEFAULT_DIRECTORY) -> None:
        super().__init__(path)
        #: Records of the sandboxes that this run watches, and the versions of their files.
        self._read: dict[str, tuple[tuple[int, ...] | None, InstalledFence]] = {}

    def read(self, sandbox: str) -> InstalledFence | None:
        """Return the record of a sandbox's fence; None if there is no record.

        Raises FenceError if the file of the record is damaged or can't be read.
        """
        file = self.directory(sandbox) / _FILE
        version = self.version(sandbox)  # before the content, so that it is never too new
        known, found = self._read.get(sandbox, (None, None))
        if found is not None and version is not None and version == known:
            return found
        self._read.pop(sandbox, None)
        content = _content(file)
        if content is None:
            return None
        try:
            found = _INSTALLED_FENCE.validate_json(content)
        except (pydantic.ValidationError, OcsfNftError) as error:
            raise FenceError(f"{file} is damaged: remove it and install the fence again") from error
        if sandbox in self._runs.sandboxes:
            self._read[sandbox] = version, found
        return found

    def read_or_none(self, sandbox: str) -> InstalledFence | None:
        """Return the record of a sandbox's fence; None if it is missing, damaged or unreadable."""
        try:
            return self.read(sandbox)
        except FenceError:
            return None

    def directory(self, sandbox: str) -> Path:
        """Return the directory for a sandbox's state files; this directory may not exist yet."""
        return self.path / values.sandbox_name(sandbox)

    def written_ns(self, sandbox: str) -> int | None:
        """Return the time when the record of a sandbox's fence was last written.

        The time is in ns since the epoch. Return None if there is no record.
        """
        found = self._stat(sandbox)
        return None if found is None else found.st_mtime_ns

    def version(self, sandbox: str) -> tuple[int, ...] | None:
        """Return a value that changes with each write of the record of a sandbox's fence.

        Compare two values only for equality. Return None if there is no record.
        """
        found = self._stat(sandbox)
        return None if found is None else _version(found)

    def _stat(self, sandbox: str) -> os.stat_result | None:
        try:
            return (self.directory(sandbox) / _FILE).stat()
        except OSError:
            return None

    def account_place(self, sandbox: str) -> AccountPlace | None:
        """Return which state database has a sandbox's packet counts.

        Return None if no database has counts of the sandbox. Raises FenceError if that can't be
        read.
        """
        file = self.directory(sandbox) / _DATABASE
        content = _content(file)
        if content is None:
            return None
        identity, _, path = content.partition(b"\n")
        try:
            return AccountPlace(self.path / os.fsdecode(path), identity.decode("ascii"))
        except ValueError as error:
            raise FenceError(f"{file} can't be read: {error}") from error

    def set_account_place(self, sandbox: str, place: AccountPlace) -> None:
        """Store which state database has a sandbox's packet counts, and sync it to disk.

        Raises DeliveryError if this can't be stored.
        """
        path = place.path.absolute()
        with contextlib.suppress(ValueError):  # below the state directory, which may be moved
            path = path.relative_to(self.path.absolute())
        content = place.identity.encode("ascii") + b"\n" + os.fsencode(path)
        self._write(self.directory(sandbox) / _DATABASE, content)

    def delete_account_place(self, sandbox: str) -> None:
        """Store that no state database has packet counts of a sandbox.

        Raises DeliveryError if this can't be stored.
        """
        directory = self.directory(sandbox)
        try:
            _delete(directory / _DATABASE)
        except OSError as error:
            raise unwritable(directory, error) from error

    @contextlib.contextmanager
    def run_lock(self, sandbox: str) -> Iterator[None]:
        """Hold the sandbox's monitoring lock, see :meth:`StateLocks.run_lock`."""
        try:
            with super().run_lock(sandbox):
                yield
        finally:
            self._read.pop(sandbox, None)

    def sandboxes(self) -> Iterator[str]:
        """Yield the sorted names of the sandboxes with a record of a fence.

        Raises FenceError if the directory can't be read.
        """
        for name in self._names():
            if os.access(self.path / name / _FILE, os.F_OK):
                yield name

    def _names(self) -> list[str]:
        # Not with Path.glob, which returns nothing for an unreadable directory.
        try:
            return sorted(each.name for each in self.path.iterdir() if each.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise FenceError(f"{self.path} can't be read: {error.strerror}") from error

    def write(self, installed: InstalledFence) -> None:
        """Store the record of a fence, and sync it to disk; raises DeliveryError if this fails."""
        sandbox = installed.spec.sandbox
        content = _INSTALLED_FENCE.dump_json(installed, indent=2)
        written = self._write(self.path / sandbox / _FILE, content)
        if sandbox in self._runs.sandboxes:
            self._read[sandbox] = _version(written), installed

    def _write(self, path: Path, content: bytes) -> os.stat_result:
        temporary = path.parent / f".{path.name}.{os.getpid()}"
        try:
            for folder in (self.path, path.parent):  # parents that mkdir creates would be 0755
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                written = os.fstat(file.fileno())
            # A reader finds the old or the new file, never a part of one, even after a crash.
            temporary.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):  # report the first error, not this one
                temporary.unlink(missing_ok=True)
            raise unwritable(path.parent, error) from error
        return written

    def added(self) -> dict[str, bytes]:
        """Return the stored keys of all sandboxes that were added while a service ran, by name.

        Raises FenceError if a file can't be read.
        """
        found = {}
        for name in self._names():
            content = _content(self.path / name / _SANDBOX)
            if content is not None:
                found[name] = content
        return found

    def store_added(self, sandbox: str, keys: bytes) -> None:
        """Store the keys of a sandbox that is added while a service runs, and sync them to disk.

        Raises DeliveryError if this fails.
        """
        self._write(self.directory(sandbox) / _SANDBOX, keys)

    def delete_added(self, sandbox: str) -> None:
        """Delete the stored keys of a sandbox; raises DeliveryError if this fails."""
        directory = self.directory(sandbox)
        try:
            _delete(directory / _SANDBOX)
        except OSError as error:
            raise unwritable(directory, error) from error

    def remove_leftovers(self) -> None:
        """Remove files and folders that a process left when it was killed during a write.

        Raises FenceError if the directory can't be read.
        """
        with contextlib.suppress(OSError, DeliveryError), self.locked():
            for name in self._names():
                folder = self.path / name
                for each in folder.iterdir():
                    found = _TEMPORARY.fullmatch(each.name)
                    if found is not None and not Path("/proc", found[1]).exists():
                        each.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # it is in use
                    folder.rmdir()

    def store_gate(self, sandbox: str, programs: frozenset[int]) -> None:
        """Store the ids of the BPF programs that belong to the last gate of a sandbox's fence.

        Raises DeliveryError if this can't be stored.
        """
        words = (_boot_id(), *(b"%d" % each for each in sorted(programs)))
        self._write(self.directory(sandbox) / _GATE, b" ".join(words) + b"\n")

    def gate(self, sandbox: str) -> frozenset[int]:
        """Return the ids of :meth:`store_gate` of this boot; empty if there are none.

        The kernel uses no id again for another program before 2^31 others.
        """
        try:
            boot, *programs = (self.directory(sandbox) / _GATE).read_bytes().split()
            return frozenset(map(int, programs) if boot == _boot_id() else ())
        except (OSError, ValueError):  # there is no gate, or the file is damaged
            return frozenset()

    def delete(self, sandbox: str) -> None:
        """Delete the record of a sandbox's fence, if any; other files of the sandbox stay."""
        self._read.pop(sandbox, None)
        # First: without a record, no check of a run takes the gate for another process's program.
        (self.directory(sandbox) / _FILE).unlink(missing_ok=True)
        _delete(self.directory(sandbox) / _GATE)

    def stored_sysctls(self, name: str) -> bytes | None:
        """Return the values of sysctls that :meth:`store_sysctls` stored under a name, or None.

        Raises FenceError if the file can't be read.
        """
        return _content(self._sysctls(name))

    def store_sysctls(self, name: str, content: bytes) -> None:
        """Store the values that sysctls have before a fence changes them.

        Raises DeliveryError if the file can't be written.
        """
        self._write(self._sysctls(name), content)

    def delete_sysctls(self, name: str) -> None:
        """Delete the stored values of sysctls; call this after restoring them."""
        self._sysctls(name).unlink(missing_ok=True)

    def _sysctls(self, name: str) -> Path:
        # A file of its own, so that a damaged record of a fence does not affect it. It is not a
        # directory, as each sandbox has.
        return self.path / f"{name}.before"


def _boot_id() -> bytes:
    return _BOOT_ID.read_bytes().strip()


def _version(found: os.stat_result) -> tuple[int, ...]:
    return found.st_ino, found.st_mtime_ns, found.st_size


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FenceError(f"{path} can't be read: {error.strerror}") from error


def _delete(path: Path) -> None:
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the sandbox may have other files there
        path.parent.rmdir()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

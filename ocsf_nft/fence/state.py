"""State directory: a record of each installed fence, in one file per sandbox.

A command needs only the name of a sandbox to find the record of its fence. ``verify`` compares the
fence with the record, ``remove`` deletes the recorded tables, and ``run`` resumes the recorded
fence. To change a record, a new file is written and then renamed over the old file. So a reader
finds the old record or the new record, never a part of one, also after a crash.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pydantic

from ocsf_nft.errors import DeliveryError, FenceError, OcsfNftError, SourceError
from ocsf_nft.fence import values
from ocsf_nft.fence.spec import FenceSpec, LogTransport, Surroundings
from ocsf_nft.netns import Namespace

DEFAULT_DIRECTORY: Final = Path("/var/lib/ocsf-nft")

_FILE: Final = "fence.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledFence:
    """Record of a fence as it was loaded into the kernel; the state directory stores it.

    The text of the fence's ruleset depends on ``spec`` (the operator's request) and ``around`` (the
    network interfaces). ``identity`` is the result of :meth:`Namespace.identity`. It is stored
    because the path in ``namespace`` can later refer to another namespace. ``policy`` is a digest
    of the loaded rulesets (:func:`ruleset.digest`). ``listings`` maps the name of each table, such
    as ``inet ocsf_nft``, to nft's listing of the table. ``degraded`` is None in the normal case. If
    the fence logs nothing because no log transport works, ``degraded`` is the reason.
    """

    spec: FenceSpec
    around: Surroundings
    namespace: Namespace
    identity: str
    transport: LogTransport
    degraded: str | None = None
    policy: str
    listings: Mapping[str, str]


_INSTALLED_FENCE: Final = pydantic.TypeAdapter(InstalledFence)


class StateDirectory:
    """Directory of the fences' records, the locks, and the sysctl values to restore later.

    The first write or lock creates the directory, with mode 0700.
    """

    def __init__(self, path: Path = DEFAULT_DIRECTORY) -> None:
        self.path = path
        self._all_netns = path / "nf_log_all_netns.before"

    def read(self, sandbox: str) -> InstalledFence | None:
        """Return the record of a sandbox's fence; None if the sandbox has no record.

        Raises FenceError if the record's file is damaged or can't be read.
        """
        file = self.path / values.sandbox_name(sandbox) / _FILE
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FenceError(f"{file} can't be read: {error.strerror}") from error
        try:
            return _INSTALLED_FENCE.validate_json(content)
        except (pydantic.ValidationError, OcsfNftError) as error:
            raise FenceError(f"{file} is damaged: remove it and install the fence again") from error

    def directory(self, sandbox: str) -> Path:
        """Return the path of the directory for all files of a sandbox; it may not exist yet."""
        return self.path / values.sandbox_name(sandbox)

    def written_ns(self, sandbox: str) -> int | None:
        """Return the time of the last write of a sandbox's record, in ns since the epoch (UTC).

        Returns None if there is no record.
        """
        try:
            return (self.directory(sandbox) / _FILE).stat().st_mtime_ns
        except OSError:
            return None

    def version(self, sandbox: str) -> tuple[int, ...] | None:
        """Return a value that changes with each write of a sandbox's record.

        Compare two values only for equality. Returns None if there is no record.
        """
        try:
            found = (self.directory(sandbox) / _FILE).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock on all records, while a fence is installed or removed.

        Waits until no other process holds the lock. Raises DeliveryError if the lock file can't be
        created.
        """
        descriptor = self._lock_file("install")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            _unlock(descriptor)

    @contextlib.contextmanager
    def run_lock(self, sandbox: str) -> Iterator[None]:
        """Hold the lock for the monitoring of a sandbox, so that no other run monitors the sandbox.

        A run is a process such as ``ocsf-nft run``. Raises SourceError if another run holds the
        lock. Raises DeliveryError if the lock file can't be created.
        """
        descriptor = self._lock_file(f"run-{values.sandbox_name(sandbox)}")
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SourceError(
                    f"another run watches sandbox {sandbox}: stop that run first"
                ) from error
            yield
        finally:
            _unlock(descriptor)

    def is_watched(self, sandbox: str) -> bool:
        """Return true if a run (an ``ocsf-nft run`` process) monitors the sandbox now.

        Raises UsageError if ``sandbox`` is no valid sandbox name. The caller may have read the name
        from the comment of a table, and a sandboxed program can write such a comment.
        """
        path = self._lock_path(f"run-{values.sandbox_name(sandbox)}")
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:  # no run ever monitored it
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            _unlock(descriptor)
        return False

    def _lock_path(self, name: str) -> Path:
        return self.path / f".{name}.lock"

    def _lock_file(self, name: str) -> int:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(self._lock_path(name), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._unwritable(self.path, error) from error

    @staticmethod
    def _unwritable(path: Path, error: OSError) -> DeliveryError:
        return DeliveryError(
            f"{path} can't be written ({error.strerror}): make room or name another --state-dir"
        )

    def sandboxes(self) -> Iterator[str]:
        """Yield the names of the sandboxes that have a record, sorted.

        Raises FenceError if the directory can't be read.
        """
        # Not with Path.glob, which returns nothing for an unreadable directory.
        try:
            names = sorted(each.name for each in self.path.iterdir())
        except FileNotFoundError:
            return
        except OSError as error:
            raise FenceError(f"{self.path} can't be read: {error.strerror}") from error
        for name in names:
            if os.access(self.path / name / _FILE, os.F_OK):
                yield name

    def write(self, installed: InstalledFence) -> None:
        """Store the record of a fence, and sync it to disk; raises DeliveryError if that fails."""
        directory = self.path / installed.spec.sandbox
        self._write(directory / _FILE, _INSTALLED_FENCE.dump_json(installed, indent=2))

    def _write(self, path: Path, content: bytes) -> None:
        temporary = path.parent / f".{path.name}.{os.getpid()}"
        try:
            for folder in (self.path, path.parent):  # parents that mkdir creates would be 0755
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):  # report the first error, not this one
                temporary.unlink(missing_ok=True)
            raise self._unwritable(path.parent, error) from error

    def delete(self, sandbox: str) -> None:
        """Delete the record of a sandbox's fence; nothing happens if there is no record.

        Other files of the sandbox stay.
        """
        directory = self.path / values.sandbox_name(sandbox)
        (directory / _FILE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the sandbox may have other files there
            directory.rmdir()

    def all_netns_before(self) -> str | None:
        """Return the value that ``net.netfilter.nf_log_all_netns`` had before a fence enabled it.

        Returns None if no fence has enabled this sysctl. The value is stored in a separate file, so
        a damaged record of a fence does not affect it. Raises FenceError if the separate file can't
        be read.
        """
        try:
            value = self._all_netns.read_text("ascii")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FenceError(f"{self._all_netns} can't be read: {error.strerror}") from error
        except ValueError as error:
            raise FenceError(f"{self._all_netns} can't be read: it is not ASCII") from error
        return value.strip()

    def store_all_netns_before(self, value: str) -> None:
        """Store ``value``, which ``net.netfilter.nf_log_all_netns`` has before a fence enables it.

        The file is synced to disk. Raises DeliveryError if the file can't be written.
        """
        self._write(self._all_netns, value.encode("ascii"))

    def delete_all_netns_before(self) -> None:
        """Delete the stored value of ``nf_log_all_netns``, after the sysctl has been restored."""
        self._all_netns.unlink(missing_ok=True)

    def forwarding_before(self, identity: str) -> bytes | None:
        """Return the IP forwarding settings that a namespace had before a fence enabled forwarding.

        ``identity`` is the result of :meth:`Namespace.identity`. The result is the ``content`` that
        :meth:`store_forwarding_before` has stored; None if it has stored nothing for this
        namespace. Raises FenceError if the file can't be read.
        """
        path = self._forwarding(identity)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FenceError(f"{path} can't be read: {error.strerror}") from error

    def store_forwarding_before(self, identity: str, content: bytes) -> None:
        """Store the IP forwarding settings that a namespace has before a fence enables forwarding.

        ``identity`` is the result of :meth:`Namespace.identity`. ``content`` has the settings as
        JSON. The file is synced to disk. Raises DeliveryError if the file can't be written.
        """
        self._write(self._forwarding(identity), content)

    def delete_forwarding_before(self, identity: str) -> None:
        """Delete the stored IP forwarding settings of a namespace after they have been restored."""
        self._forwarding(identity).unlink(missing_ok=True)

    def _forwarding(self, identity: str) -> Path:
        # A sandbox name has no colon, so this file belongs to no sandbox.
        return self.path / f"forwarding-{identity}.before"


def _unlock(descriptor: int) -> None:
    """Release the lock on a file, and close its descriptor.

    Closing alone does not release the lock while a child process has a copy of the descriptor. Each
    child has a copy until it runs another program.
    """
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)

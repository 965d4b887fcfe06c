"""What was installed: one file per sandbox below the state directory.

It lets ``verify`` compare, ``remove`` find the tables and ``run`` resume, by the sandbox's name
alone. A file is written beside the old one and renamed over it, so that a reader or a crash finds
the old one or the new one, never a part.
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
class Installed:
    """A fence as it was loaded.

    ``identity`` is that of the namespace (:meth:`Namespace.identity`): a path can come to mean
    another one. ``policy`` is a digest of the rulesets that were loaded, which another version of
    this program may have other words for. ``listings`` are nft's own words about each table, by
    ``family name``.
    ``degraded`` says why no better transport could be used, None when none was wanted.
    """

    spec: FenceSpec
    around: Surroundings
    namespace: Namespace
    identity: str
    transport: LogTransport
    degraded: str | None = None
    policy: str
    listings: Mapping[str, str]


_FORM: Final = pydantic.TypeAdapter(Installed)


class StateDirectory:
    """The files. The directory is made (mode 0700) when something is written."""

    def __init__(self, path: Path = DEFAULT_DIRECTORY) -> None:
        self.path = path
        self._all_netns = path / "nf_log_all_netns.before"

    def read(self, sandbox: str) -> Installed | None:
        """What is on record for a sandbox; raises FenceError when the file is damaged."""
        file = self.path / values.sandbox_name(sandbox) / _FILE
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FenceError(f"{file} can't be read: {error.strerror}") from error
        try:
            return _FORM.validate_json(content)
        except (pydantic.ValidationError, OcsfNftError) as error:
            raise FenceError(f"{file} is damaged: remove it and install the fence again") from error

    def directory(self, sandbox: str) -> Path:
        """Where other things of a sandbox may be kept as well."""
        return self.path / values.sandbox_name(sandbox)

    def written_ns(self, sandbox: str) -> int | None:
        """When a sandbox was last put on record (ns since the epoch, UTC); None when it isn't."""
        try:
            return (self.directory(sandbox) / _FILE).stat().st_mtime_ns
        except OSError:
            return None

    def mark(self, sandbox: str) -> tuple[int, ...] | None:
        """What is another number after each writing of a record; None when there is none."""
        try:
            found = (self.directory(sandbox) / _FILE).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep out other processes that install or remove a fence, waiting for them first.

        Raises DeliveryError when the disk won't have the lock's file.
        """
        descriptor = self._lock_file("install")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            _unlock(descriptor)

    @contextlib.contextmanager
    def watching(self, sandbox: str) -> Iterator[None]:
        """Be the one run that watches a sandbox; raises SourceError when there is one already."""
        descriptor = self._lock_file(f"run-{values.sandbox_name(sandbox)}")
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SourceError(
                    f"another run watches sandbox {sandbox}: end that one first"
                ) from error
            yield
        finally:
            _unlock(descriptor)

    def is_watched(self, sandbox: str) -> bool:
        """Whether a run watches a sandbox now."""
        try:
            descriptor = os.open(self._lock_path(f"run-{sandbox}"), os.O_RDONLY)
        except OSError:  # nobody ever did
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
        """The names that are on record; raises FenceError when the directory can't be read."""
        # Not by Path.glob: to that, what may not be read is empty.
        try:
            names = sorted(each.name for each in self.path.iterdir())
        except FileNotFoundError:
            return
        except OSError as error:
            raise FenceError(f"{self.path} can't be read: {error.strerror}") from error
        for name in names:
            if os.access(self.path / name / _FILE, os.F_OK):
                yield name

    def write(self, installed: Installed) -> None:
        """Put on record, durably; raises DeliveryError when the disk won't have it."""
        directory = self.path / installed.spec.sandbox
        self._write(directory / _FILE, _FORM.dump_json(installed, indent=2))

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
            with contextlib.suppress(OSError):  # the error that counts is the one above
                temporary.unlink(missing_ok=True)
            raise self._unwritable(path.parent, error) from error

    def forget(self, sandbox: str) -> None:
        """Take off the record; nothing happens when it isn't on it."""
        directory = self.path / values.sandbox_name(sandbox)
        (directory / _FILE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other things of the sandbox may live there
            directory.rmdir()

    def all_netns_before(self) -> str | None:
        """What ``net.netfilter.nf_log_all_netns`` was before a fence switched it on.

        None when none did. Apart from the records, so that a damaged one doesn't lose it.
        """
        try:
            value = self._all_netns.read_text("ascii")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise FenceError(f"{self._all_netns} can't be read: {error}") from error
        return value.strip()

    def keep_all_netns_before(self, value: str) -> None:
        """Keep it, durably; raises DeliveryError when the disk won't have it."""
        self._write(self._all_netns, value.encode("ascii"))

    def forget_all_netns_before(self) -> None:
        """Forget it, since it has been put back."""
        self._all_netns.unlink(missing_ok=True)

    def forwarding_before(self, identity: str) -> bytes | None:
        """What IP forwarding was in a namespace before a fence switched it on; None when none did.

        Raises FenceError when it can't be read.
        """
        path = self._forwarding(identity)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FenceError(f"{path} can't be read: {error.strerror}") from error

    def keep_forwarding_before(self, identity: str, content: bytes) -> None:
        """Keep it, durably; raises DeliveryError when the disk won't have it."""
        self._write(self._forwarding(identity), content)

    def forget_forwarding_before(self, identity: str) -> None:
        """Forget it, since it has been put back."""
        self._forwarding(identity).unlink(missing_ok=True)

    def _forwarding(self, identity: str) -> Path:
        # No sandbox has a colon in its name, so this is no sandbox's.
        return self.path / f"forwarding-{identity}.before"


def _unlock(descriptor: int) -> None:
    """Release a lock, and close its descriptor.

    Closing alone keeps the lock while a child has a copy. Each child has a copy until it runs
    another program.
    """
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)

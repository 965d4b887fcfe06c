"""Files that the delivery process may open, as rules for Landlock.

Files for reading are named one by one, so that the process can read no others beside them. A file
that is replaced, as in a renewal of a secret, is another file for the kernel: see
:func:`identities`. The functions may block if a file system does not answer.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from ocsf_nft.delivery.sinks import safe_open
from ocsf_nft.errors import DeliveryError
from ocsf_nft.landlock import Access, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ocsf_nft.delivery.name_resolver import ResolverFiles
    from ocsf_nft.service.outlet import Outlet

#: Device and inode of files and directories; None for one that is missing.
Identities: TypeAlias = "dict[Path, tuple[int, int] | None]"

#: Programs, libraries, certificates and time zones: the same for all users of a machine.
_PROGRAM_FOLDERS: Final = ("/usr", "/lib", "/lib64", "/bin")
#: Settings of the C library, of OpenSSL, and of resolvers.
_SETTINGS: Final = (
    "/etc/ld.so.cache", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services",
    "/etc/protocols", "/etc/localtime", "/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf",
    "/etc/pki/tls/cert.pem",
)  # fmt: skip
_SETTING_FOLDERS: Final = (
    "/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/pki/ca-trust", "/etc/ca-certificates",
    "/etc/crypto-policies",
)  # fmt: skip
#: Files that the libraries of sinks read if these variables name them.
_VARIABLES: Final = (
    "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "SSL_CERT_FILE",
)  # fmt: skip
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
#: Rights over a single file that a sink writes: a link may lead to it from another directory.
_WRITE_FILE: Final = Access.READ_FILE | Access.WRITE_FILE | Access.TRUNCATE
#: File systems of the kernel, where nobody creates files.
_OF_KERNEL: Final = (Path("/dev"), Path("/proc"), Path("/sys"))


def rules(
    outlets: Sequence[Outlet], *, events: Path, sinks: Path, resolver: ResolverFiles
) -> frozenset[Rule]:
    """Return the allowed access for a process that delivers events to ``outlets``.

    ``events`` is the state database, which it only reads. ``sinks`` is the database that it writes.
    SQLite makes more files beside it, so its directory is writable. A directory that is missing, or
    can't be inspected, is named all the same: a rule for it allows nothing. Its parent directories
    are never named.
    """
    reads = [path for outlet in outlets for path in outlet.reads]
    reads += [Path(os.environ[name]) for name in _VARIABLES if os.environ.get(name)]
    reads += [*map(Path, _SETTINGS), resolver.resolv_conf, resolver.hosts]
    # The service has its log and its shared memory open, so SQLite need not create or write them.
    reads += [events.with_name(events.name + end) for end in ("", "-wal", "-shm")]
    return frozenset(
        (
            *(Rule(path, Access.READ) for path in _program_folders()),
            *(Rule(Path(path), Access.READ) for path in _SETTING_FOLDERS),
            *(Rule(path, Access.READ_FILE) for path in reads),
            *(Rule(Path(path), Access.READ_FILE | Access.WRITE_FILE) for path in _DEVICES),
            *(rule for outlet in outlets for rule in _written(outlet)),
            Rule(sinks.parent, Access.WRITE),
        )
    )


def create_directories(outlets: Iterable[Outlet], *, sinks: Path) -> None:
    """Create the missing directory of each sink, as the sink itself would: one level at most.

    Create that of the database ``sinks`` too. The rules of the delivery process can't allow this
    without the parent directory. A failure is ignored here: the opening has the same one.
    """
    with contextlib.suppress(OSError):
        sinks.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for outlet in outlets:
        path = outlet.writes
        if path is None or _is_of_kernel(path):
            continue
        with contextlib.suppress(OSError, ValueError, DeliveryError):
            if path == outlet.file:
                safe_open.create_directory_of(path)
            else:
                path.mkdir(mode=safe_open.DIRECTORY_MODE)


def are_allowed(needed: Iterable[Rule], granted: Iterable[Rule]) -> bool:
    """Return True if a process with the rules ``granted`` has all access of ``needed``."""
    access: dict[Path, Access] = {}
    for each in granted:
        access[each.path] = access.get(each.path, Access(0)) | each.access
    return all(
        any(each.access in access.get(path, Access(0)) for path in (each.path, *each.path.parents))
        for each in needed
    )


def identities(found: Iterable[Rule]) -> Identities:
    """Return the device and the inode of each single file to read, and of each written directory.

    If one differs later, the rules do not apply to the new file or directory, also if another file
    system was mounted there. None for a missing one.
    """
    named = (each.path for each in found if each.access in {Access.READ_FILE, Access.WRITE})
    return {path: _identity(path) for path in named}


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _program_folders() -> Iterator[Path]:
    yield from map(Path, _PROGRAM_FOLDERS)
    yield from map(Path, {sys.prefix, sys.base_prefix, *filter(None, sys.path)})
    yield Path(__file__).parents[1]  # this package, which an editable installation has elsewhere
    capath = ssl.get_default_verify_paths().capath
    if capath is not None:
        yield Path(capath)


def _written(outlet: Outlet) -> Iterator[Rule]:
    path = outlet.writes
    if path is None:
        return
    if path != outlet.file:
        yield Rule(path, Access.WRITE)
        return
    yield Rule(path, _WRITE_FILE)
    for folder in _folders(path):
        yield Rule(folder, Access.WRITE)


def _folders(path: Path) -> Iterator[Path]:
    """Yield the directories in which the file at ``path`` is created, also for a link."""
    if _is_of_kernel(path):
        return
    yield path.absolute().parent
    with contextlib.suppress(OSError, ValueError, DeliveryError):  # the sink's opening has it too
        yield Path(os.path.realpath(safe_open.target_of(path).parent))


def _is_of_kernel(path: Path) -> bool:
    return any(path.is_relative_to(each) for each in _OF_KERNEL)  # such as /dev/stdout

"""Files that the delivery process may open, as rules for Landlock.

Files for reading are named one by one, so that the process can read no others beside them. A file
that is replaced, as in a renewal of a secret, is another file for the kernel: see
:func:`identities`.
"""

from __future__ import annotations

import os
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft.landlock import Access, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ocsf_nft.delivery.name_resolver import ResolverFiles
    from ocsf_nft.service.outlet import Outlet

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
#: File systems of the kernel, where nobody creates files.
_OF_KERNEL: Final = (Path("/dev"), Path("/proc"), Path("/sys"))


def rules(
    outlets: Sequence[Outlet], *, databases: Iterable[Path], resolver: ResolverFiles
) -> frozenset[Rule]:
    """Return the allowed access for a process that delivers events to ``outlets``.

    ``databases`` are the database files that it reads or writes. SQLite makes more files beside
    them, so their directories are writable.
    """
    reads = [path for outlet in outlets for path in outlet.reads]
    reads += [Path(os.environ[name]) for name in _VARIABLES if os.environ.get(name)]
    reads += [*map(Path, _SETTINGS), resolver.resolv_conf, resolver.hosts]
    written = [outlet.writes for outlet in outlets if outlet.writes is not None]
    return frozenset(
        (
            *(Rule(path, Access.READ) for path in _program_folders()),
            *(Rule(Path(path), Access.READ) for path in _SETTING_FOLDERS),
            *(Rule(path, Access.READ_FILE) for path in reads),
            *(Rule(Path(path), Access.READ_FILE | Access.WRITE_FILE) for path in _DEVICES),
            *(Rule(folder, Access.WRITE) for path in written for folder in _folders(path)),
            *(Rule(path, Access.WRITE) for path in written),
            *(Rule(path.parent, Access.WRITE) for path in databases),
        )
    )


def are_allowed(needed: Iterable[Rule], granted: Iterable[Rule]) -> bool:
    """Return True if a process with the rules ``granted`` has all access of ``needed``."""
    access = {each.path: each.access for each in granted}
    return all(
        any(each.access in access.get(path, Access(0)) for path in (each.path, *each.path.parents))
        for each in needed
    )


def identities(found: Iterable[Rule]) -> dict[Path, tuple[int, int] | None]:
    """Return the device and the inode of each file that the rules name for reading only.

    If one differs later, the rules do not apply to the new file. None for a missing file.
    """
    return {each.path: _identity(each.path) for each in found if each.access == Access.READ_FILE}


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


def _folders(path: Path) -> Iterator[Path]:
    """Yield the directories in which the file or directory at ``path`` is made, also for a link."""
    if any(path.is_relative_to(kernel) for kernel in _OF_KERNEL):  # /dev/stdout
        return
    for each in (path.absolute(), Path(os.path.realpath(path))):
        folder = each.parent
        while not folder.exists():  # a sink creates its own directory
            folder = folder.parent
        yield folder

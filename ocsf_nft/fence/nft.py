"""Functions that run the program nft: only from trusted directories, without a shell."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from ocsf_nft.errors import FenceError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from ocsf_nft.netns import Namespace

_log = structlog.get_logger()
#: Family and name of a table.
T = TypeVar("T", bound=tuple[str, str])

#: Not ``PATH``: a process that can set it could choose the program that runs with our privileges.
TRUSTED: Final = (Path("/usr/sbin"), Path("/usr/bin"), Path("/sbin"), Path("/bin"))

_ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": ":".join(map(str, TRUSTED))}
_TIMEOUT_SECONDS: Final = 30
#: Listing of a table that a socket owns exclusively; the process may have any name.
_EXCLUSIVE: Final = re.compile(
    r"(table \S+ \S+ \{ # handle \d+)(?: progname [\s\S]{0,64}?)?\n\tflags owner,persist\n"
)
_ERROR: Final = re.compile(r":(\d+):\d+-\d+: Error: (.*)")
#: Kernel modules that provide what a rule needs, for the error message if one is missing.
_MODULES: Final = {
    " log prefix ": "nft_log with nfnetlink_log (NFLOG) or nf_log_syslog (kernel log)",
    "fib saddr": "nft_fib_inet",
    " zone set ": "nft_ct with nf_conntrack and its zones (CONFIG_NF_CONNTRACK_ZONES)",
    " ct ": "nft_ct with nf_conntrack",
    "masquerade": "nft_masq with nf_nat",
    "type nat hook": "nft_chain_nat with nf_nat",
    "rtclassid": "CONFIG_IP_ROUTE_CLASSID",
    "reject": "nft_reject_inet",
    "limit rate": "nft_limit",
    "type filter hook egress": "netdev egress hooks (Linux 5.16, CONFIG_NETFILTER_EGRESS)",
    "type filter hook ingress": "netdev ingress hooks (CONFIG_NETFILTER_INGRESS)",
    "flags owner,persist": "tables that a process owns exclusively (Linux 6.9)",
    "table": "nf_tables",
}


def load(namespace: Namespace, text: str) -> None:
    """Load the ruleset ``text`` into a namespace in one transaction: all of it or nothing.

    Needs CAP_NET_ADMIN over the namespace. Raises AbsentError, UnsupportedError, FenceError. After
    a timeout of 30 s (a FenceError), the ruleset may have been loaded.
    """
    result = _run_on(namespace, text)
    if result.returncode != 0:
        raise _explain(result.stderr, text)


def show_messages(namespace: Namespace, text: str) -> str:
    """Return the netlink messages that nft would send for a ruleset, as text; load nothing.

    The format is that of libmnl (``mnl_nlmsg_fprintf``). Raises AbsentError, UnsupportedError,
    FenceError.
    """
    # The exit code is ignored: the text is complete even if the kernel would reject the ruleset.
    return _run_on(namespace, text, "-c", "--debug=mnl").stdout


def list_table(namespace: Namespace, family: str, table: str) -> str | None:
    """Return nft's listing of a table, with rule handles; None if the table does not exist.

    The listing omits counter values, set elements and the flag ``owner``. Raises AbsentError if the
    namespace does not exist. Raises UnsupportedError if nft or a privilege is missing, FenceError
    for any other error.
    """
    # Counter values and elements of large sets would cost nft time and memory (-s, -t).
    result = _run(namespace, [str(find()), "-a", "-s", "-t", "list", "table", family, table])
    if result.returncode == 0:
        return _without_owner(result.stdout)
    if "No such file or directory" in result.stderr:
        return None
    raise _explain(result.stderr, "")


def list_tables(namespace: Namespace, tables: Collection[T]) -> dict[T, str]:
    """Return nft's listing of each table that exists, as :func:`list_table` does.

    Raises the errors of :func:`list_table`.
    """
    # At the same time: nft 1.1 can't list tables of the same name and different families at once.
    with ThreadPoolExecutor(max(1, len(tables))) as pool:
        listings = pool.map(lambda table: list_table(namespace, *table), tables)
        found = zip(tables, listings, strict=True)
        return {table: listing for table, listing in found if listing is not None}


def _without_owner(listing: str) -> str:
    # With the flag ``owner``, only one process may change the table.
    exclusive = _EXCLUSIVE.match(listing)
    if exclusive is None:
        return listing
    return f"{exclusive[1]}\n\tflags persist\n{listing[exclusive.end() :]}"


def permission_error() -> UnsupportedError:
    """Return the error to raise if the kernel does not let this process change nftables."""
    return UnsupportedError(
        "the kernel does not let us change nftables here: "
        "run as root, or with CAP_NET_ADMIN over this network namespace"
    )


def find() -> Path:
    """Return the path of nft; raises UnsupportedError if no trusted directory has this program."""
    found = find_program("nft")
    if found is None:
        raise UnsupportedError(
            f"nft was not found in {', '.join(map(str, TRUSTED))} (as root's own file), "
            "so no fence can be loaded: install the nftables package"
        )
    return found


def find_program(name: str) -> Path | None:
    """Return the path of a program file that only root can change; None if there is none.

    Only the directories of :data:`TRUSTED` are searched. The file must be executable, belong to
    root, and be writable for no other user.
    """
    owner = Path("/").stat().st_uid  # root; a user namespace may show another uid
    for directory in TRUSTED:
        binary = directory / name
        try:
            status = binary.stat()
        except OSError:
            continue
        others_may_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if status.st_uid == owner and not others_may_write and os.access(binary, os.X_OK):
            return binary
    return None


def _run_on(namespace: Namespace, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    binary = find()
    # Not standard input: a minimal guest may lack /dev/stdin. Not a file on a disk: it would need
    # free space, and another process could change it.
    with _report_shortage():
        file = os.fdopen(os.memfd_create("ocsf-nft-ruleset"), "w", encoding="utf-8")
    with file:
        file.write(text)
        file.flush()
        name = f"/proc/self/fd/{file.fileno()}"
        return _run(namespace, [str(binary), *options, "-f", name], file.fileno())


def _run(
    namespace: Namespace, command: list[str], *descriptors: int
) -> subprocess.CompletedProcess[str]:
    def inside() -> subprocess.CompletedProcess[str]:
        # Not a pipe: nft writes in parts of 4 KiB, and each of them would wake this thread.
        with os.fdopen(os.memfd_create("ocsf-nft-output"), "w+b") as output:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                check=False,
                timeout=_TIMEOUT_SECONDS,
                env=_ENVIRONMENT,
                pass_fds=descriptors,
                process_group=0,  # Ctrl-C must not interrupt a load: we handle it
            )
            output.seek(0)
            done.stdout = output.read().decode("utf-8", "replace")
        return done

    try:
        with _report_shortage():
            done = namespace.call(inside)
    except subprocess.TimeoutExpired as error:
        raise FenceError(
            f"nft gave no answer in {_TIMEOUT_SECONDS} s, so the fence was not touched or its "
            "state is unknown: run `ocsf-nft verify`"
        ) from error
    _log.debug("nft ended", command=" ".join(command), namespace=namespace, code=done.returncode)
    return done


@contextlib.contextmanager
def _report_shortage() -> Iterator[None]:
    # A lack of file descriptors, processes or memory, for example.
    try:
        yield
    except OSError as error:
        raise FenceError(f"nft can't be run: {error.strerror}") from error


def _explain(stderr: str, text: str) -> UnsupportedError | FenceError:
    if "Operation not permitted" in stderr or "Unable to initialize Netlink socket" in stderr:
        return permission_error()
    found = _ERROR.search(stderr)
    if found is None:
        return FenceError(f"nft failed: {' '.join(stderr.split()) or 'no error message'}")
    number, message = int(found[1]), found[2]
    lines = text.splitlines()
    rule = lines[number - 1].strip() if 0 < number <= len(lines) else ""
    if "No such file or directory" in message or "Operation not supported" in message:
        for part, module in _MODULES.items():
            if part in f" {rule}":
                return UnsupportedError(
                    f"this kernel can't do `{rule}` ({message}): it needs {module}"
                )
    return FenceError(f"the kernel refused line {number} of the ruleset, `{rule}`: {message}")

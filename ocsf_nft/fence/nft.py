"""Run nft: from trusted directories only, without a shell, from a file in memory.

``nft -f -`` needs ``/dev/stdin``, which a minimal guest may lack; a file on a disk needs a disk
with room. A memfd needs neither, and nobody else can get at it.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import FenceError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.netns import Namespace

#: Not ``PATH``: whoever can set it would choose what runs with our privileges.
TRUSTED: Final = (Path("/usr/sbin"), Path("/usr/bin"), Path("/sbin"), Path("/bin"))

_ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": ":".join(map(str, TRUSTED))}
_TIMEOUT_SECONDS: Final = 30
#: How a table is listed that a socket holds as its own, whose process may call itself anything.
_HELD: Final = re.compile(
    r"(table \S+ \S+ \{ # handle \d+)(?: progname [\s\S]{0,64}?)?\n\tflags owner,persist\n"
)
_ERROR: Final = re.compile(r":(\d+):\d+-\d+: Error: (.*)")
#: Which module brings what a rule needs, for the sentence when it is missing.
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
    "flags owner,persist": "tables that a process holds as its own (Linux 6.9)",
    "table": "nf_tables",
}


def load(namespace: Namespace, text: str) -> None:
    """Load a ruleset inside a namespace: all of it or nothing.

    Needs CAP_NET_ADMIN over the namespace. Raises UnsupportedError when nft is missing, the
    privilege is not held or the kernel lacks something; FenceError when the kernel refuses the
    ruleset for any other reason. Nothing has changed then.
    """
    done = _run_on(namespace, text)
    if done.returncode != 0:
        raise _explain(done.stderr, text)


def sent(namespace: Namespace, text: str) -> str:
    """What nft would send to the kernel for a ruleset, as it shows that; nothing is loaded.

    The form is libmnl's (``mnl_nlmsg_fprintf``), and complete even where the kernel would not take
    the ruleset. Raises UnsupportedError when nft is missing, FenceError when it can't be run.
    """
    return _run_on(namespace, text, "-c", "--debug=mnl").stdout


def listing(namespace: Namespace, family: str, table: str) -> str | None:
    """A table as nft lists it, with handles and without what its counters and sets hold.

    None when it is absent. Whatever a set holds costs nft neither time nor memory then. One that a
    socket holds as its own is listed as it is when that is closed. Raises UnsupportedError when nft
    is missing or may not look, FenceError when it fails.
    """
    done = _run(namespace, [str(find()), "-a", "-s", "-t", "list", "table", family, table])
    if done.returncode == 0:
        held = _HELD.match(done.stdout)
        if held is None:
            return done.stdout
        return f"{held[1]}\n\tflags persist\n{done.stdout[held.end() :]}"
    if "No such file or directory" in done.stderr:
        return None
    raise _explain(done.stderr, "")


def not_permitted() -> UnsupportedError:
    """What to raise where the kernel says so."""
    return UnsupportedError(
        "the kernel does not let us change nftables here: "
        "run as root, or with CAP_NET_ADMIN over this network namespace"
    )


def find() -> Path:
    """The nft binary; raises UnsupportedError when no trusted directory has one."""
    found = program("nft")
    if found is None:
        raise UnsupportedError(
            f"nft was not found in {', '.join(map(str, TRUSTED))} (as root's own file), "
            "so no fence can be loaded: install the nftables package"
        )
    return found


def program(name: str) -> Path | None:
    """A program in a trusted directory that root alone can write; None when there is none."""
    owner = Path("/").stat().st_uid  # root, also where a user namespace shows it as nobody
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
    with _resources():
        descriptor = os.memfd_create("ocsf-nft-ruleset")
    try:
        with os.fdopen(os.dup(descriptor), "w", encoding="utf-8") as file:
            file.write(text)
        name = f"/proc/self/fd/{descriptor}"
        return _run(namespace, [str(binary), *options, "-f", name], descriptor)
    finally:
        os.close(descriptor)


def _run(
    namespace: Namespace, command: list[str], *descriptors: int
) -> subprocess.CompletedProcess[str]:
    def inside() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_TIMEOUT_SECONDS,
            env=_ENVIRONMENT,
            pass_fds=descriptors,
            process_group=0,  # Ctrl-C is ours to handle: it must not cut a load short
        )

    try:
        with _resources():
            return namespace.call(inside)
    except subprocess.TimeoutExpired as error:
        raise FenceError(
            f"nft gave no answer in {_TIMEOUT_SECONDS} s, so the fence was not touched or its "
            "state is unknown: run `ocsf-nft verify`"
        ) from error


@contextlib.contextmanager
def _resources() -> Iterator[None]:
    """What is short is files, processes or memory: nothing that nft said."""
    try:
        yield
    except OSError as error:
        raise FenceError(f"nft can't be run: {error.strerror}") from error


def _explain(stderr: str, text: str) -> UnsupportedError | FenceError:
    if "Operation not permitted" in stderr or "Unable to initialize Netlink socket" in stderr:
        return not_permitted()
    found = _ERROR.search(stderr)
    if found is None:
        return FenceError(f"nft failed: {' '.join(stderr.split()) or 'without a word'}")
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

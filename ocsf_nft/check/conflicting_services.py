"""Checks for other firewall services that may remove a fence or block a fenced VM's traffic.

For example, netfilter-persistent restores saved rules, and so may remove a rule that accepts the
traffic. The checks only read files.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.check.finding import Finding
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

_FLUSH: Final = re.compile(r"^\s*flush\s+ruleset\b", re.MULTILINE)
_INCLUDE: Final = re.compile(r'^\s*include\s+"([^"\n]{1,200})"', re.MULTILINE)
_SETTING: Final = re.compile(r"^\s*(\w+)\s*=\s*\"?([^\"\s#]*)", re.MULTILINE)
#: Limit of the bytes that are read of a file: a file of rules is smaller.
_FILE_BYTES: Final = 1 << 20
_FILES: Final = 64
_CONFIGURATIONS: Final = ("etc/nftables.conf", "etc/sysconfig/nftables.conf")


class _Service(NamedTuple):
    """systemd unit of another firewall, with its effect on the host's rules, and a remedy."""

    unit: str
    name: str
    meaning: str
    remedy: str


_SERVICES: Final = (
    _Service(
        "firewalld.service",
        "firewalld",
        "firewalld is enabled: a reload replaces only its own table; during a reload new flows "
        "are dropped (ReloadPolicy), also those of a VM",
        "put the rules that a VM needs into its permanent configuration, see above",
    ),
    _Service(
        "ufw.service",
        "ufw",
        "ufw is enabled: enabling or reloading it replaces only its own chains",
        "add the rules that a VM needs with `ufw route allow`, which saves them, see above",
    ),
    _Service(
        "docker.service",
        "docker",
        "Docker is enabled: each start sets iptables' policy of FORWARD to DROP, and leaves the "
        "rules in DOCKER-USER unchanged",
        "add the rules that a VM needs to DOCKER-USER after each boot",
    ),
    _Service(
        "netfilter-persistent.service",
        "netfilter-persistent",
        "netfilter-persistent is enabled: each start replaces iptables' tables by the saved ones",
        "save the rules that a VM needs with `netfilter-persistent save`",
    ),
    _Service(
        "iptables.service",
        "iptables-services",
        "iptables.service is enabled: each start replaces iptables' tables by the saved ones",
        "save the rules that a VM needs with `service iptables save`",
    ),
)


def findings(root: Path = Path("/")) -> Iterator[Finding]:
    """Yield a finding for each enabled firewall service that may block a fenced VM's traffic.

    Also yield a finding if nftables' configuration file contains ``flush ruleset``: loading this
    file would remove a fence too. Files are read below the directory ``root``.
    """
    enabled = _enabled(root)
    yield from _nftables(root, is_enabled="nftables.service" in enabled)
    for service in _SERVICES:
        if service.unit in enabled:
            meaning = service.meaning
            if service.name == "ufw" and _manages_builtins(root):
                meaning += "; with MANAGE_BUILTINS=yes it empties iptables' own chains as well"
            yield Finding(
                name=service.name, severity="info", meaning=meaning, remedy=service.remedy
            )


def _nftables(root: Path, *, is_enabled: bool) -> Iterator[Finding]:
    for path in _CONFIGURATIONS:
        file = root / path
        flushing = next((each for each in _with_includes(root, file) if _flushes(each)), None)
        if flushing is None:
            continue
        shown = visible(str(Path("/") / flushing.relative_to(root)))
        meaning = f"{shown} has `flush ruleset`: loading it removes all tables, also a fence's"
        yield Finding(
            name="flush-ruleset",
            severity="degraded" if is_enabled else "info",
            meaning=f"nftables.service is enabled, and {meaning}, at each start and reload"
            if is_enabled
            else f"{meaning}; nftables.service, which would load it, is not enabled",
            remedy="let it replace only its own tables (`table inet filter`, `delete table inet "
            "filter`, then the table), and start fences after it; `run` detects and reports a "
            "flush",
        )
        return


def _enabled(root: Path) -> set[str]:
    # From the links of enabled units: no request to a service manager.
    found = set()
    for folder in ("etc/systemd/system", "run/systemd/system"):
        for directory in sorted((root / folder).glob("*.wants"))[:_FILES]:
            found |= {link.name for link in _entries(directory)}
    return found


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:  # no such directory, or no permission
        return []


def _manages_builtins(root: Path) -> bool:
    settings = _SETTING.findall(_text(root / "etc/default/ufw"))
    return ("MANAGE_BUILTINS", "yes") in settings


def _with_includes(root: Path, file: Path) -> list[Path]:
    found = [file]
    for pattern in _INCLUDE.findall(_text(file)):
        relative = pattern.lstrip("/") if pattern.startswith("/") else f"etc/{pattern}"
        if relative and not {"..", "**"} & set(Path(relative).parts):
            with contextlib.suppress(ValueError):  # no file has such a name (Python 3.13)
                found += sorted(root.glob(relative))[: _FILES - len(found)]
    return found


def _flushes(file: Path) -> bool:
    return _FLUSH.search(_text(file)) is not None


def _text(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(_FILE_BYTES).decode("utf-8", "replace")
    except OSError:  # no such file, or no permission
        return ""

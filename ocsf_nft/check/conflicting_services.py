"""What would undo a fence: services that load, flush or reload rules. Only files are read."""

from __future__ import annotations

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
#: More than a file of rules has in it.
_FILE_BYTES: Final = 1 << 20
_FILES: Final = 64
_CONFIGURATIONS: Final = ("etc/nftables.conf", "etc/sysconfig/nftables.conf")


class _Service(NamedTuple):
    """A firewall's unit, and what happens to rules when it starts, reloads or stops."""

    unit: str
    name: str
    meaning: str
    remedy: str


_SERVICES: Final = (
    _Service(
        "firewalld.service",
        "firewalld",
        "firewalld is enabled: a reload replaces its own table alone, and while it lasts new flows "
        "are dropped (ReloadPolicy), a VM's too",
        "what a VM needs is kept in its permanent configuration, see above",
    ),
    _Service(
        "ufw.service",
        "ufw",
        "ufw is enabled: enabling or reloading it replaces its own chains alone",
        "what a VM needs is kept by `ufw route allow`, see above",
    ),
    _Service(
        "docker.service",
        "docker",
        "Docker is enabled: each start sets iptables' policy of FORWARD to DROP, and keeps the "
        "rules in DOCKER-USER",
        "have what a VM needs put into DOCKER-USER after each boot",
    ),
    _Service(
        "netfilter-persistent.service",
        "netfilter-persistent",
        "netfilter-persistent is enabled: each start replaces iptables' tables by the saved ones",
        "save what a VM needs with `netfilter-persistent save`",
    ),
    _Service(
        "iptables.service",
        "iptables-services",
        "iptables.service is enabled: each start replaces iptables' tables by the saved ones",
        "save what a VM needs with `service iptables save`",
    ),
)


def services(root: Path = Path("/")) -> Iterator[Finding]:
    """What is enabled, and what of it takes a fence down; ``root`` is where to look."""
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
        meaning = f"{shown} says `flush ruleset`: loading it removes every table, a fence's too"
        yield Finding(
            name="flush-ruleset",
            severity="degraded" if is_enabled else "info",
            meaning=f"nftables.service is enabled, and {meaning}, at each start and reload"
            if is_enabled
            else f"{meaning}; nftables.service, which would, is not enabled",
            remedy="have it replace its own tables alone (`table inet filter`, `delete table inet "
            "filter`, then the table), and start fences after it; `run` notices and reports it",
        )
        return


def _enabled(root: Path) -> set[str]:
    """The units that some target wants: how systemctl enable says it."""
    found = set()
    for place in ("etc/systemd/system", "run/systemd/system"):
        for wants in sorted((root / place).glob("*.wants"))[:_FILES]:
            found |= {link.name for link in _entries(wants)}
    return found


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:  # not for us to see
        return []


def _manages_builtins(root: Path) -> bool:
    settings = _SETTING.findall(_text(root / "etc/default/ufw"))
    return ("MANAGE_BUILTINS", "yes") in settings


def _with_includes(root: Path, file: Path) -> list[Path]:
    found = [file]
    for pattern in _INCLUDE.findall(_text(file)):
        relative = pattern.lstrip("/") if pattern.startswith("/") else f"etc/{pattern}"
        if relative and not {"..", "**"} & set(Path(relative).parts):
            found += sorted(root.glob(relative))[: _FILES - len(found)]
    return found


def _flushes(file: Path) -> bool:
    return _FLUSH.search(_text(file)) is not None


def _text(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(_FILE_BYTES).decode("utf-8", "replace")
    except OSError:  # not there, or not for us to read
        return ""

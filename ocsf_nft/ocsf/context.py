"""What the records don't say: this host, this product, this sandbox's proxies and rules."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

from ocsf_nft.ocsf.enums import DeviceType, ObservableType, OsType
from ocsf_nft.ocsf.events import SCHEMA_VERSION
from ocsf_nft.ocsf.objects import Device, Metadata, Observable, Os, Product
from ocsf_nft.ocsf.safe_text import visible
from ocsf_nft.ocsf.severity import Threshold

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.ocsf.severity import SeverityRule
    from ocsf_nft.process import Container

_NAME: Final = "ocsf-nft"
_PROC: Final = Path("/proc")

Address: TypeAlias = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The machine whose kernel refuses. ``boot_time_ns`` is since the epoch, UTC."""

    hostname: str
    kernel_release: str | None = None
    boot_uid: str | None = None
    boot_time_ns: int | None = None
    is_virtual: bool = False

    def device(self) -> Device:
        """The host as OCSF's device."""
        return Device(
            hostname=visible(self.hostname),
            type_id=DeviceType.VIRTUAL if self.is_virtual else DeviceType.UNKNOWN,
            os=Os(name="Linux", type_id=OsType.LINUX, kernel_release=self.kernel_release),
            boot_uid=self.boot_uid,
            boot_time=None if self.boot_time_ns is None else self.boot_time_ns // 1_000_000,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A way out that the sandbox is given."""

    address: Address
    port: int

    @property
    def end(self) -> str:
        """Its address and port."""
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The proxy as programs take it in ``HTTPS_PROXY``."""
        return f"http://{self.end}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFacts:
    """The rule in the kernel that a record's rule name stands for."""

    family: str
    table: str
    chain: str
    handle: int
    condition: str

    @property
    def uid(self) -> str:
        """The rule's name in the kernel."""
        return f"{self.family}/{self.table}/{self.chain}/{self.handle}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """All that a mapper knows beside the record.

    ``host`` is None when the records come from another machine. ``proxies`` are the sandbox's, in
    order of preference. ``uplinks`` are the interfaces that lead out of the sandbox, empty when
    nobody knows. ``rules`` maps a record's rule name to the rule in the kernel, where that is
    known. ``container`` is what the sandbox is. The first of ``severities`` that is about an
    attempt says how much it matters; ``threshold`` when it is a finding.
    """

    host: Host | None = None
    proxies: tuple[Proxy, ...] = ()
    uplinks: frozenset[str] = frozenset()
    rules: Mapping[str, RuleFacts] = field(default_factory=lambda: MappingProxyType({}))
    container: Container | None = None
    severities: tuple[SeverityRule, ...] = ()
    threshold: Threshold = field(default_factory=Threshold)


def device_of(context: Context) -> tuple[Device | None, tuple[Observable, ...]]:
    """The host as the event's attribute ``device``, if it is known, and what to look up of it."""
    if context.host is None:
        return None, ()
    device = context.host.device()
    hostname = Observable(
        name="device.hostname", type_id=ObservableType.HOSTNAME, value=str(device.hostname)
    )
    return device.keep_json(), (hostname.keep_json(),)


@lru_cache(maxsize=1)
def product() -> Product:
    """This program, as OCSF's product."""
    return Product(name=_NAME, vendor_name=_NAME, version=version(_NAME))


def own_metadata(uid: str, now_ns: int) -> Metadata:
    """Metadata of an event that no record became: nothing was read, so there is no log to name."""
    return Metadata(
        version=SCHEMA_VERSION, uid=uid, product=product(), processed_time=now_ns // 1_000_000
    )


def this_host() -> Host:
    """This machine; what the system doesn't tell is None."""
    return Host(
        hostname=platform.node() or "localhost",
        kernel_release=os.uname().release if hasattr(os, "uname") else None,
        boot_uid=_read(_PROC / "sys/kernel/random/boot_id"),
        boot_time_ns=_boot_time_ns(),
        is_virtual="hypervisor" in (_read(_PROC / "cpuinfo") or "").split(),
    )


def _boot_time_ns() -> int | None:
    for line in (_read(_PROC / "stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name == "btime" and value.isdecimal():
            return int(value) * 1_000_000_000
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None

"""Facts that OCSF events need but no log record contains: host, product, proxies, rules."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.ocsf import packet_outcome
from ocsf_nft.ocsf.endpoints import observable
from ocsf_nft.ocsf.enums import DeviceType, ObservableType, OsType
from ocsf_nft.ocsf.event_base import SCHEMA_VERSION
from ocsf_nft.ocsf.finding_settings import FindingSettings
from ocsf_nft.ocsf.model import CACHED
from ocsf_nft.ocsf.objects import (
    Account,
    Cloud,
    Device,
    FirewallRule,
    KeyValue,
    Metadata,
    Os,
    Product,
)
from ocsf_nft.ocsf.safe_text import shown, visible
from ocsf_nft.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Address, IPv6Address

    from ocsf_nft.ocsf.event_codes import EventCode
    from ocsf_nft.ocsf.objects import Container as ContainerObject
    from ocsf_nft.ocsf.objects import Observable
    from ocsf_nft.ocsf.severity import SeverityRule
    from ocsf_nft.process import Container

_NAME: Final = "ocsf-nft"
_PROC: Final = Path("/proc")
_ENVIRONMENT: Final = "environment="

_DESCRIPTIONS: Final = {
    packet_outcome.EGRESS: "the sandbox may send only to its proxy",
    packet_outcome.FORWARD: "no packet is forwarded into the sandbox, out of it or through it",
    packet_outcome.INGRESS: "the sandbox may receive only replies of its proxy",
    packet_outcome.LINK: "the sandbox may send only frames of the IP stack",
    packet_outcome.GUARD: "the host's end of the link accepts only traffic to the proxy",
    packet_outcome.GUARD_INGRESS: "the host's end of the link sends only replies of the proxy",
    packet_outcome.VM_FORWARD: "the host forwards only the VM's connections to external addresses",
    packet_outcome.VM_INPUT: "on its host, the VM may connect only to the gateway's port",
    packet_outcome.VM_INGRESS: "the VM may receive only replies on connections that it opened",
    packet_outcome.VM_LINK: "the VM may send only IP and ARP from its own addresses",
}


class CloudAccount(NamedTuple):
    """Cloud in which a machine runs; unknown values are None."""

    provider: str
    account_uid: str | None = None
    account_name: str | None = None
    region: str | None = None
    zone: str | None = None


#: What the rules match. No rule matches something of its own: each gets what no other one accepts.
_CONDITIONS: Final = {
    packet_outcome.EGRESS: "no rule of the chain output accepts the packet",
    packet_outcome.FORWARD: "the packet is to be forwarded",
    packet_outcome.INGRESS: "no rule of the chain input accepts the packet",
    packet_outcome.LINK: "no rule of the chain egress accepts the frame",
    packet_outcome.GUARD: "no rule of the chain ingress accepts the frame",
    packet_outcome.GUARD_INGRESS: "no rule of the chain egress accepts the frame",
    packet_outcome.VM_FORWARD: "no rule of the chains prerouting and forward accepts the packet",
    packet_outcome.VM_INPUT: "no rule of the chain input accepts the packet",
    packet_outcome.VM_INGRESS: "no rule of the chain forward accepts the packet",
    packet_outcome.VM_LINK: "no rule of the chain ingress accepts the frame",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Machine whose kernel enforces the fence; unknown values are None.

    ``boot_uid`` is the kernel's unique id of the boot. ``boot_time_ns`` is the time of the boot, in
    ns since the epoch (UTC). ``instance_uid`` is the machine's id in the ``cloud``. ``tenant_uid``
    and ``environment`` are those of its sandboxes without values of their own.
    """

    hostname: str
    kernel_release: str | None = None
    boot_uid: str | None = None
    boot_time_ns: int | None = None
    is_virtual: bool = False
    instance_uid: str | None = None
    cloud: CloudAccount | None = None
    tenant_uid: str | None = None
    environment: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """Proxy through which the sandbox may reach other hosts."""

    address: IPv4Address | IPv6Address
    port: int

    @property
    def end(self) -> str:
        """Return the proxy's ``ADDRESS:PORT``, with an IPv6 address in brackets."""
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """Return the proxy's URL for the variable ``HTTPS_PROXY``: ``http://10.0.0.1:3128``."""
        return f"http://{self.end}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Facts about one sandbox that its events need but its log records do not contain."""

    #: None if the log records come from another machine.
    host: Host | None = None
    proxies: tuple[Proxy, ...] = ()
    #: Interfaces that lead out of the sandbox; empty if unknown.
    uplinks: frozenset[str] = frozenset()
    #: Positions of the rules in the kernel (``FAMILY/TABLE/CHAIN/HANDLE``), by the name in a log
    #: record, such as ``egress``.
    rules: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    #: None if the sandbox is not a container.
    container: Container | None = None
    #: Labels of the sandbox, each as ``key=value``.
    labels: tuple[str, ...] = ()
    #: Tenant that the sandbox belongs to; None for that of the host.
    tenant_uid: str | None = None
    #: Severities of the refused packets that match a rule; the first matching rule applies.
    severities: tuple[SeverityRule, ...] = ()
    #: When an OCSF Detection Finding reports the refused packets too.
    findings: FindingSettings = field(default_factory=FindingSettings)


def device_of(
    context: Context, container: ContainerObject | None = None
) -> tuple[Device | None, tuple[Observable, ...]]:
    """Return the host as OCSF ``device``, and its observables; None and () without a host.

    ``container`` is the sandbox's, for an event that has no endpoint.
    """
    host = context.host
    if host is None:
        return None, ()
    hostname = visible(host.hostname)
    device = Device(
        hostname=hostname,
        instance_uid=shown(host.instance_uid),
        type_id=DeviceType.VIRTUAL if host.is_virtual else DeviceType.UNKNOWN,
        os=Os(name="Linux", type_id=OsType.LINUX, kernel_release=host.kernel_release),
        boot_uid=host.boot_uid,
        boot_time=None if host.boot_time_ns is None else host.boot_time_ns // 1_000_000,
        container=container,
    )
    return device.cache_json(), (observable("device.hostname", ObservableType.HOSTNAME, hostname),)


def cloud_of(context: Context) -> Cloud | None:
    """Return the cloud in which the host runs as OCSF ``cloud``; None if it is not known."""
    return None if context.host is None else _cloud(context.host.cloud)


@lru_cache(maxsize=1)
def _cloud(found: CloudAccount | None) -> Cloud | None:
    if found is None:
        return None
    account = None
    if found.account_uid is not None:
        account = Account(uid=visible(found.account_uid), name=shown(found.account_name))
    return Cloud(
        provider=visible(found.provider),
        account=account,
        region=shown(found.region),
        zone=shown(found.zone),
    ).cache_json()


def event_labels(context: Context) -> tuple[str, ...]:
    """Return the labels of a sandbox's events: its own, and the host's environment.

    A label ``environment=…`` of the sandbox replaces that of the host.
    """
    host, labels = context.host, context.labels
    has_own = any(label.startswith(_ENVIRONMENT) for label in labels)
    if host is None or host.environment is None or has_own:
        return labels
    return *labels, f"{_ENVIRONMENT}{host.environment}"


def event_tenant(context: Context) -> str | None:
    """Return the tenant of a sandbox: its own, or else that of the host; None if unknown."""
    host = context.host
    return context.tenant_uid or (None if host is None else host.tenant_uid)


def labels_of(context: Context) -> tuple[str, ...] | None:
    """Return the labels of a sandbox's events as safe texts; None if there are none."""
    return tuple(map(visible, event_labels(context))) or None


@lru_cache(maxsize=CACHED)
def tags_of(sandbox: str | None) -> tuple[KeyValue, ...] | None:
    """Return the tags of an event about a sandbox; None if it is about none."""
    if sandbox is None:
        return None
    return (KeyValue(name="sandbox", value=visible(sandbox)).cache_json(),)


def firewall_rule(context: Context, rule: str) -> FirewallRule | None:
    """Return the OCSF object of a fence's rule that logged a packet; None if it has no name."""
    return _rule(rule, context.rules.get(rule)) if rule else None


@lru_cache(maxsize=512)
def _rule(name: str, uid: str | None) -> FirewallRule:
    return FirewallRule(
        name=visible(name),
        uid=uid,
        type="nftables",
        desc=_DESCRIPTIONS.get(name),
        condition=_CONDITIONS.get(name),
    ).cache_json()


@lru_cache(maxsize=512)
def foreign_rule(rule: str, firewall: str | None) -> FirewallRule | None:
    """Return the OCSF object of another firewall's rule; None if the rule has no name.

    ``firewall`` is the name of that firewall, if known.
    """
    return FirewallRule(name=visible(rule), type=firewall).cache_json() if rule else None


@lru_cache(maxsize=1)
def product() -> Product:
    """Return the OCSF product that reports the events: ocsf-nft, with its installed version."""
    return Product(name=_NAME, vendor_name=_NAME, version=VERSION)


def own_metadata(  # noqa: PLR0913 - each is one fact of the event, named at the call
    uid: str,
    now_ns: int,
    correlation_uid: str | None = None,
    *,
    code: EventCode,
    context: Context,
    sandbox: str | None = None,
) -> Metadata:
    """Return the OCSF metadata of an event without a log record, such as a finding.

    ``uid`` is the unique id of the event. ``now_ns`` is the time at which the event is made, in ns
    since the epoch (UTC). ``correlation_uid`` is the id of all events about the same facts, if any.
    ``context`` has the tenant and the labels. ``sandbox`` is the name of the sandbox that the event
    is about; None if it is about the whole service.
    """
    return Metadata(
        version=SCHEMA_VERSION,
        uid=uid,
        event_code=code,
        product=product(),
        tenant_uid=shown(event_tenant(context)),
        correlation_uid=correlation_uid,
        processed_time=now_ns // 1_000_000,
        labels=labels_of(context),
        tags=tags_of(sandbox),
    )


def this_host() -> Host:
    """Return the name, kernel release and boot time of this machine; unknown values are None."""
    return Host(
        hostname=socket.gethostname() or "localhost",
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

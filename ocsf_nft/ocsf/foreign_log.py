"""Host that logged a record, and the other firewall that did, as OCSF objects.

Both are known only from the text of a log, so each name is hostile text.
"""

from __future__ import annotations

import re
import uuid
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import orjson

from ocsf_nft import ip_text
from ocsf_nft.ocsf.endpoints import observable
from ocsf_nft.ocsf.enums import DeviceType, ObservableType, OsType
from ocsf_nft.ocsf.model import CACHED
from ocsf_nft.ocsf.objects import Device, Os, Product
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from ocsf_nft.ocsf.objects import Observable
    from ocsf_nft.record import LogHost

#: Attribute of a device that has its name: a host name by RFC 1123, an address, or any other text.
NameKind: TypeAlias = Literal["hostname", "ip", "name"]

#: Vendors of firewalls; the vendor of any other one has its name.
_VENDORS: Final = {
    "netfilter": "Linux",
    "iptables": "netfilter",
    "ufw": "Canonical",
    "firewalld": "Red Hat",
    "Calico": "Tigera",
    "OpenShell": "NVIDIA",
    "fwknop": "Cipherdyne",
    "SuSEfirewall2": "SUSE",
}
_LABEL: Final = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOSTNAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_OBSERVABLES: Final = {
    "hostname": ObservableType.HOSTNAME,
    "ip": ObservableType.IP_ADDRESS,
}


class LoggingHost(NamedTuple):
    """Host that logged a record: OCSF device, observables, and its part of an event template."""

    device: Device
    observables: tuple[Observable, ...]
    shape: tuple[NameKind, bool, bool]
    #: Name, uid of the boot and uid of the machine.
    values: tuple[bytes, bytes | None, bytes | None]


@lru_cache(maxsize=CACHED)
def logging_host(host: LogHost) -> LoggingHost:
    """Return the OCSF objects of the host that logged a record."""
    kind, name = _named(host.name)
    # The kernel writes the id of a boot with hyphens.
    boot = None if host.boot_id is None else str(uuid.UUID(host.boot_id))
    device = Device(
        name=name if kind == "name" else None,
        hostname=name if kind == "hostname" else None,
        ip=name if kind == "ip" else None,
        uid=host.machine_id,
        type_id=DeviceType.UNKNOWN,
        os=Os(name="Linux", type_id=OsType.LINUX),
        boot_uid=boot,
    )
    observables = (
        (observable(f"device.{kind}", _OBSERVABLES[kind], name),) if kind in _OBSERVABLES else ()
    )
    return LoggingHost(
        device.cache_json(),
        observables,
        (kind, boot is not None, host.machine_id is not None),
        (
            orjson.dumps(name)[1:-1],
            None if boot is None else boot.encode(),
            None if host.machine_id is None else host.machine_id.encode(),
        ),
    )


def _named(name: str) -> tuple[NameKind, str]:
    address = ip_text.packed(name)
    if address is not None:
        return "ip", ip_text.text_of(address)
    return ("hostname" if _HOSTNAME.fullmatch(name) else "name"), visible(name)


@cache
def product_of(firewall: str | None) -> Product:
    """Return the OCSF product that logged a packet: ``netfilter`` if the firewall is unknown.

    ``firewall`` is a result of :func:`ocsf_nft.log_prefixes.firewall_of`.
    """
    name = firewall or "netfilter"
    return Product(name=name, vendor_name=_VENDORS.get(name, name)).cache_json()

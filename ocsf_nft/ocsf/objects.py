"""The OCSF 1.8.0 objects that our events hold, with exactly the attributes that we fill.

Names, order of meaning and requirements are the schema's; ``None`` is "not known" and is not
serialised.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from ocsf_nft.ocsf.enums import (
    AnalyticType,
    Boundary,
    DeviceType,
    Direction,
    NetworkScope,
    ObservableType,
    OsType,
    ProtocolVersion,
)
from ocsf_nft.ocsf.model import Caption, Long, Model, Port, caption_of


class Product(Model):
    """``product``: what made the event."""

    name: str
    vendor_name: str
    version: str


class Metadata(Model):
    """``metadata``. An event fills in ``profiles`` itself, from what it holds."""

    version: str
    uid: str
    product: Product
    profiles: tuple[str, ...] | None = None
    log_name: str | None = None
    log_provider: str | None = None
    log_source: str | None = None
    log_format: str | None = None
    original_time: str | None = None
    original_event_uid: str | None = None
    sequence: Long | None = None
    correlation_uid: str | None = None
    logged_time: Long | None = None
    processed_time: Long | None = None


class FirewallRule(Model):
    """``firewall_rule``: the rule that refused."""

    name: str
    uid: str | None = None
    type: str | None = None
    desc: str | None = None
    condition: str | None = None


class Tactic(Model):
    """``tactic`` of ATT&CK."""

    uid: str
    name: str


class Technique(Model):
    """``technique`` or ``sub_technique`` of ATT&CK."""

    uid: str
    name: str


class Attack(Model):
    """``attack``: one technique under one tactic."""

    version: str
    tactic: Tactic
    technique: Technique
    sub_technique: Technique | None = None


class Analytic(Model):
    """``analytic``: what found a finding."""

    uid: str
    name: str
    type_id: AnalyticType
    type: Caption = caption_of("type_id")


class FindingInfo(Model):
    """``finding_info``: what was found; ``uid`` is the same for all that is told of it."""

    uid: str
    title: str
    desc: str
    types: tuple[str, ...]
    analytic: Analytic
    attacks: tuple[Attack, ...]
    first_seen_time: Long
    last_seen_time: Long


class Remediation(Model):
    """``remediation``: what to do about a finding."""

    desc: str


class ResourceDetails(Model):
    """``resource_details``: what a finding is about."""

    name: str
    type: str


class NetworkEndpoint(Model):
    """``network_endpoint``. A MAC address alone does not make one: the schema wants a name too."""

    name: str | None = None
    uid: str | None = None
    ip: str | None = None
    port: Port | None = None
    mac: str | None = None
    interface_name: str | None = None
    network_scope_id: NetworkScope | None = None
    network_scope: Caption | None = caption_of("network_scope_id")

    @model_validator(mode="after")
    def _is_someone(self) -> Self:
        if self.ip is self.name is self.uid is self.interface_name is None:
            raise ValueError("an endpoint needs an ip, a name, a uid or an interface_name")
        return self


class NetworkProxy(Model):
    """``network_proxy``: where the traffic should have gone."""

    ip: str
    port: Port


class NetworkConnectionInfo(Model):
    """``network_connection_info``."""

    direction_id: Direction
    direction: Caption = caption_of("direction_id")
    protocol_num: Annotated[int, Field(ge=0, le=255)] | None = None
    protocol_name: str | None = None
    protocol_ver_id: ProtocolVersion | None = None
    protocol_ver: Caption | None = caption_of("protocol_ver_id")
    tcp_flags: int | None = None
    boundary_id: Boundary | None = None
    boundary: Caption | None = caption_of("boundary_id")
    community_uid: str | None = None


class NetworkTraffic(Model):
    """``network_traffic``: what this event counts, and no other event does."""

    packets: Long
    bytes: Long | None = None


class Group(Model):
    """``group``."""

    uid: str


class User(Model):
    """``user``."""

    uid: str
    groups: tuple[Group, ...] | None = None


class Actor(Model):
    """``actor``: who did it, as far as the kernel's record says."""

    user: User


class Evidences(Model):
    """``evidences``: one thing that was seen."""

    actor: Actor | None = None
    src_endpoint: NetworkEndpoint | None = None
    dst_endpoint: NetworkEndpoint | None = None
    connection_info: NetworkConnectionInfo


class Os(Model):
    """``os``."""

    name: str
    type_id: OsType
    type: Caption = caption_of("type_id")
    kernel_release: str | None = None


class Device(Model):
    """``device``: the machine whose kernel refused."""

    name: str | None = None
    hostname: str | None = None
    type_id: DeviceType
    type: Caption = caption_of("type_id")
    os: Os | None = None
    boot_uid: str | None = None
    boot_time: Long | None = None

    @model_validator(mode="after")
    def _is_something(self) -> Self:
        if self.hostname is self.name is None:
            raise ValueError("a device needs a hostname or a name")
        return self


class Observable(Model):
    """``observable``: ``name`` is the path of an attribute, ``value`` what it holds, as text."""

    name: str
    type_id: ObservableType
    type: Caption = caption_of("type_id")
    value: str

"""Configuration of events: severities, findings and foreign log prefixes."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from ocsf_nft.config.base_table import Table, checked
from ocsf_nft.errors import UsageError
from ocsf_nft.fence import values
from ocsf_nft.log_prefixes import begins
from ocsf_nft.ocsf import protocols
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.severity import SeverityRule, Threshold
from ocsf_nft.quoted import quoted
from ocsf_nft.record import ForeignVerdict

SeverityName: TypeAlias = Literal["informational", "low", "medium", "high", "critical"]
_PROTOCOLS: Final = {name: number for number, name in protocols.NAMES.items()} | {
    "icmpv6": protocols.ICMPV6
}


def _protocol(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.lower() not in _PROTOCOLS:
        raise ValueError(
            f"{quoted(value)} is no IP protocol: give its name at IANA, as tcp or ipv6-icmp, "
            "or a number"
        )
    return _PROTOCOLS[value.lower()]


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise UsageError(
            f"{quoted(text)} is no address and no network: write 203.0.113.0/24 or 2001:db8::/32"
        ) from error


class SeverityConfig(Table):
    """Severity of the attempts that match all given keys, ``[[severity]]``."""

    severity: SeverityName
    sandbox: Annotated[str, checked(values.sandbox_name)] | None = None
    rule: Annotated[str, Field(min_length=1)] | None = None
    protocol: (
        Annotated[
            int,
            BeforeValidator(_protocol, json_schema_input_type=int | str),
            Field(ge=0, le=255, strict=True),
        ]
        | None
    ) = None
    destination: (
        Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, checked(_network)] | None
    ) = None
    port: Annotated[int, Field(ge=0, le=65535, strict=True)] | None = None
    uid: Annotated[int, Field(ge=0, le=0xFFFF_FFFE, strict=True)] | None = None

    def as_rule(self) -> SeverityRule:
        """Return the severity rule in the form that an OCSF mapper uses."""
        return SeverityRule(
            severity=Severity[self.severity.upper()],
            sandbox=self.sandbox,
            rule=self.rule,
            protocol=self.protocol,
            destination=self.destination,
            port=self.port,
            uid=self.uid,
        )


class FindingConfig(Table):
    """Condition for an attempt to be a finding, ``[finding]``.

    An attempt of ``min_severity`` or a higher severity is a finding. An attempt of severity Medium
    or higher is a finding if it has at least ``threshold`` packets.
    """

    min_severity: SeverityName = "high"
    threshold: Annotated[int, Field(ge=1, le=1 << 62, strict=True)] = Threshold().packets

    def as_threshold(self) -> Threshold:
        """Return the condition for a finding in the form that an OCSF mapper uses."""
        return Threshold(min_severity=Severity[self.min_severity.upper()], packets=self.threshold)


class PrefixConfig(Table):
    """Meaning of a foreign log prefix, ``[[prefix]]`` in the file.

    A foreign log prefix is the prefix that another firewall puts before its log records. The table
    applies to each foreign prefix that starts with the text ``begins``. Without a ``rule``, the
    complete prefix is the name of the rule.
    """

    begins: Annotated[str, checked(begins)]
    verdict: ForeignVerdict
    sandbox: Annotated[str, checked(values.sandbox_name)] | None = None
    rule: Annotated[str, Field(min_length=1)] | None = None

"""Enumerations of OCSF 1.8.0: each member has an id and its caption.

Only the members that ocsf-nft emits are defined. An attribute whose values depend on the event
class has one enumeration for each class.
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Final, Self

#: The id Other: its caption is free text everywhere in OCSF.
OTHER: Final = 99


class Captioned(IntEnum):
    """Base of the OCSF enumerations: each member is an id (integer) with a caption (text)."""

    caption: str

    def __new__(cls, value: int, caption: str) -> Self:
        """Create a member from its id and caption, for example ``LOW = 2, "Low"``."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.caption = caption
        return member

    def __init_subclass__(cls) -> None:
        """Check that no two members have the same id; raises ValueError."""
        unique(cls)


class NetworkActivityId(Captioned):
    """Values of the OCSF attribute ``activity_id`` of Network Activity (class 4001)."""

    OPEN = 1, "Open"
    REFUSE = 5, "Refuse"
    TRAFFIC = 6, "Traffic"


class DnsActivityId(Captioned):
    """Values of the OCSF attribute ``activity_id`` of DNS Activity (class 4003)."""

    QUERY = 1, "Query"


class DnsOpcode(Captioned):
    """Values of the OCSF attribute ``opcode_id`` of a DNS query."""

    QUERY = 0, "Query"


class FindingActivityId(Captioned):
    """Values of the OCSF attribute ``activity_id`` of Detection Finding (class 2004)."""

    CREATE = 1, "Create"
    UPDATE = 2, "Update"
    CLOSE = 3, "Close"


class ConfigActivityId(Captioned):
    """Values of the OCSF attribute ``activity_id`` of Device Config State Change (class 5019)."""

    LOG = 1, "Log"


class LifecycleActivityId(Captioned):
    """Values of the OCSF attribute ``activity_id`` of Application Lifecycle (class 6002)."""

    START = 3, "Start"
    STOP = 4, "Stop"
    OTHER = 99, "Other"


class Severity(Captioned):
    """Values of the OCSF attribute ``severity_id``, in every class."""

    INFORMATIONAL = 1, "Informational"
    LOW = 2, "Low"
    MEDIUM = 3, "Medium"
    HIGH = 4, "High"
    CRITICAL = 5, "Critical"


class Status(Captioned):
    """Values of the OCSF attribute ``status_id`` of all classes except Detection Finding."""

    UNKNOWN = 0, "Unknown"
    SUCCESS = 1, "Success"
    FAILURE = 2, "Failure"


class FindingStatus(Captioned):
    """Values of the OCSF attribute ``status_id`` of a finding."""

    NEW = 1, "New"
    IN_PROGRESS = 2, "In Progress"
    RESOLVED = 4, "Resolved"


class Action(Captioned):
    """Values of the OCSF attribute ``action_id`` of the profile security_control."""

    UNKNOWN = 0, "Unknown"
    ALLOWED = 1, "Allowed"
    DENIED = 2, "Denied"
    OBSERVED = 3, "Observed"


class Disposition(Captioned):
    """Values of the OCSF attribute ``disposition_id`` of the profile security_control."""

    ALLOWED = 1, "Allowed"
    BLOCKED = 2, "Blocked"
    DROPPED = 6, "Dropped"
    LOGGED = 17, "Logged"


class Confidence(Captioned):
    """Values of ``confidence_id`` of the OCSF profile security_control, and of a finding."""

    LOW = 1, "Low"
    HIGH = 3, "High"


class AnalyticType(Captioned):
    """Values of the OCSF attribute ``analytic.type_id``."""

    RULE = 1, "Rule"


class ConfigState(Captioned):
    """Values of the OCSF attribute ``state_id`` of Device Config State Change."""

    DISABLED = 1, "Disabled"
    ENABLED = 2, "Enabled"
    OTHER = 99, "Other"


class SecurityLevel(Captioned):
    """Values of the OCSF attribute ``security_level_id`` of Device Config State Change."""

    SECURE = 1, "Secure"
    AT_RISK = 2, "At Risk"


class Direction(Captioned):
    """Values of the OCSF attribute ``connection_info.direction_id``."""

    UNKNOWN = 0, "Unknown"
    INBOUND = 1, "Inbound"
    OUTBOUND = 2, "Outbound"


class Boundary(Captioned):
    """Values of the OCSF attribute ``connection_info.boundary_id``."""

    LOCALHOST = 1, "Localhost"
    INTERNAL = 2, "Internal"
    EXTERNAL = 3, "External"


class ProtocolVersion(Captioned):
    """Values of the OCSF attribute ``connection_info.protocol_ver_id``."""

    IPV4 = 4, "Internet Protocol version 4 (IPv4)"
    IPV6 = 6, "Internet Protocol version 6 (IPv6)"


PROTOCOL_VERSIONS: Final[dict[int | None, ProtocolVersion]] = {
    int(version): version for version in ProtocolVersion
}


class NetworkScope(Captioned):
    """Values of the OCSF attribute ``network_scope_id`` of an endpoint."""

    INTERNAL = 1, "Internal"
    EXTERNAL = 2, "External"


class ObservationPoint(Captioned):
    """Values of the OCSF attribute ``observation_point_id`` of Network Activity."""

    SOURCE = 1, "Source"
    DESTINATION = 2, "Destination"


class DeviceType(Captioned):
    """Values of the OCSF attribute ``device.type_id``."""

    UNKNOWN = 0, "Unknown"
    VIRTUAL = 6, "Virtual"


class OsType(Captioned):
    """Values of the OCSF attribute ``os.type_id``."""

    LINUX = 200, "Linux"


class FileType(Captioned):
    """Values of the OCSF attribute ``file.type_id``."""

    REGULAR_FILE = 1, "Regular File"


class FingerprintAlgorithm(Captioned):
    """Values of the OCSF attribute ``algorithm_id`` of a fingerprint."""

    SHA_256 = 3, "SHA-256"


class ObservableType(Captioned):
    """Values of the OCSF attribute ``type_id`` of an observable."""

    HOSTNAME = 1, "Hostname"
    IP_ADDRESS = 2, "IP Address"
    MAC_ADDRESS = 3, "MAC Address"
    HASH = 8, "Hash"
    PROCESS_NAME = 9, "Process Name"
    PORT = 11, "Port"
    COMMAND_LINE = 13, "Command Line"
    PROCESS_ID = 15, "Process ID"
    USER_UID = 31, "User Object: uid"
    FILE_PATH = 45, "File Path"
    ENDPOINT_UID = 48, "Network Endpoint Object: uid"

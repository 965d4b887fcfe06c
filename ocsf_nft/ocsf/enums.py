"""OCSF enumerations: each member has an id and its caption, so the two can't disagree.

Values and captions are spelled as in OCSF 1.8.0. Only the members that we emit are defined. If the
schema uses one name for different enumerations in two objects, there are two classes.
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Final, Self

#: The id Other: its caption is free text everywhere in OCSF.
OTHER: Final = 99


class Captioned(IntEnum):
    """Enumeration whose members are ids with captions."""

    caption: str

    def __new__(cls, value: int, caption: str) -> Self:
        """Make a member from ``(id, caption)``."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.caption = caption
        return member


@unique
class NetworkActivityId(Captioned):
    """``activity_id`` of Network Activity (4001)."""

    OPEN = 1, "Open"
    REFUSE = 5, "Refuse"
    TRAFFIC = 6, "Traffic"


@unique
class FindingActivityId(Captioned):
    """``activity_id`` of Detection Finding (2004)."""

    CREATE = 1, "Create"
    UPDATE = 2, "Update"
    CLOSE = 3, "Close"


@unique
class ConfigActivityId(Captioned):
    """``activity_id`` of Device Config State Change (5019)."""

    LOG = 1, "Log"


@unique
class LifecycleActivityId(Captioned):
    """``activity_id`` of Application Lifecycle (6002)."""

    START = 3, "Start"
    STOP = 4, "Stop"
    OTHER = 99, "Other"


@unique
class Severity(Captioned):
    """``severity_id``, every class."""

    INFORMATIONAL = 1, "Informational"
    LOW = 2, "Low"
    MEDIUM = 3, "Medium"
    HIGH = 4, "High"
    CRITICAL = 5, "Critical"


@unique
class Status(Captioned):
    """``status_id`` of every class but the findings."""

    UNKNOWN = 0, "Unknown"
    SUCCESS = 1, "Success"
    FAILURE = 2, "Failure"


@unique
class FindingStatus(Captioned):
    """``status_id`` of a finding."""

    NEW = 1, "New"
    IN_PROGRESS = 2, "In Progress"
    RESOLVED = 4, "Resolved"


@unique
class Action(Captioned):
    """``action_id`` of the profile security_control."""

    UNKNOWN = 0, "Unknown"
    ALLOWED = 1, "Allowed"
    DENIED = 2, "Denied"
    OBSERVED = 3, "Observed"


@unique
class Disposition(Captioned):
    """``disposition_id`` of the profile security_control."""

    ALLOWED = 1, "Allowed"
    BLOCKED = 2, "Blocked"
    DROPPED = 6, "Dropped"
    LOGGED = 17, "Logged"


@unique
class Confidence(Captioned):
    """``confidence_id`` of the profile security_control, and of a finding."""

    HIGH = 3, "High"


@unique
class AnalyticType(Captioned):
    """``analytic.type_id``."""

    RULE = 1, "Rule"


@unique
class ConfigState(Captioned):
    """``state_id`` of Device Config State Change."""

    DISABLED = 1, "Disabled"
    ENABLED = 2, "Enabled"
    OTHER = 99, "Other"


@unique
class SecurityLevel(Captioned):
    """``security_level_id`` of Device Config State Change."""

    SECURE = 1, "Secure"
    AT_RISK = 2, "At Risk"


@unique
class Direction(Captioned):
    """``connection_info.direction_id``."""

    UNKNOWN = 0, "Unknown"
    INBOUND = 1, "Inbound"
    OUTBOUND = 2, "Outbound"


@unique
class Boundary(Captioned):
    """``connection_info.boundary_id``."""

    LOCALHOST = 1, "Localhost"
    INTERNAL = 2, "Internal"
    EXTERNAL = 3, "External"


@unique
class ProtocolVersion(Captioned):
    """``connection_info.protocol_ver_id``."""

    IPV4 = 4, "Internet Protocol version 4 (IPv4)"
    IPV6 = 6, "Internet Protocol version 6 (IPv6)"


@unique
class NetworkScope(Captioned):
    """``network_scope_id`` of an endpoint."""

    INTERNAL = 1, "Internal"
    EXTERNAL = 2, "External"


@unique
class ObservationPoint(Captioned):
    """``observation_point_id`` of Network Activity."""

    SOURCE = 1, "Source"
    DESTINATION = 2, "Destination"


@unique
class DeviceType(Captioned):
    """``device.type_id``."""

    UNKNOWN = 0, "Unknown"
    VIRTUAL = 6, "Virtual"


@unique
class OsType(Captioned):
    """``os.type_id``."""

    LINUX = 200, "Linux"


@unique
class FileType(Captioned):
    """``file.type_id``."""

    REGULAR_FILE = 1, "Regular File"


@unique
class FingerprintAlgorithm(Captioned):
    """``algorithm_id`` of a fingerprint."""

    SHA_256 = 3, "SHA-256"


@unique
class ObservableType(Captioned):
    """``observables[].type_id``."""

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

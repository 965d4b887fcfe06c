"""Base of the OCSF event classes: computed fields, profiles, and encoding as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

from ocsf_nft.ocsf.model import Model, Rule
from ocsf_nft.ocsf.objects import Metadata
from ocsf_nft.ocsf.safe_text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.ocsf.enums import Captioned

SCHEMA_VERSION: Final = "1.8.0"

#: Attributes of the profile security_control in every class except findings, which have the last
#: two without a profile.
SECURITY_CONTROL: Final = (
    "action_id",
    "disposition_id",
    "firewall_rule",
    "attacks",
    "is_alert",
    "confidence_id",
)


def type_uid_of(data: Mapping[str, Any]) -> int:
    """Return ``type_uid`` of an event from its values so far."""
    return int(data["class_uid"] * 100 + data["activity_id"])


def type_name_of(data: Mapping[str, Any]) -> str:
    """Return ``type_name`` of an event from its values so far."""
    activity: Captioned = data["activity_id"]
    return f"{data['class_name']}: {activity.caption}"


def duration_of(data: Mapping[str, Any]) -> int | None:
    """Return the time from the start of an event to its end in ms; None if unknown or zero."""
    start, end = data["start_time"], data["end_time"]
    return None if start is None or end is None else (end - start or None)


def _is_type_uid(_name: str, value: int, before: Mapping[str, Any]) -> None:
    if value != type_uid_of(before):
        raise ValueError("type_uid is class_uid * 100 + activity_id")


def _is_type_name(_name: str, value: str, before: Mapping[str, Any]) -> None:
    if value != type_name_of(before):
        raise ValueError("type_name is the class's name and the activity's caption")


TYPE_UID: Final = "class_uid * 100 + activity_id"
TYPE_NAME: Final = "the class's name and the activity's"
TypeUid: TypeAlias = Annotated[int, Rule(_is_type_uid)]
TypeName: TypeAlias = Annotated[str, Rule(_is_type_name)]


class Event(Model):
    """Base of the OCSF event classes: sets ``metadata.profiles``, and encodes an event as JSON."""

    @classmethod
    def _prepared(cls, values: dict[str, Any]) -> dict[str, Any]:
        profiles = tuple(sorted(set(cls.profiles_of(values)))) or None
        metadata = values.get("metadata")
        if isinstance(metadata, Metadata):
            return {**values, "metadata": metadata.model_copy(update={"profiles": profiles})}
        return values

    def to_json(self) -> bytes:
        """Return the event as one line of printable JSON, without a line end and null values."""
        return printable(self.json())

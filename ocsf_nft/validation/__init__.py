"""Validation of OCSF events against the published schema, in each of its versions.

The package needs the extra ``validate``, which contains the schema. The package does not depend on
how our own events are made, so it can validate events from any source.
"""

from ocsf_nft.validation.event_files import ValidatedEvent, validate_events
from ocsf_nft.validation.fault import Fault
from ocsf_nft.validation.validate_event import EventValidator

__all__ = ["EventValidator", "Fault", "ValidatedEvent", "validate_events"]

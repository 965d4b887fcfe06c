"""Validation of OCSF events against the published schema of an OCSF version.

The package needs the extra ``ocsf-nft[validate]``, which contains the schemas. It does not use the
code that creates our own events. So it can validate events from any source.
"""

from ocsf_nft.validation.event_files import ValidatedEvent, validate_events
from ocsf_nft.validation.fault import Fault
from ocsf_nft.validation.validate_event import EventValidator

__all__ = ["EventValidator", "Fault", "ValidatedEvent", "validate_events"]

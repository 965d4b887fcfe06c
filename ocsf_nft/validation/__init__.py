"""Validation of OCSF events against the published schema of an OCSF version.

The events may come from any program. The package needs the extra ``ocsf-nft[validate]``, which
contains the schemas.
"""

from ocsf_nft.validation.event_files import ValidatedEvent, validate_events
from ocsf_nft.validation.fault import Fault
from ocsf_nft.validation.validate_event import EventValidator

__all__ = ["EventValidator", "Fault", "ValidatedEvent", "validate_events"]

"""Validation of OCSF events against the published schema of an OCSF version.

The events may come from any program. The extra ``ocsf-nft[validate]`` contains the schemas. A
compiled schema in a file needs no extra.
"""

from ocsf_nft.validation.event_files import ValidatedEvent, validate_events
from ocsf_nft.validation.fault import Fault
from ocsf_nft.validation.validate_event import EventValidator

__all__ = ["EventValidator", "Fault", "ValidatedEvent", "validate_events"]

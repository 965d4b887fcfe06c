"""Whether an event says what the published OCSF schema lets it say, in each of its versions.

Needs the extra ``validate``, which carries the schema. Nothing here knows how our own events are
made: what is judged may be anybody's.
"""

from ocsf_nft.validation.event_files import Judged, judged
from ocsf_nft.validation.fault import Fault
from ocsf_nft.validation.validate_event import Judge

__all__ = ["Fault", "Judge", "Judged", "judged"]

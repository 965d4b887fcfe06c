"""The stages wired together: fences, sources, mapping and delivery as one running thing."""

from ocsf_nft.service.outlets import Outlets
from ocsf_nft.service.pipeline import Counts
from ocsf_nft.service.run import capabilities, replay, run

__all__ = ["Counts", "Outlets", "capabilities", "replay", "run"]

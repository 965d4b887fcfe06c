"""The stages wired together: fences, sources, mapping and delivery as one running thing."""

from ocsf_nft.service.pipeline import Counts
from ocsf_nft.service.run import replay, run

__all__ = ["Counts", "replay", "run"]

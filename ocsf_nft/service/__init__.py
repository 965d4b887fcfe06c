"""The stages wired together: fences, sources, mapping and delivery as one running thing."""

from ocsf_nft.service.outlets import Outlet
from ocsf_nft.service.pipeline import Counts
from ocsf_nft.service.run import Service, capabilities, replay

__all__ = ["Counts", "Outlet", "Service", "capabilities", "replay"]

"""The running service: it fences sandboxes, reads records, and stores and delivers events."""

from ocsf_nft.service.pipeline import Counts
from ocsf_nft.service.run import Service, capabilities, replay
from ocsf_nft.service.sink_delivery import Outlet

__all__ = ["Counts", "Outlet", "Service", "capabilities", "replay"]

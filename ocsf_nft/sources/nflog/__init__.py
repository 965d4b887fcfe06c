"""NFLOG source: reads by netlink the packets that the kernel logs to one NFLOG group."""

from ocsf_nft.sources.nflog.group_binding import GroupTakenError, is_held
from ocsf_nft.sources.nflog.source import Nflog

__all__ = ["GroupTakenError", "Nflog", "is_held"]

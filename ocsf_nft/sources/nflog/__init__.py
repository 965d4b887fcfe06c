"""NFLOG source: reads by netlink the packets that the kernel logs to one NFLOG group."""

from ocsf_nft.sources.nflog.group_binding import GroupTakenError, held_groups
from ocsf_nft.sources.nflog.source import Nflog

__all__ = ["GroupTakenError", "Nflog", "held_groups"]

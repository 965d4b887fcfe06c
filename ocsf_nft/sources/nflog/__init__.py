"""NFLOG source: reads by netlink the packets that the kernel logs to one NFLOG group."""

from ocsf_nft.sources.nflog.source import Nflog

__all__ = ["Nflog"]

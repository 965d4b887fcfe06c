"""NFLOG source: packets that the kernel logs to one NFLOG group, read by netlink."""

from ocsf_nft.sources.nflog.source import Nflog

__all__ = ["Nflog"]

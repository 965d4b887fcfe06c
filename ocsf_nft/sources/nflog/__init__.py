"""NFLOG source: records by netlink, from one group of one network namespace."""

from ocsf_nft.sources.nflog.source import Nflog

__all__ = ["Nflog"]

"""Source for the kernel log, read from /dev/kmsg."""

from ocsf_nft.sources.kmsg.source import Kmsg

__all__ = ["Kmsg"]

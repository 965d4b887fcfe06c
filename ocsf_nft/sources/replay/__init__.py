"""Files of kernel log text, of any usual kind."""

from ocsf_nft.sources.replay.source import Counts, Reader, Replay

__all__ = ["Counts", "Reader", "Replay"]

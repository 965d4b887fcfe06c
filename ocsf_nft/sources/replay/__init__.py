"""Files of kernel log text, of any usual kind."""

from ocsf_nft.sources.replay.source import Reader, Replay, Tally

__all__ = ["Reader", "Replay", "Tally"]

"""Source of log records from files of kernel log text, in all usual formats."""

from ocsf_nft.sources.replay.source import LineTally, Reader, Replay, modification_ns

__all__ = ["LineTally", "Reader", "Replay", "modification_ns"]

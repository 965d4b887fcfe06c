"""The journal, by libsystemd or by journalctl."""

from ocsf_nft.sources.journal.source import Journal

__all__ = ["Journal"]

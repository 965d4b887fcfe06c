"""Source for the systemd journal, read with libsystemd or journalctl."""

from ocsf_nft.sources.journal.source import Journal

__all__ = ["Journal"]

"""Conversion of blocked packets, and of facts about ocsf-nft itself, to OCSF events."""

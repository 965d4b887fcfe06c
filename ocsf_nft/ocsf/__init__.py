"""Mapping of attempts, and of facts about ocsf-nft itself, to OCSF events."""

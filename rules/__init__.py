"""The rulesets, shipped as package data (``ocsf_nft.rules``)."""

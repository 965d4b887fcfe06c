"""Fence a sandbox with nftables and report every bypass attempt as OCSF events."""

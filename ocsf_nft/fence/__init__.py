"""nftables rulesets that confine a sandbox."""

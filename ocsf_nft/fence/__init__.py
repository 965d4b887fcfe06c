"""The nftables rulesets that stand round a sandbox."""

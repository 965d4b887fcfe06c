"""nftables fences around sandboxes: their rulesets, installation, counters and tamper guard."""

"""Matrix of attacks: variants by family and attacker, each tried against each form of a fence."""

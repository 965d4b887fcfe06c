"""From records and counters to attempts: every refused packet told once, and none twice."""

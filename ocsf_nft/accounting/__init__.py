"""Conversion of records and counters to attempts: each refused packet is reported exactly once."""

"""Conversion of kernel log records and packet counters to attempts (reported packets of a flow).

Each refused packet is reported exactly once.
"""

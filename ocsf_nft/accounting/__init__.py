"""Conversion of kernel log records and packet counters to attempts.

An attempt is the packets of one flow in one time window. Each refused packet belongs to exactly one
attempt.
"""

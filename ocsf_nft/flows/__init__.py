"""Packet counts of a fence: each refused packet is reported in exactly one event."""

"""Delivery of events from a store on the disk, by forwarders, to sinks (destinations)."""

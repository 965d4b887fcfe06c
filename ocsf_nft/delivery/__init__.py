"""Delivery of events: the store, the forwarders and the sinks."""

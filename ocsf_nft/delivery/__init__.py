"""Delivery of events: forwarders read them from a store on the disk and send them to sinks."""

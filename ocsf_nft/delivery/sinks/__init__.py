"""Sinks (destinations of events), one module each, and the code that they share."""

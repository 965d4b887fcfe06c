"""Chained CNI plugin: fence a pod before its containers start."""

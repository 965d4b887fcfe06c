"""Surroundings of a fence: settings of its network namespace that other processes may change."""

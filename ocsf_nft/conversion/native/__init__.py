"""Library in C that converts the usual log lines, and its sources."""

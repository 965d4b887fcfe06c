"""One file per sink."""

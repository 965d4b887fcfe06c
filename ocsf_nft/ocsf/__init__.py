"""Records become OCSF events."""

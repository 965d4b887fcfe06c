"""State of the service in one SQLite file: events, packet counts and read positions."""

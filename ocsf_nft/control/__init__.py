"""Control API of the service: HTTP over a Unix socket, and parts of its clients."""

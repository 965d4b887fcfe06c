"""BPF programs: their source, and the objects that the build makes of it."""

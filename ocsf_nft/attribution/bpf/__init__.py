"""BPF programs: their source in C, and the object files that the build makes from it."""

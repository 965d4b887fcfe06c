"""BPF program of the last gate: its source in C, and the object file that the build makes."""

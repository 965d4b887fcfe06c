"""Which process sent a packet that was refused, by whatever can tell; never a guess."""

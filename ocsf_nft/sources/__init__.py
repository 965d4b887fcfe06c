"""Where kernel records come from, and how they are read."""

"""A page beside training runs: a process of its own that reads model folders and asks their runs for little."""

"""The mean faces landmarks are aligned to: facts, as JSON."""

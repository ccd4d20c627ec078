"""Commands of more than a few lines."""

"""A headless, fast trainer for face-swap autoencoders."""

__version__ = "0.1.0"

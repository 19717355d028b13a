"""QwQ-32B in readable NumPy, fast C, and golden numbers. See README.md for a map."""

__version__ = "0.1.0"

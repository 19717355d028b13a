"""The executable spec: every block of QwQ-32B as a pure NumPy function."""

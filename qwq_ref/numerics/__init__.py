"""The arithmetic of the C core in NumPy, exact to the bit."""

"""Training in NumPy: a gradient for every operation of the spec, the whole model's, and the optimiser.

B, in the shape contracts of this package, is the number of sequences in a batch.
"""

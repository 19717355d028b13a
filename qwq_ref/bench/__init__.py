"""Benchmarks of the core's operations and of whole models, beside the limits of the machine at the same moment."""

"""Benchmarks of the core's operations, each beside what the processor can do at best at the same moment."""

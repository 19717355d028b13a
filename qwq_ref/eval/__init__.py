"""Measure the quality of answers: accuracy, format and language, on problems that no training has seen."""

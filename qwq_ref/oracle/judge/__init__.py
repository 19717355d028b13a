"""The verdict: which taps of a candidate are wrong, and where a first divergence is."""

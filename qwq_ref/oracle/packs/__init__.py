"""Golden packs and test vectors: written, read, and shipped."""

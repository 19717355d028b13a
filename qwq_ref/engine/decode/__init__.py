"""The loops that turn logits into tokens."""

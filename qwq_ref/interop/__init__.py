"""Other engines, called from Python."""

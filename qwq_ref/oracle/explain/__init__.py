"""The cause: which known mistake makes the wrong taps."""

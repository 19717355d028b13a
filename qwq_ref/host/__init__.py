"""Facts about this machine: its processor and its memory."""

"""The code that runs in a sandbox. It imports only Python's library, because nothing else is in sight there."""

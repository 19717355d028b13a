"""Numbers and places in words, as all reports write them."""

from __future__ import annotations


def count(n: int, name: str) -> str:
    """Write a number of things: "1 tap", "1,234 taps" """
    return f"{n:,} {name}{'' if n == 1 else 's'}"


def in_phase(phase: str) -> str:
    """Write a phase: "in the prompt", "in decode-0" """
    return "in the prompt" if phase == "prompt" else f"in {phase}"


def printable(text: str, kept: str = "") -> str:
    """Replace characters that cannot be printed, except those in `kept`, by question marks."""
    return "".join(c if c.isprintable() or c in kept else "?" for c in text)

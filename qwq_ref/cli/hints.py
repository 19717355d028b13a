"""A hint after an answer: the shipped models say when they do not know, and a reader may not know why."""

from __future__ import annotations

import sys
from pathlib import Path

from .screen import tell

_SHIPPED = Path(__file__).parents[1] / "models"


def print_hint(model: Path, answer: str) -> None:
    """Say on a terminal what to do next if a shipped model declined. The answer decides, not the question."""
    if not sys.stderr.isatty() or model.parent != _SHIPPED:
        return
    from ..tasks import declines

    if declines(answer):
        what = "is a tiny model for small problems (docs/training.md)"
        tell(f"qwq: {model.name} {what}; for other questions, name a larger one with -m")

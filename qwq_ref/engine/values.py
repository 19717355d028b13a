"""Types of arguments of the Python API."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import UsageError


def whole_number(name: str, value: Any) -> None:
    """Raise UsageError for an argument that is no integer: a float, a text, a boolean."""
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__") or np.ndim(value):
        raise UsageError(None, name, f"must be an integer, got {value!r:.40}")


def at_least_one(name: str, value: Any) -> None:
    """Raise UsageError for an argument that is no integer above 0."""
    whole_number(name, value)
    if value < 1:
        raise UsageError(None, name, f"must be at least 1, got {value}")

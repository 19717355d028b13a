"""Read JSON that a stranger sent: no NaN, no deep nesting, no number beyond floats."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import numpy as np

from .problems import ApiError

_STEPS = np.zeros(256, np.int8)
_STEPS[[*b"[{"]] = 1
_STEPS[[*b"]}"]] = -1


def read_json(body: bytes, depth: int, containers: int = 1 << 16) -> Any:
    """Return the value of a JSON text in UTF-8. Raises ApiError.

    depth, containers  the most objects and lists within each other, and in all
    """
    steps = _steps(np.frombuffer(body, np.uint8))
    if np.max(np.cumsum(steps, dtype=np.int32), initial=0) > depth:
        message = f"the body has more than {depth} objects and lists within each other"
        raise ApiError(400, message, code="invalid_json")
    if np.count_nonzero(steps > 0) > containers:  # before each becomes an object of Python
        raise ApiError(400, f"the body has more than {containers} objects and lists", code="invalid_json")
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
    except UnicodeDecodeError as problem:
        raise ApiError(400, f"the body is not UTF-8 (byte {problem.start})", code="invalid_json") from None
    except json.JSONDecodeError as problem:
        message = f"the body is not JSON: {problem.msg} (character {problem.pos})"
        raise ApiError(400, message, code="invalid_json") from None
    except ValueError as problem:
        raise ApiError(400, f"the body is not JSON: {problem}", code="invalid_json") from None


def _steps(body: np.ndarray) -> np.ndarray:
    """Return 1 where an object or list begins, -1 where one ends, and 0 elsewhere and in strings. int8 `[bytes]`.

    A text that is not JSON gets some steps too.
    """
    places = np.arange(body.size, dtype=np.int32)
    last = np.maximum.accumulate(np.where(body == ord("\\"), np.int32(-1), places))  # the last one of another byte
    odd = np.zeros(body.size, bool)  # after an odd number of backslashes: an escaped byte
    odd[1:] = (places - last)[:-1] & 1
    within = np.logical_xor.accumulate((body == ord('"')) & ~odd)
    steps: np.ndarray = _STEPS[body]
    steps[within] = 0
    return steps


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value

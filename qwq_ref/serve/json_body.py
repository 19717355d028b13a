"""Read JSON that a stranger sent: no NaN, no deep nesting, no number beyond floats."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

import numpy as np

from .problems import ApiError

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_STEPS = np.zeros(256, np.int8)
_STEPS[[*b"[{"]] = 1
_STEPS[[*b"]}"]] = -1


def read_json(body: bytes, depth: int, containers: int = 1 << 16) -> Any:
    """Return the value of a JSON text in UTF-8. Raises ApiError.

    depth, containers  the most objects and lists within each other, and in all
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise _too_deep(depth) from None
    except UnicodeDecodeError as problem:
        raise ApiError(400, f"the body is not UTF-8 (byte {problem.start})", code="invalid_json") from None
    except json.JSONDecodeError as problem:
        message = f"the body is not JSON: {problem.msg} (character {problem.pos})"
        raise ApiError(400, message, code="invalid_json") from None
    except ValueError as problem:
        raise ApiError(400, f"the body is not JSON: {problem}", code="invalid_json") from None
    steps = _STEPS[np.frombuffer(_STRING.sub(b"", body), np.uint8)]  # of a valid text: its strings have ends
    if np.max(np.cumsum(steps, dtype=np.int32), initial=0) > depth:
        raise _too_deep(depth)
    if np.count_nonzero(steps > 0) > containers:
        raise ApiError(400, f"the body has more than {containers} objects and lists", code="invalid_json")
    return value


def _too_deep(depth: int) -> ApiError:
    return ApiError(400, f"the body has more than {depth} objects and lists within each other", code="invalid_json")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value

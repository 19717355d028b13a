"""The language of a text, as IFEval asks for it."""

from __future__ import annotations

import importlib.util
from typing import Any

from ....errors import UsageError


def require_detector() -> None:
    """Raise UsageError without the package langdetect, which the published checkers use."""
    if importlib.util.find_spec("langdetect") is None:
        raise UsageError(None, "suite", "ifeval needs the package langdetect: pip install 'qwq_ref[eval]'")


def is_language(text: str, code: str) -> bool:
    """Return whether a text is in a language, by its ISO 639-1 code. A text without letters is in every language."""
    import langdetect  # type: ignore[import-untyped, unused-ignore]

    detector: Any = langdetect
    detector.DetectorFactory.seed = 0  # its draws are random otherwise
    try:
        return bool(detector.detect(text) == code)
    except detector.LangDetectException:
        return True

"""QwQ-32B in readable NumPy: an executable spec of the Qwen2 architecture, and an engine, a trainer and an oracle.

model = qwq_ref.load(folder_or_hub_id)        # see `qwq_ref.engine.loader.load`
logits, cache = qwq_ref.spec.forward(config, weights, token_ids)
tokenizer = qwq_ref.text.load_tokenizer(folder)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import startup

if TYPE_CHECKING:
    from . import spec, text
    from .engine.loader import load

__version__ = "0.1.0"
__all__ = ["load", "spec", "text"]
startup.warn()


def __getattr__(name: str) -> Any:
    """Import a name on first use: `import qwq_ref` and `qwq --help` must not wait for NumPy."""
    if name in ("spec", "text"):
        return import_module(f"{__name__}.{name}")
    if name == "load":
        return import_module(f"{__name__}.engine.loader").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]

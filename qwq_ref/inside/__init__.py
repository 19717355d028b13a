"""Look inside a model at work: attention, the residual stream and the logit lens of one text, as plain data.

`look` runs the spec once over a text, and keeps only what is asked for. docs/inside.md lists the fields.
"""

from .look import MOST_TOKENS, SUBJECTS, Attention, Inside, Lens, Residual, look
from .memory import needs
from .tokens import token_text

__all__ = [
    "MOST_TOKENS",
    "SUBJECTS",
    "Attention",
    "Inside",
    "Lens",
    "Residual",
    "look",
    "needs",
    "token_text",
]

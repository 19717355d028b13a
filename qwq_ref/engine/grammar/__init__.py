"""Keep an answer within a grammar: a JSON schema, tool calls, a regular expression or a grammar of llama.cpp."""

from .check import check
from .constraint import Constraint, Vocabulary
from .request import Grammar, grammar_of

__all__ = ["Constraint", "Grammar", "Vocabulary", "check", "grammar_of"]

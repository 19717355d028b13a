"""Verifiers: functions that judge a completion. Each returns a `Verdict`, for any text.

categories   the recipe's 23 categories, by exact checkers
code         programs on tests, in a sandbox
mathematics  the last box of an answer, by math-verify
lean         proofs in Lean 4, by its REPL and Comparator
extract      the program in a completion
"""

from .categories import boxed, check
from .verdict import Verdict

__all__ = ["Verdict", "boxed", "check"]

"""Every error that a user's input can cause: one line, naming the file and the field.

The classes are few on purpose: one per kind of input, so that a caller can catch what it can act on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any


class QwqError(Exception):
    """Base of the project's errors; `str(error)` is one printable line, `file: field: problem`.

    file     the file (or other source) at fault, as the user named it; None where there is none
    field    the field, tensor or option inside it; None where the whole file is meant
    problem  what is wrong, and where it helps what would be right
    """

    def __init__(self, file: str | os.PathLike[str] | None, field: str | None, problem: str) -> None:
        self.file = None if file is None else os.fspath(file)
        self.field = field
        self.problem = problem
        super().__init__(": ".join(printable(part) for part in (self.file, field, problem) if part))

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes, although their arguments are not those of the constructor."""
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[QwqError], arguments: tuple[Any, ...], fields: dict[str, Any]) -> QwqError:
    """Return an error as it was in another process."""
    problem = kind.__new__(kind, *arguments)
    problem.args = arguments
    problem.__dict__.update(fields)
    return problem


class ConfigError(QwqError):
    """config.json or generation_config.json is malformed, or describes a model that this is not."""


class CheckpointError(QwqError):
    """A weight file is malformed, incomplete, or not the one that the config describes."""


class ChoiceError(CheckpointError):
    """A name stands for several models, or for none of those that are there.

    offers  the models to choose from: `formats.hub.choice.Offer`
    suit    whether the name stands for all of these
    config  the Config of one of them; None where it is not known
    """

    def __init__(self, file: str, problem: str, offers: Sequence[Any], suit: bool) -> None:
        super().__init__(file, None, problem)
        self.offers, self.suit = offers, suit
        self.config: Any = None


class FormError(CheckpointError):
    """A weight that one weight form cannot hold, and another one can."""


class TokenizerError(QwqError):
    """tokenizer.json is malformed, or not a Qwen2 byte-level BPE."""


class TemplateError(QwqError):
    """A chat template or the messages given to it cannot be rendered."""


class GoldenError(QwqError):
    """A golden pack, or a candidate's tensors, is malformed or not what it says."""


class KlBaseError(QwqError):
    """A file of base log-probabilities is malformed, or of another text, context or vocabulary."""


class SuiteError(QwqError):
    """A file of problems, or of answers to them, is malformed, or of another run."""


class MemoryLimitError(QwqError):
    """A model does not fit in the memory that this process may use; raised before loading."""


class BusyError(QwqError):
    """A scheduler has as many prompts as it takes.

    retry_after  seconds after which another try makes sense
    """

    def __init__(self, file: str | None, field: str | None, problem: str, retry_after: float) -> None:
        super().__init__(file, field, problem)
        self.retry_after = retry_after


class SessionFileError(QwqError):
    """A file of a saved session is damaged, or of another model."""


class SandboxError(QwqError):
    """No sandbox contains a program on this machine, so the program does not run."""


class FileError(QwqError, OSError):
    """A file, a folder or a standard stream cannot be written or read: the operating system refuses.

    `from_os` makes one of another OSError. Callers that catch OSError catch this one too.
    """

    @classmethod
    def from_os(
        cls, problem: OSError, file: str | os.PathLike[str] | None = None, what: str = "cannot be written"
    ) -> FileError:
        """Return the error for `file`, or for the file that the system names."""
        named = problem.filename if file is None else file
        name = os.fsdecode(named) if isinstance(named, str | bytes | os.PathLike) else "the system"
        reason = problem.strerror or str(problem)
        return cls(name, None, f"{what} ({reason})" if what else reason)


class NonFiniteError(QwqError):
    """A step of generation or training gave NaN or infinity. No token comes of it, and no weight changes."""


class ClusterError(QwqError):
    """Other machines, or the processes on them, cannot do the work: none answers, or none is left."""


class UsageError(QwqError):
    """An option or argument has an impossible value; the command line exits with 2."""


def did_you_mean(name: str, known: Iterable[str], most: int = 3) -> str:
    """Return " (did you mean A or B?)" with the known names that are nearest to a wrong one; "" if none is near.

    The name itself is none of them. Case, leading hyphens, and underscores for hyphens make no difference. The
    beginning of a name is near to it.
    """
    from difflib import SequenceMatcher  # only errors need it

    def plain(text: str) -> str:
        return text[:100].lstrip("-").replace("_", "-").casefold()

    wanted = plain(name)
    matcher = SequenceMatcher(None, autojunk=False)
    matcher.set_seq2(wanted)
    scores = {}
    for other in known:
        if other == name:
            continue
        matcher.set_seq1(plain(other))
        begins = len(wanted) > 1 and plain(other).startswith(wanted)
        scores[other] = max(matcher.ratio(), 0.9 if begins else 0)
    least = 0.6 if len(wanted) < 5 else 0.7
    best = max(scores.values(), default=0)
    near = [other for other, score in scores.items() if score >= max(least, best - 0.03)]
    near.sort(key=scores.__getitem__, reverse=True)
    return f" (did you mean {' or '.join(near[:most])}?)" if near else ""


def printable(text: str) -> str:
    """Escape what would break the one-line promise: a hostile file chooses its own names."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)[:1000]

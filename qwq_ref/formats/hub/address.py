"""Names of models in the hub: a repository, a revision of it, and one GGUF model of several in it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PART = r"\w[\w.-]*"
_REPO = rf"(?P<repo>{_PART}/{_PART})"
# Narrower than the hub's own rules: an id that passes cannot leave the cache folder in any version of the hub's code.
_MODEL = re.compile(rf"{_REPO}(?:@(?P<revision>\w[\w./-]*))?(?::(?P<type>{_PART}))?", re.ASCII)
_FILE = re.compile(rf"{_REPO}(?:@(?P<revision>{_PART}))?/(?P<file>[^@:\\]+\.gguf)", re.ASCII)
_ADDRESSES = (  # of web pages, of the hub's library, and with a slash behind the id
    re.compile(rf"(?:https?://)?(?:huggingface\.co|hf\.co)/({_PART}/{_PART}(?::{_PART})?)(?:/.*)?", re.ASCII),
    re.compile(r"hf://(?:models/)?([\w.-]+/[\w.-]+)(?:[/@].*)?", re.ASCII),
    re.compile(r"([\w.-]+/[\w.-]+)/", re.ASCII),
)


@dataclass(frozen=True)
class Address:
    """The meaning of a name of the hub.

    name      as the user gave it
    repo      owner/name
    revision  a branch, a tag or a commit; None: main
    type      of a GGUF model, such as q4_k_m, in any case; None where none is named
    file      of a GGUF model; None where none is named
    """

    name: str
    repo: str
    revision: str | None = None
    type: str | None = None
    file: str | None = None

    @property
    def base(self) -> str:
        """Return the name of the repository with its revision."""
        return self.repo + (f"@{self.revision}" if self.revision else "")

    @property
    def is_gguf(self) -> bool:
        """Return whether the name is that of a GGUF model."""
        return self.type is not None or self.file is not None


def parse(name: str) -> Address | None:
    """Return the parts of a name of the hub; None if it is none."""
    if ".." in name or not name.isprintable():
        return None
    match = _FILE.fullmatch(name) or _MODEL.fullmatch(name)
    return None if match is None else Address(name, **match.groupdict())


def meant(name: str) -> str | None:
    """Return the id in an address of the hub's pages or of its library; None for anything else."""
    match = next(filter(None, (address.fullmatch(name) for address in _ADDRESSES)), None)
    return match and match[1]

"""`--prompt-cache`: a file that keeps what is computed of a prompt, for the next call."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from ..errors import UsageError
from .screen import tell

if TYPE_CHECKING:
    from ..engine.model import Model
    from ..engine.session import Session


def add_cache_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompt-cache",
        metavar="FILE",
        help="begin with the prompt and the answer that FILE keeps, where the new prompt begins like them, and keep "
        "those of this call there: only new tokens are computed",
    )
    parser.add_argument("--prompt-cache-ro", action="store_true", help="read the file of --prompt-cache alone")


def check_cache(options: argparse.Namespace) -> None:
    """Raise UsageError for options that exclude each other, FileError for a file that cannot be written."""
    from ..formats.write import check_file

    if options.prompt_cache is None:
        if options.prompt_cache_ro:
            raise UsageError(None, "--prompt-cache-ro", "needs --prompt-cache")
        return
    if options.max_memory is not None:
        raise UsageError(None, "--prompt-cache", "does not go together with --max-memory")
    if not options.prompt_cache_ro:
        check_file(options.prompt_cache)


def open_cache(options: argparse.Namespace, model: Model) -> Session:
    """Return the session that the file keeps; an empty one without such a file. Raises SessionFileError."""
    from ..engine.session_file import load_session

    if options.prompt_cache is None or not (options.prompt_cache_ro or os.path.lexists(options.prompt_cache)):
        return model.session()
    return load_session(model, options.prompt_cache)


def keep_cache(options: argparse.Namespace, session: Session) -> None:
    """Write the session to the file, also after an interruption. Raises FileError."""
    from ..engine.session_file import save_session

    if options.prompt_cache is not None and not options.prompt_cache_ro and session.held:
        save_session(session, options.prompt_cache)
        if options.verbose:
            tell(f"prompt cache: {session.held} tokens in {options.prompt_cache}")

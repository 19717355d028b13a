"""`qwq serve`: answer the clients of OpenAI's API over HTTP."""

from __future__ import annotations

import argparse
import os
import stat
from typing import TYPE_CHECKING

from ..errors import UsageError
from .answer_options import add_context_argument, add_template_argument
from .options import (
    add_download_arguments,
    add_engine_arguments,
    add_memory_arguments,
    add_model_argument,
    add_rope_arguments,
    check_rope_options,
    engine_choices,
    set_numpy_threads,
)
from .sampling import tell_sampling
from .screen import tell
from .served import ROWS, add_served_arguments, require_served, served_name
from .text_input import open_input, whole
from .values import integer

if TYPE_CHECKING:
    from ..engine.model import Model

_KEY = "QWQ_API_KEY"
_PORT = 8080
_LEAST = 8  # characters of a key


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at; default: 127.0.0.1")
    parser.add_argument(
        "--port", type=integer(0, 65535), default=_PORT, metavar="N", help=f"default: {_PORT}; 0 takes a free one"
    )
    add_served_arguments(parser)
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help="refuse requests without this key. Other users of the machine can read a command line: prefer "
        f"{_KEY} in the environment, or --api-key-file",
    )
    parser.add_argument("--api-key-file", metavar="FILE", help="read the key from the first line of FILE")
    parser.add_argument(
        "--allow-host",
        metavar="NAME,...",
        help="names beside localhost under which clients may call the server, such as that of a container; needs a key",
    )
    add_context_argument(parser)
    add_template_argument(parser)
    add_download_arguments(parser)
    add_engine_arguments(parser)
    add_rope_arguments(parser)
    add_memory_arguments(parser, "prompts")


def run(options: argparse.Namespace) -> int:
    require_served("serve", "fastapi", "uvicorn")
    set_numpy_threads(options)
    choices = engine_choices(options)
    check_rope_options(options)
    key = _read_key(options)
    hosts = [name.strip() for name in (options.allow_host or "").split(",") if name.strip()]

    from ..serve.limits import ServerLimits
    from ..serve.reach import address, bind, check_reach, curl_line

    check_reach(options.host, key, hosts)
    sock = bind(options.host, options.port)
    name = served_name(options)

    from ..serve.engine import ServedModel
    from ..serve.server import make_server, run_server
    from ..text import start_templates

    start_templates()

    def load() -> Model:
        from .loading import load_model

        model = load_model(options, choices, options.ctx_size, options.chat_template_file, rows=ROWS)
        tell_sampling(options, model)
        return model

    limits = ServerLimits(running=options.parallel or ServerLimits.running)
    engine = ServedModel(name, load, limits, options.lenient)
    server = make_server(engine, key=key, hosts=hosts, verbose=options.verbose, tell=tell)
    url = address(sock)
    tell(f"qwq: {name} answers at {url} (Ctrl-C ends it)")
    tell(curl_line(url, name, key))
    run_server(server, engine, sock)
    return 0


def _read_key(options: argparse.Namespace) -> str | None:
    """Return the key that requests must show. Raises UsageError, which never holds it."""
    if options.api_key is not None and options.api_key_file is not None:
        raise UsageError(None, "api_key", "is given twice, with the option and in a file")
    if options.api_key_file is not None:
        with open_input(options.api_key_file) as stream:
            if stat.S_IMODE(os.fstat(stream.fileno()).st_mode) & 0o044 and os.name != "nt":
                tell(
                    f"qwq: warning: {options.api_key_file} can be read by other users: chmod 600 {options.api_key_file}"
                )
            key, where = whole(stream.read(1 << 12), options.api_key_file).split("\n")[0].strip(), "api_key_file"
    elif options.api_key is not None:
        key, where = options.api_key, "api_key"
    elif os.environ.get(_KEY):
        key, where = os.environ[_KEY], _KEY
    else:
        return None
    if len(key) < _LEAST or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(None, where, f"must be at least {_LEAST} printable ASCII characters without blanks")
    return key

"""`qwq chat`: hold a conversation on a terminal. With a pipe as standard input, each line is a message."""

from __future__ import annotations

import argparse

from ...errors import UsageError
from ..answer_options import (
    add_context_argument,
    add_draw_arguments,
    add_output_arguments,
    add_template_argument,
    add_thinking_arguments,
    decode_texts,
    settings_of,
)
from ..constrain import add_constrain_arguments, response_format
from ..options import (
    add_download_arguments,
    add_engine_arguments,
    add_memory_arguments,
    add_model_argument,
    add_prompt_arguments,
    add_rope_arguments,
    check_rope_options,
    engine_choices,
    set_numpy_threads,
)
from ..prompt import read_prompt
from ..prompt_cache import add_cache_arguments, check_cache, keep_cache, open_cache
from ..sampling import tell_sampling
from ..sampling_options import sampling_of
from ..screen import tell
from ..streams import require_output
from ..text_input import HYPHEN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_prompt_arguments(parser, "the first message")
    add_model_argument(parser)
    add_cache_arguments(parser)
    add_output_arguments(parser)
    add_context_argument(parser)
    add_template_argument(parser)
    parser.add_argument("--no-history", action="store_true", help="keep no history of messages on the disk")
    add_download_arguments(parser)
    add_draw_arguments(parser)
    add_thinking_arguments(parser, ["show", "hide"], "show the reasoning (default), or fold it to its length")
    add_constrain_arguments(parser)
    add_engine_arguments(parser)
    add_rope_arguments(parser)
    add_memory_arguments(parser)
    parser.epilog = "/help lists the commands within a conversation: see docs/chat.md."


def run(options: argparse.Namespace) -> int:
    set_numpy_threads(options)
    require_output()
    choices = engine_choices(options)
    check_rope_options(options)
    decode_texts(options)
    if HYPHEN in (options.positional, options.file):
        raise UsageError(None, "prompt", "comes from standard input anyway, one message a line")
    given = (options.positional, options.prompt, options.file)
    first = read_prompt(options) if any(each is not None for each in given) else None

    check_cache(options)

    from ...text import start_templates

    start_templates()

    from ...engine.scheduler import Scheduler
    from ...engine.settings import Settings
    from ..ending import ctrl_c
    from ..loading import load_model
    from .conversation import Dialogue
    from .keyboard import open_keyboard
    from .talk import Talk

    options.response_format = response_format(options)
    asked = settings_of(options)
    Settings.checked(**asked)
    model = load_model(options, choices, options.ctx_size, options.chat_template_file, chat=True)
    tell_sampling(options, model, **sampling_of(options))
    keyboard = open_keyboard(history=not options.no_history)
    # Memory for one conversation was counted with the model; what is free beside it may keep earlier ones.
    scheduler = Scheduler(model, running=1, waiting=1, memory=None if options.max_memory is None else 0)
    talk = None
    try:
        kept = open_cache(options, model)
        scheduler.call(lambda: scheduler.keep(kept))
        talk = Talk(
            options.model,
            model,
            scheduler,
            Dialogue(system=asked.pop("system")),
            asked,
            keyboard,
            options.think == "show",
            caches=options.max_memory is None,
        )
        if keyboard.interactive:
            tell(
                f"{options.model}, context {model.context:,} tokens; /help lists the commands, Ctrl-D leaves", dim=True
            )
        with ctrl_c(), keyboard.open():
            talk.run(first)
    finally:
        if talk is not None and options.prompt_cache is not None:
            keep_cache(options, talk.computed())
        scheduler.close()
    return 0

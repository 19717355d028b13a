"""`qwq generate`: answer one prompt as a stream. The answer goes to stdout, the reasoning to stderr."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import QwqError, UsageError
from .answer_options import (
    add_context_argument,
    add_draw_arguments,
    add_output_arguments,
    add_template_argument,
    add_thinking_arguments,
    decode_texts,
    settings_of,
)
from .cluster import add_ray_argument, add_stages_argument, check_ray, pipeline_of
from .constrain import add_constrain_arguments, response_format
from .energy import Account, Parts, accounted, add_watts_argument
from .hints import print_hint
from .many import PARALLEL, answer_all, read_prompts
from .options import (
    add_download_arguments,
    add_engine_arguments,
    add_memory_arguments,
    add_model_argument,
    add_prompt_arguments,
    add_rope_arguments,
    check_rope_options,
    engine_choices,
    refuse,
    set_numpy_threads,
)
from .progress import Bar, shown
from .prompt import read_prompt
from .prompt_cache import add_cache_arguments, check_cache, keep_cache, open_cache
from .report import rate, report
from .sampling import tell_sampling
from .sampling_options import sampling_of
from .screen import tell
from .spellings import NEUTRAL
from .streams import argument_text, print_json, require_output
from .values import integer
from .writer import Writer

if TYPE_CHECKING:
    from ..engine.generation import Generation
    from ..engine.model import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_prompt_arguments(parser)
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="answer the prompts in FILE, one a line, side by side, and print a line of JSON for each, in their order. "
        "In a .jsonl file, a line is a JSON string, or an object with a prompt",
    )
    add_model_argument(parser)
    add_cache_arguments(parser)
    add_output_arguments(parser)
    add_context_argument(parser)
    parser.add_argument("--raw", action="store_true", help="continue the prompt as plain text, without chat template")
    parser.add_argument(
        "--suffix",
        metavar="TEXT",
        help="fill the gap between the prompt and TEXT, as editors of code ask for it; both stay plain, as with --raw",
    )
    add_template_argument(parser)
    add_download_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end, and no stream of text")
    parser.add_argument(
        "--logprobs",
        type=integer(0, 20),
        metavar="N",
        help="add to the JSON the log-probability of each output token, and those of the N likeliest",
    )
    add_draw_arguments(parser)
    shown = "show the reasoning on stderr (default), hide it, or print only the reasoning, on stdout"
    add_thinking_arguments(parser, ["show", "hide", "only"], shown)
    add_constrain_arguments(parser)
    add_engine_arguments(parser)
    add_rope_arguments(parser)
    add_memory_arguments(parser, "prompts of --prompts")
    add_watts_argument(parser)
    add_stages_argument(add_ray_argument(parser, "share out the layers of the model over machines"))
    parser.epilog = (
        "Names of llama.cpp, mlx-lm and transformers work too, such as --temperature and --n-predict: see "
        "docs/command-line.md."
    )
    parser.add_argument(*NEUTRAL, dest="neutral", action="store_true", help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    set_numpy_threads(options)
    require_output()
    choices = engine_choices(options)
    check_rope_options(options)
    check_ray(options)
    if options.raw:
        refuse(options, ["chat_template_file"], "has no effect with --raw")
    if options.suffix is not None:
        options.suffix = argument_text(options.suffix, "suffix")
        refuse(options, ["system", "chat_template_file", "prompts"], "has no effect with --suffix")
        refuse(options, ["json_schema", "grammar", "grammar_file"], "does not go together with --suffix")
        options.raw = True
    decode_texts(options)
    if options.prompts is None:
        refuse(options, ["parallel"], "needs --prompts")
        if not options.json:
            refuse(options, ["logprobs"], "needs --json")
        prompts = {1: read_prompt(options)}
    else:
        refuse(options, ["prompt", "file", "think", "prompt_cache"], "has no effect with --prompts")
        if options.positional is not None:
            raise UsageError(None, "prompt", "has no effect with --prompts")
        prompts = read_prompts(options.prompts)
        options.parallel = min(len(prompts), options.parallel or PARALLEL)

    check_cache(options)

    from ..text import start_templates

    if not options.raw:
        start_templates()

    from ..engine.settings import Settings

    options.response_format = response_format(options)
    Settings.checked(**settings_of(options))
    with _loaded(options, choices) as model:
        return _answers(options, model, prompts)


@contextlib.contextmanager
def _loaded(options: argparse.Namespace, choices: dict[str, Any]) -> Iterator[Model]:
    from .loading import load_model

    if options.ray is None:
        yield load_model(options, choices, options.ctx_size, options.chat_template_file, chat=not options.raw)
        return
    with pipeline_of(options, options.chat_template_file) as model:
        yield model


def _answers(options: argparse.Namespace, model: Model, prompts: dict[int, str]) -> int:
    if options.verbose:
        tell(f"chat template: {'yes' if model.template else 'no'}")
        names = {identity: token for token, identity in model.tokenizer.added.items()}
        ends = [f"{names.get(identity, '')} {identity} ({of})".lstrip() for identity, of in model.end_tokens.items()]
        tell(f"end tokens: {', '.join(ends) or 'none'}")
    tell_sampling(options, model, **sampling_of(options))
    if options.prompts is not None:
        return answer_all(options, model, prompts, settings_of(options))
    return _answer(options, model, prompts[1])


def _answer(options: argparse.Namespace, model: Model, prompt: str) -> int:
    with accounted(options, options.verbose or options.json) as account:
        return _metered_answer(options, model, prompt, account)


def _metered_answer(options: argparse.Namespace, model: Model, prompt: str, account: Account) -> int:
    from ..engine.session import alone, common_prefix

    session, energy = open_cache(options, model), Parts(account)
    ready = model.prepare(prompt, progress=lambda count: bar(count), **settings_of(options))
    generation = ready.generation(energy.watch(alone(ready.work(session), model.backend, model.path)))
    run, texts, writer = generation.run, generation.texts, _writer(options)
    bar = Bar("prompt", len(run.prompt) - common_prefix(session.ids, run.prompt[:-1]), "tokens")
    stopped: KeyboardInterrupt | QwqError | None = None
    try:
        with shown(bar, at_least=512):
            for piece in generation:
                writer.write(piece.text, piece.kind)
    except KeyboardInterrupt as stop:
        done = f"{len(run.output)} output tokens were generated"
        stop.add_note(done if run.output else f"{bar.done:.0f} of {bar.total} prompt tokens were computed")
        stopped = stop
    except QwqError as problem:
        stopped = problem
    writer.close()
    energy.ended(len(run.prompt) - run.cached, len(run.output))
    if options.json:
        ended = {KeyboardInterrupt: "interrupt", QwqError: "error"}
        reason = next((name for kind, name in ended.items() if isinstance(stopped, kind)), run.finish_reason)
        print_json({"model": options.model} | report(model, generation, reason) | {"energy": energy.facts()})
    _summarise(options, generation, stopped is not None)
    if account.asked and not options.json:
        tell(energy.line())
    keep_cache(options, session)
    if stopped is not None:
        raise stopped
    if not options.json:
        print_hint(model.path, texts["answer"])
    return 0


def _writer(options: argparse.Namespace) -> Writer:
    """Return what prints the answer and its reasoning; neither with --json."""
    shown = {"show": ("thinking", "answer"), "hide": ("answer",), "only": ("thinking",)}[options.think]
    return Writer(() if options.json else shown, sys.stdout if options.think == "only" else sys.stderr)


def _summarise(options: argparse.Namespace, generation: Generation, stopped: bool) -> None:
    """Print on stderr why there is no answer or no whole one, and then the speed."""
    from ..host.memory import peak_bytes

    run = generation.run
    if generation.ending is not None and not stopped:
        tell(f"qwq: {generation.ending}")
    if not options.json:
        parts = {
            "prompt": (len(run.prompt) - run.cached, run.prompt_seconds),
            "output": (len(run.output), run.output_seconds),
        }
        speeds = [
            f"{name}: {count} tokens, {rate(count, seconds):.1f} tokens/s"
            for name, (count, seconds) in parts.items()
            if count and seconds > 0
        ]
        if run.cached:
            speeds.insert(0, f"cached: {run.cached} tokens")
        rest = [f"peak memory: {peak_bytes() / 2**20:.0f} MiB", f"seed: {run.seed}"]
        tell("; ".join([*speeds, *rest]))

"""`qwq generate`: answer one prompt as a stream. The answer goes to stdout, the reasoning to stderr."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ..errors import QwqError, UsageError
from .constrain import add_constrain_arguments, response_format
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
from .sampling_options import add_sampling_arguments, sampling_of
from .screen import DIM, PLAIN, styles, tell
from .spellings import NEUTRAL
from .streams import argument_text, print_json, require_output
from .values import context_size, count, integer, one_of, seed, unless

if TYPE_CHECKING:
    from ..engine.generation import Generation
    from ..engine.model import Model

_EFFORTS = ("none", "minimal", "low", "medium", "high")


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
    parser.add_argument("--system", metavar="TEXT", help="a system prompt")
    parser.add_argument(
        "-n",
        "--max-tokens",
        type=unless("-1", count),
        metavar="N",
        help="largest number of output tokens, reasoning included; default: until the model ends its answer",
    )
    parser.add_argument(
        "-r",
        "--stop",
        action="append",
        metavar="TEXT",
        help="end the answer where it contains TEXT, and leave TEXT out; reasoning may contain it; may be repeated",
    )
    parser.add_argument(
        "--loop-guard",
        type=lambda text: 0 if text == "off" else integer(2)(text),
        metavar="N",
        help="end an output whose last tokens came N times in a row; off: let it go on; default: 8",
    )
    parser.add_argument(
        "-c",
        "--ctx-size",
        type=unless("0", context_size),
        metavar="N",
        help="room for prompt and output, in tokens, such as 8192 or 8K; default: the model's whole context, or the "
        "largest half, quarter or smaller part that fits in memory",
    )
    parser.add_argument("--raw", action="store_true", help="continue the prompt as plain text, without chat template")
    parser.add_argument(
        "--suffix",
        metavar="TEXT",
        help="fill the gap between the prompt and TEXT, as editors of code ask for it; both stay plain, as with --raw",
    )
    parser.add_argument("--chat-template-file", metavar="FILE", help="a Jinja template instead of the model's own")
    add_download_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end, and no stream of text")
    parser.add_argument(
        "--logprobs",
        type=integer(0, 20),
        metavar="N",
        help="add to the JSON the log-probability of each output token, and those of the N likeliest",
    )
    sampling = add_sampling_arguments(parser)
    sampling.add_argument(
        "-s",
        "--seed",
        type=unless("-1", seed),
        metavar="N",
        help="the same seed gives the same answer; default: a random seed",
    )
    thinking = parser.add_argument_group("reasoning")
    thinking.add_argument(
        "--think",
        **one_of(["show", "hide", "only"]),
        default="show",
        help="show the reasoning on stderr (default), hide it, or print only the reasoning, on stdout",
    )
    thinking.add_argument(
        "--think-budget",
        type=unless("-1", integer(0)),
        metavar="N",
        help="end the reasoning after N tokens; 0: answer without reasoning; default: no limit",
    )
    thinking.add_argument(
        "--reasoning-effort",
        **one_of(_EFFORTS),
        help="a budget by name: none and minimal 0 tokens, low 1024, medium 4096, but at most a quarter or a half of "
        "the room for the output; high: no limit",
    )
    add_constrain_arguments(parser)
    add_engine_arguments(parser)
    add_rope_arguments(parser)
    add_memory_arguments(parser, "prompts of --prompts")
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
    if options.raw:
        refuse(options, ["chat_template_file"], "has no effect with --raw")
    if options.suffix is not None:
        options.suffix = argument_text(options.suffix, "suffix")
        refuse(options, ["system", "chat_template_file", "prompts"], "has no effect with --suffix")
        refuse(options, ["json_schema", "grammar", "grammar_file"], "does not go together with --suffix")
        options.raw = True
    if options.system is not None:
        options.system = argument_text(options.system, "system")
    options.stop = options.stop and [argument_text(text, "stop") for text in options.stop]
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
    from .loading import load_model

    options.response_format = response_format(options)
    Settings.checked(**_settings(options))
    model = load_model(options, choices, options.ctx_size, options.chat_template_file, chat=not options.raw)
    if options.verbose:
        tell(f"chat template: {'yes' if model.template else 'no'}")
        names = {identity: token for token, identity in model.tokenizer.added.items()}
        ends = [f"{names.get(identity, '')} {identity} ({of})".lstrip() for identity, of in model.end_tokens.items()]
        tell(f"end tokens: {', '.join(ends) or 'none'}")
    tell_sampling(options, model, **sampling_of(options))
    if options.prompts is not None:
        return answer_all(options, model, prompts, _settings(options))
    return _answer(options, model, prompts[1])


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of `Model.generate` that were asked for."""
    names = (
        "system",
        "raw",
        "suffix",
        "response_format",
        "max_tokens",
        "seed",
        "think_budget",
        "reasoning_effort",
        "stop",
        "logprobs",
        "loop_guard",
    )
    return {name: getattr(options, name) for name in names} | sampling_of(options)


def _answer(options: argparse.Namespace, model: Model, prompt: str) -> int:
    from ..engine.session import common_prefix

    session = open_cache(options, model)
    generation = model.generate(prompt, session=session, progress=lambda count: bar(count), **_settings(options))
    run, texts, writer = generation.run, generation.texts, _Writer(options)
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
    if options.json:
        ended = {KeyboardInterrupt: "interrupt", QwqError: "error"}
        reason = next((name for kind, name in ended.items() if isinstance(stopped, kind)), run.finish_reason)
        print_json({"model": options.model} | report(model, generation, reason))
    _summarise(options, generation, stopped is not None)
    keep_cache(options, session)
    if stopped is not None:
        raise stopped
    if not options.json:
        print_hint(model.path, texts["answer"])
    return 0


class _Writer:
    """The answer on stdout and the reasoning on stderr, dimmed on a terminal; neither with --json."""

    def __init__(self, options: argparse.Namespace) -> None:
        shown = {"show": ("thinking", "answer"), "hide": ("answer",), "only": ("thinking",)}[options.think]
        self.shown = () if options.json else shown
        self.thinking_to = sys.stdout if options.think == "only" else sys.stderr
        self.dim = styles(self.thinking_to)
        self.last = ""
        self.kind: str | None = None

    def write(self, text: str, kind: str) -> None:
        if kind not in self.shown or not text:
            return
        if self.kind not in (None, kind):  # a model may go back to its reasoning
            self.close()
            self.thinking_to.write("\n")
        stream = self.thinking_to if kind == "thinking" else sys.stdout
        if self.dim and kind == "thinking":
            text = f"{DIM}{text}{PLAIN}"
        stream.write(text)
        stream.flush()
        self.last, self.kind = text.removesuffix(PLAIN), kind

    def close(self) -> None:
        """End the last line, so that whatever comes next starts on its own."""
        if self.last and not self.last.endswith("\n"):
            stream = self.thinking_to if self.kind == "thinking" else sys.stdout
            stream.write("\n")
            stream.flush()
        self.last = ""


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

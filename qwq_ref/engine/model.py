"""A model to ask: a backend, a tokenizer, a chat template and sampling defaults of one checkpoint."""

from __future__ import annotations

import functools
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..formats import GenerationConfig
from ..spec import Sampling
from ..spec.ops import Array
from ..text import ThinkingSplitter, Tokenizer, check_fits, fim_ends, fim_ids, prompt_is_thinking
from ..text.template import ChatTemplate
from . import backends
from .ahead import no_template
from .backends import Backend, Progress
from .decode.plain import Choose, Run, decoding
from .decode.together import together
from .ends import end_tokens
from .generation import Ending, Generation, Transcript, budget_of
from .grammar import Constraint, Vocabulary, grammar_of
from .logprobs import Recorder
from .sampler import Sampler, check_bias, own_sampling
from .session import Asking, Session, alone
from .settings import Settings
from .tokens import no_tokenizer
from .values import at_least_one, whole_number


class Model:
    """Made by `qwq_ref.load`.

    path                  the folder or file that it was loaded from
    config, defaults      config.json and generation_config.json
    backend               computes logits: see `engine.backends`
    tokenizer, template   text <-> ids; for a model without them, `tokenizer` raises TokenizerError, `template` is None
    context               positions that fit, prompt and output together
    parallel              sequences that memory was counted for
    """

    def __init__(
        self,
        path: Path,
        backend: Backend,
        tokenizer: Tokenizer | None,
        template: ChatTemplate | None,
        defaults: GenerationConfig,
        parallel: int = 1,
    ) -> None:
        self.path = path
        self.backend = backend
        self.config = backend.config
        self.context = backend.context
        self.parallel = parallel
        self._tokenizer = tokenizer
        self.template = template
        self.defaults = defaults
        self.told = False  # whether a warning of `sampling` was given, or is not needed

    @functools.cached_property
    def end_tokens(self) -> dict[int, str]:
        """The ids that end an answer, each with the places that say so: see `ends.end_tokens`."""
        return end_tokens(self.defaults, self._tokenizer, self.template)

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise no_tokenizer(self.path)
        return self._tokenizer

    def logits(self, token_ids: Sequence[int]) -> Array:
        """token_ids [T] -> float32 [T, V]: logits of the token after each.

        Raises ValueError for ids that the model does not have, and NonFiniteError for logits with NaN or infinity.
        """
        return backends.logits(self.backend, token_ids, self.path)

    def session(self) -> Session:
        """Return an empty session: token ids, and logits of the next one."""
        return Session(self.backend, self.path)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary as grammars need it. Raises UsageError without llguidance."""
        return Vocabulary(self.tokenizer, min(self.tokenizer.size, self.config.V), [*self.end_tokens])

    def prompt_ids(
        self,
        prompt: str | list[dict[str, Any]] | list[int],
        system: str | None = None,
        raw: bool = False,
        tools: list[dict[str, Any]] | None = None,
        suffix: str | None = None,
        most: int | None = None,
    ) -> list[int]:
        """A question, or a conversation of messages with `role` and `content` -> the ids of a prompt.

        raw     encode the text as it is, without the chat template; behind BOS, if the model's texts begin with it. In
                place of the text, its ids may be given, which stay as they are
        tools   functions that the template offers to the model, as JSON schemas
        suffix  the text behind a gap, before which the prompt stands: the model fills it. Implies raw
        most    UsageError for a prompt that has surely more ids: its length shows that before its text is cut into ids

        Raises TemplateError, TokenizerError, UsageError.
        """
        if raw and isinstance(prompt, list) and prompt and suffix is system is None and not tools:
            return self._known_ids(prompt)
        if raw or suffix is not None:
            if not isinstance(prompt, str) or system is not None or tools:
                raise UsageError(None, "raw", "takes a plain text, with no messages, no system prompt and no tools")
            if most is not None:
                check_fits(sum(self.tokenizer.least(text) for text in (prompt, suffix or "")), most, least=True)
            if suffix is not None:
                return fim_ids(self.tokenizer, prompt, suffix)
            return self.tokenizer.begin(self.tokenizer.encode(prompt))
        if self.template is None:
            raise no_template(self.path)
        messages: list[Any] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
        return self.template.encode(self.tokenizer, messages, tools or None, most=most)

    def _known_ids(self, ids: list[Any]) -> list[int]:
        """Return ids that the model has. Raises UsageError for others."""
        for identity in ids:
            whole_number("prompt", identity)
            if not 0 <= identity < self.config.V:
                raise UsageError(None, "prompt", f"must hold ids below {self.config.V}, got {identity}")
        return [int(identity) for identity in ids]

    def sampling(self, **changes: Any) -> Sampling:
        """The checkpoint's own sampling with `changes`; None keeps a value. Raises UsageError.

        Warns once without a temperature, if the checkpoint's files do not say how to sample: see `surprises`.
        """
        if not self.told and changes.get("temperature") is None:
            self.told = True
            for line in self.defaults.surprises("temperature=X"):
                warnings.warn_explicit(line, UserWarning, "qwq_ref", 1, "qwq")
        return own_sampling(self.defaults.sampling(), **changes)

    def generate(
        self,
        prompt: str | list[dict[str, Any]],
        *,
        session: Session | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Generation:
        """Answer a prompt -> an iterator of `Piece`; its `run` tells how far it is.

        session   continues: tokens that it has in common with the prompt are not computed again. None: an empty one
        progress  called with the number of prompt tokens computed since its last call, fractions included
        settings  fields of `Settings`, such as max_tokens and seed, and fields of `Sampling`, such as temperature:
                  without them, the checkpoint's sampling counts

        Raises UsageError, before any computation, for a prompt that does not fit together with max_tokens. The iterator
        raises NonFiniteError for a step whose logits hold NaN or infinity.
        """
        ready = self.prepare(prompt, progress=progress, **settings)
        session = self.session() if session is None else session
        return ready.generation(alone(ready.work(session), self.backend, self.path))

    def generate_all(
        self,
        prompts: Iterable[str | list[dict[str, Any]]],
        *,
        parallel: int | None = None,
        **settings: Any,
    ) -> Iterator[tuple[int, Generation]]:
        """Answer prompts side by side -> pairs of a prompt's number, from 0, and its whole answer, as each ends.

        parallel  prompts that share each pass over the weights, each with a KV cache of its own; None: as many as the
                  model was loaded for
        settings  those of `generate`, for each prompt. A prompt gets the answer that it gets alone

        Raises as `generate`, before any computation, for a prompt that does not fit, with its number.
        """
        most = self.parallel if parallel is None else parallel
        at_least_one("parallel", most)
        if isinstance(prompts, str | bytes):  # its characters would be prompts
            raise UsageError(None, "prompts", "must be a list of prompts, not a text")
        ready, how = [], Settings.checked(**settings)
        for number, prompt in enumerate(prompts):
            try:
                ready.append(self.prepare(prompt, how))
            except UsageError as problem:
                if problem.field != "prompt":
                    raise
                raise UsageError(problem.file, f"prompt {number}", problem.problem) from None
        return self._answers(ready, most)

    def _answers(self, ready: Sequence[PreparedPrompt], most: int) -> Iterator[tuple[int, Generation]]:
        answers: dict[int, Generation] = {}

        def works() -> Iterator[Asking[int]]:
            for number, each in enumerate(ready):
                answers[number] = each.generation()
                yield each.work(self.session())

        for number, identity in together(works(), self.backend, most, self.path):
            if identity is not None:
                answers[number].take(identity)
                continue
            answers[number].end()
            yield number, answers.pop(number)

    def prepare(
        self,
        prompt: str | list[dict[str, Any]] | list[int],
        settings: Settings | None = None,
        *,
        progress: Progress | None = None,
        **asked: Any,
    ) -> PreparedPrompt:
        """Check a prompt and its settings against this model. Nothing is computed.

        settings  None: those that are `asked` for by name, as for `generate`
        progress  as for `generate`

        Raises UsageError.
        """
        if settings is None:
            settings, asked = Settings.checked(**asked), {}
        if asked:
            raise TypeError(f"settings are given, and {', '.join(asked)}, too")
        how = self.sampling(**settings.sampling)
        grammar = grammar_of(
            settings.response_format, settings.tools, settings.tool_choice, settings.parallel_tool_calls
        )
        tools = None if settings.tool_choice == "none" else settings.tools
        ids = self.prompt_ids(prompt, settings.system, settings.raw, tools, settings.suffix, self.context)
        thinking = prompt_is_thinking(ids, self.tokenizer)
        budget = budget_of(self.tokenizer, settings, min(self.context - len(ids), settings.max_tokens or self.context))
        state = ThinkingSplitter(self.tokenizer, thinking and budget.tokens != 0, opened=thinking)
        if thinking and not state.thinking:
            ids = ids + budget.closing
        if settings.begun:
            if state.thinking:
                problem = "is a part of the answer, and this prompt opens the reasoning: a think_budget of 0 closes it"
                raise UsageError(None, "begun", problem)
            ids = ids + self.tokenizer.encode(settings.begun)
        if not ids:
            raise UsageError(None, "prompt", "is empty")
        wanted = len(ids) + (settings.max_tokens or 1)
        if wanted > self.context:
            output = f"{settings.max_tokens or 'one'} more do" if (settings.max_tokens or 1) > 1 else "one more does"
            raise UsageError(
                None, "prompt", f"of {len(ids)} tokens and {output} not fit in the context of {self.context}"
            )
        vocabulary = min(self.tokenizer.size, self.config.V)
        check_bias(how.logit_bias, vocabulary, self.tokenizer.holes)
        thinks = budget.tokens != 0
        constraint = None if grammar is None else Constraint(grammar, self.vocabulary, copy(state), thinks)
        run = Run(ids, secrets.randbits(32) if settings.seed is None else settings.seed)
        transcript = Transcript(self.tokenizer, state, settings.stop)
        choose: Choose = Sampler(how, run.seed)
        if settings.logprobs is not None:
            run.logprobs = []
            choose = Recorder(choose, run.logprobs, settings.logprobs, self.end_tokens)
        limits = {
            "end_ids": [*self.end_tokens, *(() if settings.suffix is None else fim_ends(self.tokenizer))],
            "vocabulary": vocabulary,
            "context": self.context,
            "max_tokens": settings.max_tokens,
            "never": self.tokenizer.holes,
            "constrain": None if constraint is None else constraint.mask,
            "ended": Ending(run, transcript.stopping, settings.loop_guard),
            "intervene": lambda output: budget.due(state),
            "progress": progress,
        }
        return PreparedPrompt(run, choose, transcript, limits)


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt that was checked, with the settings of its answer: it can be computed.

    run         the state of the answer to come
    choose      chooses its tokens
    transcript  makes text of them
    limits      what `decode.plain.decoding` takes beside a session, the run and `choose`
    """

    run: Run
    choose: Choose
    transcript: Transcript
    limits: Mapping[str, Any]

    def work(self, session: Session, progress: Progress | None = None) -> Asking[int]:
        """Return the work that adds the answer to a session: see `decode.plain.decoding`."""
        limits = self.limits if progress is None else {**self.limits, "progress": progress}
        return decoding(session, self.run, self.choose, **limits)

    def generation(self, tokens: Iterable[int] = ()) -> Generation:
        """Return the answer, of which `tokens` are the ids. Without them, whoever runs the work adds them."""
        return Generation(self.run, tokens, self.transcript)

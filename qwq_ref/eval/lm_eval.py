"""A model of this project for lm-evaluation-harness (extra `lm-eval`): its tasks ask, and this class answers.

    import lm_eval, qwq_ref
    from qwq_ref.eval.lm_eval import QwqLM

    lm_eval.simple_evaluate(model=QwqLM(qwq_ref.load("qwq-nano")), tasks=["arc_easy"])

Log-probabilities are the floats of `Model.logits`, and of `/v1/completions` with `echo` and `logprobs`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..engine.logprobs import TokenLogprob
from ..engine.model import Model
from ..engine.scoring import ROWS, score
from ..errors import UsageError
from .suites.answers import RUNNING, answered

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
except ImportError as problem:
    raise UsageError(None, "lm-eval", f"is not installed: pip install 'qwq_ref[lm-eval]' ({problem})") from None

_MAX_TOKENS = 256  # of an answer, where the task names no number


class QwqLM(TemplateLM):  # type: ignore[misc, unused-ignore]
    """A model that lm-eval asks.

    model    made by `qwq_ref.load`
    running  answers that share a pass over the weights
    """

    def __init__(self, model: Model, running: int = RUNNING) -> None:
        super().__init__()
        self.model, self.running = model, running

    @property
    def eot_token_id(self) -> int:
        """The id that stands before a text without context."""
        tokenizer = self.model.tokenizer
        return next(iter(self.model.end_tokens)) if tokenizer.bos is None else tokenizer.bos

    @property
    def max_length(self) -> int:
        return self.model.context

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text, behind BOS if the model's texts begin with it."""
        tokenizer = self.model.tokenizer
        ids = tokenizer.encode(string)
        return ids if add_special_tokens is False else tokenizer.begin(ids)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Return for each context and continuation the sum of log-probabilities, and whether all are the likeliest.

        A text that is longer than the model's context loses its beginning.
        """
        return [self._scored(context, rest) for _, context, rest in requests]

    def _scored(self, context: list[int], rest: list[int]) -> tuple[float, bool]:
        ids = (context + rest)[-(self.max_length + 1) :]
        sequence = self.model.backend.sequence()
        noted: list[TokenLogprob] = []
        for start in range(0, len(ids) - 1, ROWS):
            part = ids[: len(ids) - 1][start : start + ROWS]
            noted += score(self.model, part, ids[start + 1 :], sequence, 1)
        chosen = noted[len(noted) - len(rest) :]
        values = [-math.inf if one.logprob is None else one.logprob for one in chosen]
        return sum(values), all(bool(one.top) and one.top[0][1] == one.logprob for one in chosen)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text, in windows as long as the model's context."""
        found = []
        for request in requests:
            (text,) = request.args
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            found.append(sum(self._scored(*utils.make_disjoint_window(window))[0] for window in windows))
        return found

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Return the text that follows each context, until a text of `until` or a limit."""
        prepared = [(number, self._prepared(*request.args)) for number, request in enumerate(requests)]
        texts = [""] * len(prepared)
        for number, job in answered(self.model, prepared, self.running):
            texts[number] = "".join(job.generation.texts.values())
        return texts

    def _prepared(self, context: str, how: dict[str, Any]) -> Any:
        how = dict(how)
        until, most = how.pop("until", None) or [], int(how.pop("max_gen_toks", _MAX_TOKENS))
        sampled = bool(how.pop("do_sample", float(how.get("temperature") or 0) > 0))
        temperature = float(how.pop("temperature", None) or 0) if sampled else 0.0
        known = {name: how[name] for name in ("top_p", "top_k", "min_p", "seed", "repetition_penalty") if name in how}
        ids = self.tok_encode(context)[-(self.max_length - most) :]
        stop = [until] if isinstance(until, str) else [*until]
        return self.model.prepare(ids, raw=True, stop=stop, max_tokens=most, temperature=temperature, **known)

"""The facts of one answer, for programs that read JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..engine.generation import Generation
    from ..engine.logprobs import TokenLogprob
    from ..engine.model import Model


def report(model: Model, generation: Generation, reason: str | None) -> dict[str, object]:
    from ..host.memory import peak_bytes

    run = generation.run
    noted = {} if run.logprobs is None else {"logprobs": [_noted(model, entry) for entry in run.logprobs]}
    return {
        "path": str(model.path),
        "answer": generation.texts["answer"],
        "thinking": generation.texts["thinking"],
        "finish_reason": reason,
        "ending": reason if reason in ("error", "interrupt") else generation.ending,
        "stop_string": run.stop_string,
        "seed": run.seed,
        "prompt_tokens": len(run.prompt),
        "cached_tokens": run.cached,
        "output_tokens": len(run.output),
        "thinking_tokens": generation.thinking_tokens,
        "prompt_tok_s": rate(len(run.prompt) - run.cached, run.prompt_seconds),
        "output_tok_s": rate(len(run.output), run.output_seconds),
        "peak_memory_bytes": peak_bytes(),
        **noted,
    }


def _noted(model: Model, entry: TokenLogprob) -> dict[str, object]:
    """Return what was noted of a token, with the texts of the ids. A part of a character has the text U+FFFD."""

    def named(identity: int, logprob: float | None) -> dict[str, object]:
        text = model.tokenizer.decode([identity], skip_special=False)
        return {"id": identity, "token": text, "logprob": logprob}

    return named(entry.id, entry.logprob) | {"top": [named(*each) for each in entry.top]}


def rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3) if seconds > 0 else 0.0

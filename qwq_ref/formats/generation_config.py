"""generation_config.json: the sampling parameters that a model's authors recommend, and its end tokens."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from ..config import Config, FieldReader
from ..errors import ConfigError
from ..files import StrPath, read_json
from .names import CONFIG, GENERATION_CONFIG

_BYTES = 1 << 20


@dataclass(frozen=True)
class GenerationConfig:
    """Sampling parameters with Hugging Face's names and defaults. Any token of `eos_token_ids` ends a text.

    model_eos_token_ids  those of config.json, which may be others
    """

    eos_token_ids: tuple[int, ...] = ()
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50  # 0: no limit
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    model_eos_token_ids: tuple[int, ...] = field(default=(), compare=False)
    path: Path | None = field(default=None, compare=False)  # the file that was read; None: there is none

    @property
    def effective_temperature(self) -> float:
        """Return the temperature; 0, which means the most likely token, without `do_sample`."""
        return self.temperature if self.do_sample else 0.0

    def sampling(self) -> dict[str, float]:
        """Return the parameters, by the names of `spec.Sampling`."""
        return {
            "temperature": self.effective_temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
        }

    @classmethod
    def from_folder(cls, folder: StrPath, config: Config) -> GenerationConfig:
        """Read generation_config.json, if there is one. Without eos_token_id, that of config.json counts.

        Unknown keys are ignored, and null means absent, as in config.json. Temperature 0 is accepted and means
        greedy sampling; Hugging Face refuses it with do_sample. Raises ConfigError.
        """
        path, fallback = Path(folder, GENERATION_CONFIG), Path(folder, CONFIG)
        read = FieldReader(read_json(path, _BYTES, ConfigError) if os.path.lexists(path) else {}, path)
        of_model = _eos(FieldReader(read_json(fallback, _BYTES, ConfigError), fallback), config.V)
        is_there = os.path.lexists(path)
        read = FieldReader(read_json(path, _BYTES, ConfigError) if is_there else {}, path)
        has_eos = read.values.get("eos_token_id") is not None
        top_p = read.number("top_p", 1.0, 0.0, 1.0)
        if top_p == 0:
            raise read.error("top_p", "must be above 0")
        return cls(
            eos_token_ids=_eos(read, config.V) if has_eos else of_model,
            model_eos_token_ids=of_model,
            do_sample=read.boolean("do_sample", default=False),
            temperature=read.number("temperature", 1.0, 0.0, 1e30),
            top_k=read.integer("top_k", default=50, smallest=0),
            top_p=top_p,
            min_p=read.number("min_p", 0.0, 0.0, 1.0),
            repetition_penalty=read.positive("repetition_penalty", default=1.0),
            path=path if is_there else None,
        )


def _eos(read: FieldReader, vocabulary: int) -> tuple[int, ...]:
    """Read `eos_token_id`: absent, one id, or a list of ids."""
    value = read.values.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int and 0 <= token < vocabulary for token in ids):
        raise read.error("eos_token_id", f"must be a token id below vocab_size {vocabulary}, or a list of them")
    return tuple(ids)

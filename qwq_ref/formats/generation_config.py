"""generation_config.json: the sampling parameters that a model's authors recommend, and its end tokens."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import Config, FieldReader
from ..errors import ConfigError, did_you_mean, printable
from ..files import StrPath, read_json
from .names import CONFIG, GENERATION_CONFIG

_BYTES = 1 << 20
_MOST_NAMED = 5  # misspelt keys
_MOST_KEYS = 200  # that are compared with known ones: three times as many as transformers has
_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}  # without effect unless do_sample is true
_READ = (*_SAMPLING, "do_sample", "repetition_penalty", "eos_token_id")
_ALIKE = (  # keys of transformers whose names are near to those
    *("top_h", "typical_p", "bos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id"),
    *("forced_eos_token_id", "encoder_repetition_penalty", "diversity_penalty", "length_penalty"),
    "exponential_decay_length_penalty",
)

# A snapshot's folder -> why its generation_config.json is not there, where that is not known of the model itself.
not_fetched: dict[Path, str] = {}


@dataclass(frozen=True)
class GenerationConfig:
    """Sampling parameters with Hugging Face's names and defaults. Any token of `eos_token_ids` ends a text.

    model_eos_token_ids  those of config.json, which may be others
    path                 the file that was read; None: there is none, and `missing` says why
    idle                 parameters in the file that have no effect, as in Hugging Face: do_sample is not true
    misspelt             keys in the file that are none, but nearly, each with "did you mean"
    assumed              where the sampling is from, if the file says nothing of it; else ""
    """

    eos_token_ids: tuple[int, ...] = ()
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50  # 0: no limit
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    model_eos_token_ids: tuple[int, ...] = field(default=(), compare=False)
    path: Path | None = field(default=None, compare=False)
    missing: str = field(default="there is no generation_config.json", compare=False)
    silent: bool = field(default=True, compare=False)  # whether the file tells nothing of sampling
    idle: tuple[str, ...] = field(default=(), compare=False)
    misspelt: tuple[str, ...] = field(default=(), compare=False)
    assumed: str = field(default="", compare=False)

    def surprises(self, ways: str) -> list[str]:
        """Return lines about a sampling that the model's authors may not have meant. Each says what happens.

        ways  how to choose a temperature, which was not done
        """
        lines = [f"{self.path}: {name}" for name in self.misspelt]
        likeliest = f"each token is the likeliest one; {ways} draws"
        if self.do_sample:
            pass
        elif self.path is None:
            lines.append(f"{self.missing}: {likeliest}")
        elif self.idle:
            names = " and ".join([*filter(None, [", ".join(self.idle[:-1])]), self.idle[-1]])
            have = "have" if len(self.idle) > 1 else "has"
            lines.append(f"{self.path}: {names} {have} no effect, because do_sample is not true: {likeliest}")
        elif self.silent:
            lines.append(f"{self.path}: says nothing of sampling: {likeliest}")
        return [printable(line) for line in lines]  # words of the file and of the hub are in them

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

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of a generation_config.json that `from_folder` reads as this one."""
        names = () if self.silent else ("do_sample", *_SAMPLING, "repetition_penalty")
        ends = {"eos_token_id": list(self.eos_token_ids)} if self.eos_token_ids else {}
        return ends | {name: getattr(self, name) for name in names}

    @classmethod
    def from_folder(cls, folder: StrPath, config: Config) -> GenerationConfig:
        """Read generation_config.json, if there is one. Without eos_token_id, that of config.json counts.

        Unknown keys are ignored, and null means absent, as in config.json. Temperature 0 is accepted and means
        greedy sampling; Hugging Face refuses it with do_sample. Raises ConfigError.
        """
        path, fallback = Path(folder, GENERATION_CONFIG), Path(folder, CONFIG)
        is_there = os.path.lexists(path)
        read = FieldReader(read_json(path, _BYTES, ConfigError) if is_there else {}, path)
        of_model = _eos(FieldReader(read_json(fallback, _BYTES, ConfigError), fallback), config.V)
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
            missing=_missing(Path(folder)),
            silent=not any(read.values.get(name) is not None for name in (*_SAMPLING, "do_sample")),
            idle=_idle(read),
            misspelt=tuple(itertools.islice(_misspelt(read), _MOST_NAMED)),
        )


def _missing(folder: Path) -> str:
    why = not_fetched.get(folder)
    return f"there is no {GENERATION_CONFIG}" + (f" in the cache, and it was not fetched ({why})" if why else "")


def _idle(read: FieldReader) -> tuple[str, ...]:
    """Return the parameters that Hugging Face warns of: they differ from its defaults, and do_sample is not true."""
    given = {name: read.values.get(name) for name in _SAMPLING}
    if read.values.get("do_sample"):
        return ()
    return tuple(name for name, value in given.items() if value is not None and value != _SAMPLING[name])


def _misspelt(read: FieldReader) -> Iterator[str]:
    for name in itertools.islice(read.values, _MOST_KEYS):
        near = "" if name in _READ or name in _ALIKE else did_you_mean(name, _READ, 1)
        if near:
            yield f"{name[:40]} is not known, and has no effect{near}"


def _eos(read: FieldReader, vocabulary: int) -> tuple[int, ...]:
    """Read `eos_token_id`: absent, one id, or a list of ids."""
    value = read.values.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int and 0 <= token < vocabulary for token in ids):
        raise read.error("eos_token_id", f"must be a token id below vocab_size {vocabulary}, or a list of them")
    return tuple(ids)

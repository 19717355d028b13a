"""The fields of requests that change nothing, and those that are refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from ..errors import did_you_mean
from .problems import ApiError

T = TypeVar("T")
Listed = Annotated[
    list[T], Field(fail_fast=True)
]  # one wrong item is enough: an error for each of a million takes gigabytes
Neutral = Callable[[Any], bool]


def one_of(*values: Any) -> Neutral:
    return lambda value: value in values and type(value) in {type(each) for each in values}


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


# Fields that clients send, and what tells that they ask for nothing that this server does not do.
NEUTRAL: Mapping[str, Neutral] = {
    "user": _text,
    "safety_identifier": _text,
    "prompt_cache_key": _text,
    "prompt_cache_retention": _text,
    "metadata": lambda value: isinstance(value, dict),
    "store": one_of(False),
    "service_tier": one_of("auto", "default"),
    "modalities": one_of(["text"]),
    "verbosity": one_of("medium"),
    "cache_prompt": one_of(True),  # of llama.cpp
    "chat_template_kwargs": one_of({}),
    "include_reasoning": one_of(True),
    "skip_special_tokens": one_of(True),
    "ignore_eos": one_of(False),
}


class Fields(BaseModel):
    """A request. Numbers are no texts, and texts no numbers."""

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, json_schema_extra={"additionalProperties": False}
    )

    def checked(self, lenient: bool, neutral: Mapping[str, Neutral] = NEUTRAL) -> Self:
        """Raise ApiError for a field that this server does not know, unless it changes nothing."""
        for name, value in (self.model_extra or {}).items():
            if value is None or lenient:
                continue
            if name not in neutral:
                known = [*type(self).model_fields, *neutral]
                message = f"{name[:100]}: this server does not know this field{did_you_mean(name, known)}"
                raise ApiError(400, message, param=name, code="unknown_field")
            if not neutral[name](value):
                raise ApiError(400, f"{name}: this server does not do this", param=name, code="unsupported_value")
        return self

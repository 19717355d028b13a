"""The tokens that end an answer. Published models name them in several places, which do not always agree."""

from __future__ import annotations

from ..formats import GenerationConfig
from ..text import Tokenizer
from ..text.template import ChatTemplate


def end_tokens(
    defaults: GenerationConfig, tokenizer: Tokenizer | None, template: ChatTemplate | None
) -> dict[int, str]:
    """Return the ids that end an answer, and for each the places that say so.

    Any of these ends it: `eos_token_id` of generation_config.json and of config.json, the tokenizer's `ends`, and
    the added token that the chat template writes after an answer. A base model's config often names <|endoftext|>
    alone, although its template ends a turn with <|im_end|>.
    """
    places = {
        "config": (*defaults.eos_token_ids, *defaults.model_eos_token_ids),
        "tokenizer": () if tokenizer is None else tokenizer.ends,
        "template": () if tokenizer is None or template is None else (template.turn_end(tokenizer),),
    }
    found: dict[int, list[str]] = {}
    for place, ids in places.items():
        for identity in ids:
            if identity is not None and place not in found.setdefault(identity, []):
                found[identity].append(place)
    return {identity: ", ".join(names) for identity, names in found.items()}

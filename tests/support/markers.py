"""The small tokenizer with markers of every kind: added or not, special or not."""

import copy

from tests.support.small_tokenizer import VALUES

MARKERS = ("<think>", "</think>")


def with_markers(special=(), absent=()):
    values = copy.deepcopy(VALUES)
    values["added_tokens"] = [entry for entry in values["added_tokens"] if entry["content"] not in absent]
    for number, entry in enumerate(values["added_tokens"]):  # transformers ignores ids, and counts
        entry["id"] = len(values["model"]["vocab"]) + number
        entry["special"] = entry["special"] or entry["content"] in special
    return values


KINDS = {
    "added": with_markers(),
    "special": with_markers(special=MARKERS),
    "</think> special": with_markers(special=MARKERS[1:]),
    "absent": with_markers(absent=MARKERS),
    "<think> absent": with_markers(absent=MARKERS[:1]),
    "</think> absent": with_markers(absent=MARKERS[1:]),
    "all but the turns absent": with_markers(absent=[entry["content"] for entry in VALUES["added_tokens"][3:]]),
}

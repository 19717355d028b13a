"""The verdict of the oracle on each mistake of the catalogue, planted in a Hugging Face model of the conformance set.

Mistakes of reading a quantised file are planted in a small quantised model: `gguf` is in Q4_K, `gptq` has `desc_act`.

`python -m tests.tools.confusion` writes docs/confusion.md. tests/oracle/test_mistakes.py compares every cell of it.
"""

import dataclasses
import functools
import sys
import tempfile
from pathlib import Path

import torch

from qwq_ref import oracle
from qwq_ref.formats import Checkpoint, open_floats
from qwq_ref.oracle.explain.diagnose import visible
from qwq_ref.oracle.explain.mistakes import BY_NAME, MISTAKES
from tests.support import hf
from tests.support.paths import DOCS
from tests.support.planted import PLANTS, files, planted

PAGE = DOCS / "confusion.md"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MODES = {
    "all taps": lambda tap: True,
    "no scores": lambda tap: not tap.endswith((".scores", ".probs")),
    "logits": lambda tap: tap == "lm_head",
}
COLUMNS = [(precision, mode) for precision in ("fp32", "bf16") for mode in MODES]
HIDDEN = "-"


PACKS = (*oracle.conformance(), *files.MADE)
IDS, DECODE = tuple(range(3, 90, 7)), 3  # of the quantised models
_FOLDER = tempfile.TemporaryDirectory()


class Pack:
    """A pack of the conformance set, and its model in Hugging Face.

    weights     name -> array
    read        the weights as the oracle is given them
    model_path  where `compare` finds them; None: in the pack
    """

    model_path = None

    def __init__(self, name) -> None:
        self.golden = oracle.Golden.open(oracle.path(name))
        with Checkpoint.open(self.golden.model_path) as checkpoint:
            self.weights = self.read = dict(checkpoint)

    @property
    def config(self):
        return self.golden.manifest.config

    @property
    def phases(self):
        return self.golden.manifest.phases

    @functools.cache  # noqa: B019
    def model(self, precision, attention):
        values = self.config.to_dict() | {"bos_token_id": None, "eos_token_id": 0}
        hf_model = hf.build(self.config, values, self.weights, DTYPES[precision])
        hf_model.set_attn_implementation(attention)
        return hf_model

    def run(self, precision, attention="eager"):
        """Run the prompt, then one token at a time, through Hugging Face -> {phase: {tap: array}}"""
        seen, past = {}, None
        for phase in self.phases:
            seen[phase.name], past = hf.taps(self.model(precision, attention), phase.ids, past)
        return seen

    def mistaken(self, name, precision, layers=None):
        with planted(name, self.model(precision, "eager"), self.config, layers):
            return self.run(precision)

    def compare(self, seen, precision, mode="all taps", **options):
        chosen = {phase: {tap: x for tap, x in taps.items() if MODES[mode](tap)} for phase, taps in seen.items()}
        options = {"model": self.model_path} | options
        return oracle.compare(self.golden, chosen, precision=precision, verify=False, **options)

    @functools.cache  # noqa: B019
    def visible(self, precision, mode):
        """Return the first place where the reference shows each mistake; None: nowhere."""
        taps = {(phase.name, tap) for phase in self.phases for tap in self.golden.manifest.sizes if MODES[mode](tap)}
        return visible(self.config, self.phases, self.read, precision, taps)


class QuantisedPack(Pack):
    """A pack of a quantised model, without its model."""

    def __init__(self, name) -> None:
        made = files.made(name)
        self.model_path, self.weights, self.read = made.path, made.right, open_floats(made.path)
        folder = oracle.record(made.config, self.read, Path(_FOLDER.name, name), IDS, DECODE)
        self.golden = oracle.Golden.open(folder)


def without_model(manifest):
    """Return the manifest as of a pack without its model, like the pack of a large model."""
    return dataclasses.replace(manifest, folder=None)


@functools.cache
def pack(name):
    return QuantisedPack(name) if name in files.MADE else Pack(name)


@functools.cache
def suited(mistake):
    """Return the first pack in which the mistake shows in float32, or else the first pack."""
    return next((name for name in PACKS if pack(name).visible("fp32", "all taps").get(mistake)), PACKS[0])


@functools.cache
def seen_in(mistake, precision):
    return pack(suited(mistake)).mistaken(mistake, precision)


def verdict(mistake, precision, mode):
    """-> (a cell of the table, the report)

    "named": the report names this mistake alone; "named (or X)": X fits nearly as well; "X (or it)": X fits better;
    "-": nothing exceeds the tolerance. Any other cell is a defect.
    """
    report = pack(suited(mistake)).compare(seen_in(mistake, precision), precision, mode, coverage=False)
    if report.passed:
        return HIDDEN, report
    if not report.diagnosis.causes:
        return "not named", report
    cause = report.diagnosis.causes[0]
    others = f" (or {', '.join(cause.equals)})" if cause.equals else ""
    return ("named" if cause.mistake.name == mistake else cause.mistake.name) + others, report


def rows():
    for mistake in MISTAKES:
        cells = [verdict(mistake.name, precision, mode) for precision, mode in COLUMNS]
        first = next((report.first for cell, report in cells if cell != HIDDEN), None)
        yield mistake.name, first, [cell for cell, _ in cells]
        print(mistake.name, [cell for cell, _ in cells], file=sys.stderr, flush=True)


def table():
    head = " | ".join(f"{precision}, {mode}" for precision, mode in COLUMNS)
    lines = [f"| mistake | in | first seen at | {head} |", "|---" * (3 + len(COLUMNS)) + "|"]
    for name, first, cells in rows():
        at = (
            HIDDEN
            if first is None
            else f"{first.tap}, {first.phase}".replace("model.layers.", "").replace("model.", "")
        )
        lines.append(f"| {name} | {suited(name)} | {at} | {' | '.join(cells)} |")
    return "\n".join(lines)


BEGIN = "<!-- the table is written by tests/tools/confusion.py -->\n\n"


def read_page():
    """Read the page -> {(mistake, precision, mode): cell}"""
    found = {}
    for line in PAGE.read_text().partition(BEGIN)[2].splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in BY_NAME:
            found |= {(cells[0], *column): cell for column, cell in zip(COLUMNS, cells[3:], strict=True)}
    return found


assert set(PLANTS) == set(BY_NAME)

if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().partition(BEGIN)[0] + BEGIN + table() + "\n")

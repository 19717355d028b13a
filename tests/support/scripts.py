"""A model that says given tokens, and `qwq generate` with it: everything is real but the logits."""

import argparse
import contextlib
import io
import json
from pathlib import Path

import numpy as np

from qwq_ref.cli import generate
from qwq_ref.config import Config
from qwq_ref.engine.model import Model
from qwq_ref.formats import GenerationConfig
from tests.support.models import config_values

EXTRA = 11  # padding rows of the embedding


class Length:
    """A sequence that holds nothing but its length."""

    length = 0

    def rollback(self, length):
        self.length = length


class Script:
    """A backend that answers with `says`, one token for each call, and then with `last` for ever."""

    chunk, form, kv, isa, threads, tensors = 4096, "fp32", "fp32", "numpy", 1, None
    description = "a script"

    def __init__(self, size, says, last, context=4096):
        self.config = Config.from_dict(config_values(vocab_size=size))
        self.context = context
        self.says, self.last = list(says), last
        self.called = 0

    def sequence(self):
        self.called = 0
        return Length()

    def run(self, ids, sequence, rows, tap=None, progress=None):
        logits = np.zeros((1, self.config.V), np.float32)
        logits[0, self.says[self.called] if self.called < len(self.says) else self.last] = 9
        self.called += 1
        sequence.length += len(ids)
        return logits


class Given:
    """A chat template whose prompt is given as ids."""

    def __init__(self, ids):
        self.ids = ids

    def encode(self, tokenizer, messages, tools=None, most=None):
        return list(self.ids)

    def turn_end(self, tokenizer):
        return tokenizer.added["<|im_end|>"]


def model_that_says(tokenizer, says, template, last=None, context=4096):
    """A model that says these ids after each prompt. `last`: what it goes on with; None: it ends its turn."""
    last = tokenizer.added["<|im_end|>"] if last is None else last
    script = Script(tokenizer.size + EXTRA, says, last, context)
    return Model(Path("scripted"), script, tokenizer, template, GenerationConfig())


def read(generation):
    """The pieces of a generation joined by their kind -> (reasoning, answer)."""
    texts = {"thinking": "", "answer": ""}
    for piece in generation:
        assert piece.text
        texts[piece.kind] += piece.text
    return texts["thinking"], texts["answer"]


def command(model, *arguments, prompt="what?"):
    """`qwq generate` with this model -> (status, stdout, stderr)."""
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    parser.set_defaults(verbose=False)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = generate._answer(parser.parse_args([*map(str, arguments), "--temp", "0"]), model, prompt)
    return status, out.getvalue(), err.getvalue()


def report(model, *arguments, prompt="what?"):
    """The object that `qwq generate --json` prints, and its stderr."""
    status, out, err = command(model, "--json", *arguments, prompt=prompt)
    assert status == 0
    return json.loads(out), err

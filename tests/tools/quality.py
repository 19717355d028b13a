"""The loss of the engine's modes on the shipped model: logits against the spec in float64, on unseen problems.

python -m tests.tools.quality [PROBLEMS A CATEGORY]
"""

import dataclasses
import functools
import sys
from dataclasses import dataclass

import numpy as np

from qwq_ref import core, tasks
from qwq_ref.engine.backends import logits
from qwq_ref.engine.backends.core import CoreBackend
from qwq_ref.engine.packing import pack_weights
from qwq_ref.eval import accuracy
from qwq_ref.eval.kld import kl_divergence, same_top
from qwq_ref.eval.perplexity import perplexity, surprise
from qwq_ref.formats import Checkpoint, resolve
from qwq_ref.numerics import quant
from qwq_ref.spec import forward
from qwq_ref.text import load_tokenizer
from qwq_ref.train import corpus

SEED = 1
EACH = 4  # problems of each of the 23 categories, with their right answers: 9,044 tokens
MODES = [(form, kv) for form in ("fp32", "bf16", "q8", "q4") for kv in ("fp32", "int8")]


@dataclass(frozen=True)
class Document:
    """Ids, the first `prompt` of which are the question, and the logits of the spec [T, V], in float64."""

    ids: tuple[int, ...]
    prompt: int
    true: np.ndarray


@dataclass(frozen=True)
class Quality:
    """Means over the positions of all documents, or over those before a token of the answer.

    nmse        of the logits
    kld         KL(true || ours), in nats
    same_top    share of positions whose likeliest token is the same
    perplexity  of the text itself, after its first token
    """

    nmse: float
    kld: float
    same_top: float
    perplexity: float
    answer_kld: float
    answer_same_top: float
    answer_perplexity: float


def nano():
    """-> config, weights"""
    with Checkpoint.open(resolve("qwq-nano")) as checkpoint:
        return checkpoint.config, {name: checkpoint[name] for name in checkpoint}


def held_out(config, weights, each=EACH, seed=SEED):
    """Problems of the test split, of each category alike, with the answers that they should get."""
    formatter = corpus.Formatter(load_tokenizer(resolve("qwq-nano"), config.V))
    documents = []
    for category in tasks.CATEGORIES:
        for problem in accuracy.problems(category, each, seed):
            prompt = formatter.prompt(problem.prompt)
            ids = (*prompt, *formatter.completion(tasks.completion(problem)))
            documents.append(Document(ids, len(prompt), forward(config, weights, ids, dtype=np.float64)[0]))
    return documents


def engine(config, weights, form, kv="fp32"):
    """-> a function from ids [T] to logits [T, V]"""
    return functools.partial(logits, CoreBackend(config, pack_weights(config, weights, form, 1), 256, kv))


def measure(documents, logits):
    """`logits(ids)` -> [T, V]"""
    off = size = 0.0
    klds, tops, surprises, of_answer, next_of_answer = [], [], [], [], []
    for document in documents:
        ours = logits(document.ids).astype(np.float64)
        off, size = off + np.sum((ours - document.true) ** 2), size + np.sum(document.true**2)
        klds.append(kl_divergence(document.true, ours))
        tops.append(same_top(document.true, ours))
        surprises.append(surprise(ours, document.ids))
        answers = np.arange(len(ours)) >= document.prompt - 1
        of_answer.append(answers)
        next_of_answer.append(answers[:-1])
    kld, top, nats, answer, after = map(np.concatenate, (klds, tops, surprises, of_answer, next_of_answer))
    return Quality(
        off / size,
        kld.mean(),
        top.mean(),
        perplexity(nats),
        kld[answer].mean(),
        top[answer].mean(),
        perplexity(nats[after]),
    )


def rtn(w, group=32):
    """w [n, k] -> what GGUF's Q4_0 makes of it: groups of 32, d = the number of the largest magnitude / -8, in float16.

    Its levels are -8 to 7 times d, so that this number itself is one of them. 4.5 bits a weight, 4.25 in groups of 64.
    """
    groups = w.reshape(len(w), -1, group)
    at = np.abs(groups).argmax(axis=-1)[..., None]
    d = np.take_along_axis(groups, at, axis=-1) / np.float32(-8)
    inverse = np.where(d != 0, 1 / np.where(d != 0, d, 1), 0).astype(np.float32)
    level = np.clip(np.floor(groups * inverse + np.float32(8.5)), 0, 15) - 8
    return (level.astype(np.float32) * d.astype(np.float16).astype(np.float32)).reshape(w.shape)


def searched(w):
    """w [n, k] -> what the engine's q4 makes of it."""
    code, scale = core.quantise_q4(w)
    return quant.dequantise(quant.CODEBOOK[code], scale)


def eight_bits(w):
    """w [n, k] -> what q8 makes of it."""
    return quant.dequantise(*quant.quantise_q8(w))


def aligned(change, columns):
    """`change` with its groups beginning so many columns earlier: other errors of the same size."""
    return lambda w: np.roll(change(np.ascontiguousarray(np.roll(w, columns, axis=1))), -columns, axis=1)


def with_matrices(config, weights, change):
    """The model with all matrices of its layers changed, and with a head of 8 bits: to be run in fp32."""
    changed = {name: change(w) if "layers" in name and w.ndim == 2 else w for name, w in weights.items()}
    return changed | {config.head_name: eight_bits(weights[config.head_name])}


CHANGES = {
    "q8's own weights": eight_bits,
    "q4's own weights": searched,
    "round-to-nearest, groups of 32 (Q4_0's)": rtn,
    "round-to-nearest, groups of 64": functools.partial(rtn, group=64),
}


def mean(several):
    return Quality(*np.mean([dataclasses.astuple(one) for one in several], axis=0))


def main(each):
    config, weights = nano()
    documents = held_out(config, weights, each)
    print(f"{len(documents)} problems, {sum(len(document.ids) for document in documents):,} tokens\n")
    print("| | NMSE | KLD | same top | perplexity | answers: KLD | same top | perplexity |\n|---|" + "---|" * 7)

    def row(name, q):
        print(
            f"| {name} | {q.nmse:.1e} | {q.kld:.1e} | {q.same_top:.2%} | {q.perplexity:.3f} "
            f"| {q.answer_kld:.1e} | {q.answer_same_top:.2%} | {q.answer_perplexity:.4f} |",
            flush=True,
        )

    row("the spec in float64", measure(documents, lambda ids: forward(config, weights, ids, dtype=np.float64)[0]))
    for form, kv in MODES:
        row(f"`{form}`, cache {kv}", measure(documents, engine(config, weights, form, kv)))
    for name in ("q8", "q4"):
        changed = with_matrices(config, weights, CHANGES[f"{name}'s own weights"])
        row(f"`fp32` with {name}'s weights", measure(documents, engine(config, changed, "fp32")))
    print("\nThe same with other weights; means over 16 alignments of the groups\n")
    for name, change in CHANGES.items():
        changed = (with_matrices(config, weights, aligned(change, columns)) for columns in range(0, 64, 4))
        row(name, mean([measure(documents, engine(config, w, "fp32")) for w in changed]))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else EACH)

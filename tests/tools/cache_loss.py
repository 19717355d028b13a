"""The loss of an int8 cache alone, on a real model: its logits against those with a float32 cache, all else in float32.

    python -m tests.tools.cache_loss MODEL [TOKENS] [TEXT ...]

TEXT: files; by default the first Python files and pages of this repository, half and half.
"""

import sys
from pathlib import Path

import numpy as np

import qwq_ref
from qwq_ref.eval.kld import kl_divergence, same_top
from tests.support.paths import ROOT

PIECE = 128  # tokens whose logits are held at a time


def own_text():
    """Python and English of this repository."""
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "qwq_ref/engine").glob("*.py")))
    pages = "".join(
        (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("spec.md", "kernels.md", "oracle.md")
    )
    return [code, pages]


def measured(path, tokens, texts, threads=2):
    """-> KLD [tokens], same top [tokens]"""
    models = [
        qwq_ref.load(path, weights="fp32", kv=kv, context=tokens, threads=threads, text=True) for kv in ("fp32", "int8")
    ]
    share = tokens // len(texts)
    ids = [id for text in texts for id in models[0].tokenizer.encode(text)[:share]]
    exact, ours = (model.backend.sequence() for model in models)
    found = []
    for start in range(0, len(ids), PIECE):
        piece = ids[start : start + PIECE]
        true, other = (
            model.backend.run(piece, sequence, slice(None)).astype(np.float64)
            for model, sequence in zip(models, (exact, ours), strict=True)
        )
        found.append((kl_divergence(true, other), same_top(true, other)))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def main(path, tokens="512", *files):
    texts = [Path(file).read_text(encoding="utf-8") for file in files] or own_text()
    kld, top = measured(path, int(tokens), texts)
    name = Path(path).name
    print(f"{name}: {len(kld)} tokens, KLD {kld.mean():.1e}, largest {kld.max():.1e}, same top {top.mean():.2%}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What a model makes of wordings that no training has seen: `wording_variants.json`, beside the trained wording.

python -m tests.tools.wordings [-m MODEL] [-n PROBLEMS] [--seed N] [--json | --sums]

Each variant asks PROBLEMS problems of the test split. The same problems are asked again in a plain wording, as in
the table of the 23 categories. The sampling is the model's own. `--sums` measures short sums instead.
"""

import argparse
import json

import numpy as np

import qwq_ref
from qwq_ref import tasks
from qwq_ref.eval.accuracy import is_right
from qwq_ref.eval.intervals import wilson_interval
from qwq_ref.train.rollout import answers
from tests.support.wordings import CATEGORIES_OF, asked, corpus_shapes, shape, talk, variants

MAX_TOKENS = 250


def drawn(kind, language, count, rng):
    """Problems of one kind, from its categories in turn."""
    found, names = [], CATEGORIES_OF.get(kind, (kind,))
    while len(found) < count:
        problem = tasks.sample(names[len(found) % len(names)], rng, "test", language)
        if problem.kind == kind:
            found.append(problem)
    return found


def right(model, problems, prompts, seed):
    """-> for each problem, whether the answer to its prompt is right"""
    said = answers(
        model.config,
        model.backend.tensors,
        [model.prompt_ids(prompt) for prompt in prompts],
        model.sampling(),
        end_ids=model.defaults.eos_token_ids,
        vocabulary=min(model.tokenizer.size, model.config.V),
        max_tokens=MAX_TOKENS,
        seed=seed,
        workers=2,
    )
    texts = [(model.tokenizer.decode(answer.ids), answer.ended) for answer in said]
    return [is_right(problem, *text) for problem, text in zip(problems, texts, strict=True)]


def measure(model, n, seed):
    """-> rows: kind, language, variants, problems, accuracy in the variants and in the plain wording, worst variant"""
    rows = []
    for kind, by_language in variants().items():
        for language, wordings in by_language.items():
            rng = np.random.default_rng([seed, *kind.encode(), *language.encode()])
            problems = [problem for _ in wordings for problem in drawn(kind, language, n, rng)]
            prompts = [asked(wordings[at // n], problem) for at, problem in enumerate(problems)]
            varied = right(model, problems, prompts, seed)
            plain = right(model, problems, [problem.prompt for problem in problems], seed)
            each = [np.mean(varied[at : at + n]) for at in range(0, len(varied), n)]
            each_plain = [np.mean(plain[at : at + n]) for at in range(0, len(plain), n)]
            is_new = [shape(wording) not in corpus_shapes() for wording in wordings]
            worst = int(np.argmin(each))
            rows.append(
                {
                    "kind": kind,
                    "language": language,
                    "variants": len(wordings),
                    "n": len(problems),
                    "variant": float(np.mean(varied)),
                    "plain": float(np.mean(plain)),
                    "worst": float(each[worst]),
                    "worst_wording": wordings[worst],
                    "below_half": [wording for wording, share in zip(wordings, each, strict=True) if share < 0.5],
                    "unseen": [float(share) for share, new in zip(each, is_new, strict=True) if new],
                    "plain_unseen": [float(share) for share, new in zip(each_plain, is_new, strict=True) if new],
                }
            )
    return rows


def measure_talk(model, n, seed):
    """-> (kind, language, questions, share of their answers that are the right one), each asked n times"""
    for kind, category in (("greeting", "hello"), ("unknown", "unknown")):
        for language, texts in talk(kind).items():
            problem = tasks.generate(category, np.random.default_rng(seed), language)
            prompts = [text for text in texts for _ in range(n)]
            yield kind, language, len(texts), float(np.mean(right(model, [problem] * len(prompts), prompts, seed)))


def sums(model, n, seed):
    """-> rows: digits, different problems, accuracy in the plain wordings and in the words that the corpus composes"""
    rows = []
    for digits, category in ((1, "sum"), (2, "addsub2")):
        rng = np.random.default_rng([seed, digits])
        problems = []
        while len(problems) < n:
            problem = tasks.sample(category, rng, "test")
            if problem.kind == "sum" and {len(str(problem.slots[name])) for name in "ab"} == {digits}:
                problems.append(problem)
        worded = [tasks.reworded(problem, rng).prompt for problem in problems]
        shares = [np.mean(right(model, problems, prompts, seed)) for prompts in ([p.prompt for p in problems], worded)]
        rows.append((digits, len({problem.key for problem in problems}), *map(float, shares)))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", default="qwq-nano")
    parser.add_argument("-n", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sums", action="store_true")
    options = parser.parse_args()
    model = qwq_ref.load(options.model, backend="numpy")
    if options.sums:
        for digits, different, plain, worded in sums(model, options.n, options.seed):
            print(f"sums of {digits} digits: {different} problems, plain {plain:.2%}, in readers' words {worded:.2%}")
        return
    rows = measure(model, options.n, options.seed)
    if options.json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    print("| kind | language | variants | n | all variants | unseen | plain |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['kind']} | {row['language']} | {row['variants']} | {row['n']} | {row['variant']:.0%} "
            f"| {np.mean(row['unseen']) if row['unseen'] else np.nan:.0%} | {row['plain']:.0%} |"
        )
    for language in ("en", "zh"):
        some = [row for row in rows if row["language"] == language]
        count, n = sum(row["variants"] for row in some), sum(row["n"] for row in some)
        varied, plain = (sum(row[name] * row["n"] for row in some) / n for name in ("variant", "plain"))
        low, high = wilson_interval(round(varied * n), n)
        print(f"{language}: {count} variants, {n} problems: {varied:.2%} ({low:.2%} - {high:.2%}), plain {plain:.2%}")
        new, same = (np.concatenate([row[name] for row in some]) for name in ("unseen", "plain_unseen"))
        print(f"{language}: {len(new)} variants are not in the corpus: {new.mean():.2%}, plain {same.mean():.2%}")
    for kind, language, count, share in measure_talk(model, options.n, options.seed):
        print(f"{kind}, {language}: {count} questions, {share:.2%} answered as they should be")


if __name__ == "__main__":
    main()

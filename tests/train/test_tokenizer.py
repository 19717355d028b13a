"""The small tokenizer on reference completions: examples are short, and none looks like a loop."""

import json

import numpy as np
import pytest

from qwq_ref import tasks
from qwq_ref.eval import outputs
from qwq_ref.text import load_tokenizer
from qwq_ref.train.tokenizer import train_tokenizer
from tests.support.problems import ALL, problems


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    drawn = [problem for category in tasks.CATEGORIES for problem in problems(category, 131)]
    texts = [text for p in drawn for text in (p.prompt, *tasks.completion(p).split("</think>"))]
    folder = tmp_path_factory.mktemp("nano")
    (folder / "tokenizer.json").write_text(json.dumps(train_tokenizer(texts, 512)))
    return load_tokenizer(folder, 512)


def test_examples_are_short(tokenizer):
    means = []
    for category in tasks.CATEGORIES:
        lengths = []
        for problem in problems(category, 100, seed=1):
            prompt = f"<|im_start|>user\n{problem.prompt}<|im_end|>\n<|im_start|>assistant\n<think>\n"
            ids = tokenizer.encode(prompt + tasks.completion(problem) + "<|im_end|>", special=True)
            lengths.append(len(ids))
        means.append(np.mean(lengths))
        print(f"{category:16} mean {means[-1]:5.1f} max {max(lengths)}")
        assert max(lengths) <= 160, category
    print(f"mean of all {np.mean(means):.1f}")
    assert np.mean(means) <= 110


@pytest.mark.parametrize("category", ALL)
def test_no_reference_is_a_loop(tokenizer, category):
    for problem in problems(category):
        ids = tokenizer.encode(tasks.completion(problem), special=True)
        assert not outputs.is_loop(ids, ended=True), problem
        assert not outputs.is_loop(ids, ended=False), problem
        assert outputs.repetition(ids) <= 0.5

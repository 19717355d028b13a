"""lm-evaluation-harness asks the model through our class: floats and texts of the model itself."""

import json
import sys

import numpy as np
import pytest

import qwq_ref
from qwq_ref.errors import UsageError

TEXT = "What is 12+34? The answer is 46, and 排序 3,1,2 gives 1,2,3."


class Asks:
    """A request, as lm-eval makes it."""

    def __init__(self, *args):
        self.args = args


@pytest.fixture(scope="module")
def nano():
    return qwq_ref.load("qwq-nano", context=512, text=True)


@pytest.fixture(scope="module")
def lm(nano):
    pytest.importorskip("lm_eval", reason="lm-eval is missing: pip install 'qwq_ref[lm-eval]'")
    from qwq_ref.eval.lm_eval import QwqLM

    return QwqLM(nano)


def rows(model, ids):
    """The log-probabilities of all tokens behind each id, in float64."""
    logits = model.logits(ids)[:, : model.tokenizer.size].astype(np.float64)
    largest = logits.max(-1, keepdims=True)
    return logits - (largest + np.log(np.exp(logits - largest).sum(-1, keepdims=True)))


@pytest.mark.parametrize("times", [1, 12])
def test_a_loglikelihood_is_the_sum_of_the_models_own(nano, lm, times):
    """Also of a text that is computed in several parts."""
    context, rest = TEXT * times, " So it is 46."
    before = nano.tokenizer.encode(context)
    ids = before + nano.tokenizer.encode(context + rest)[len(before) :]
    found = rows(nano, ids[:-1])[len(before) - 1 :]
    ((value, likeliest),) = lm.loglikelihood([Asks(context, rest)])
    assert value == sum(row[i] for row, i in zip(found, ids[len(before) :], strict=True))
    assert likeliest == ([*found.argmax(-1)] == ids[len(before) :])
    best = nano.tokenizer.decode([int(rows(nano, before)[-1].argmax())])
    if nano.tokenizer.encode(context + best)[: len(before)] == before:
        assert lm.loglikelihood([Asks(context, best)])[0][1] is True


def test_a_text_without_context_stands_behind_an_end(nano, lm):
    ids = [lm.eot_token_id, *nano.tokenizer.encode(TEXT)]
    expected = sum(row[i] for row, i in zip(rows(nano, ids[:-1]), ids[1:], strict=True))
    assert lm.loglikelihood([Asks("", TEXT)])[0][0] == expected
    assert lm.loglikelihood_rolling([Asks(TEXT)]) == [expected]


def test_a_text_longer_than_the_context_has_windows(nano, lm):
    text = TEXT * 40
    ids = nano.tokenizer.encode(text)
    assert len(ids) > 2 * nano.context
    expected, done = 0.0, 0
    while done < len(ids):  # each window has as much of the text before it as fits
        end = min(done + nano.context, len(ids))
        fed = [lm.eot_token_id, *ids][max(0, end - nano.context) : end]
        found = rows(nano, fed)[len(fed) - (end - done) :]
        expected += sum(row[i] for row, i in zip(found, ids[done:end], strict=True))
        done = end
    assert lm.loglikelihood_rolling([Asks(text)])[0] == pytest.approx(expected, rel=1e-12)
    value, _ = lm.loglikelihood([Asks(text, " 46")])[0]  # its beginning is cut off
    assert np.isfinite(value)


def test_texts_go_on_until_a_stop(nano, lm):
    asked = [
        Asks("Reverse 12+34:\n", {"until": ["+", "zzz"], "max_gen_toks": 20, "temperature": 0}),
        Asks("What is 12+34?", {"until": "46", "max_gen_toks": 30, "do_sample": False, "temperature": 0.7}),
        Asks("What is 2+2?", {"until": [], "max_gen_toks": 5}),
        Asks("Sort", {"max_gen_toks": 6, "temperature": 1.5, "do_sample": True, "seed": 7}),
    ]
    how = [
        {"stop": ["+", "zzz"], "max_tokens": 20, "temperature": 0},
        {"stop": ["46"], "max_tokens": 30, "temperature": 0},
        {"max_tokens": 5, "temperature": 0},
        {"max_tokens": 6, "temperature": 1.5, "seed": 7},
    ]
    expected = []
    for request, settings in zip(asked, how, strict=True):
        generation = nano.generate(request.args[0], raw=True, **settings)
        expected.append("".join(str(piece) for piece in generation))
    assert lm.generate_until(asked) == expected


def test_without_lm_eval(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "qwq_ref.eval.lm_eval", raising=False)
    with pytest.raises(UsageError, match=r"lm-eval: is not installed: pip install 'qwq_ref\[lm-eval\]'"):
        import qwq_ref.eval.lm_eval  # noqa: F401


DOCUMENTS = [
    {"q": "Reverse 12+34:\n", "choices": ["21+43", "12+34", "43+21"], "y": 0},
    {"q": "What is 12+34?", "choices": [" 46", " 47", " 48"], "y": 0},
]
TASK = """
task: own
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: choices
doc_to_target: y
target_delimiter: ""
metric_list:
  - metric: acc
"""


@pytest.mark.long
def test_a_run_of_lm_eval_itself(nano, lm, tmp_path):
    import lm_eval
    from lm_eval.tasks import TaskManager

    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in DOCUMENTS))
    (tmp_path / "own.yaml").write_text(TASK.format(data=data))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(model=lm, tasks=["own"], task_manager=manager, log_samples=True, bootstrap_iters=0)
    for document, sample in zip(DOCUMENTS, sorted(found["samples"]["own"], key=lambda s: s["doc_id"]), strict=True):
        asked = [lm.loglikelihood([Asks(document["q"], choice)])[0] for choice in document["choices"]]
        assert [(value, likeliest) for value, likeliest in sample["filtered_resps"]] == asked
    best = [int(np.argmax([lm.loglikelihood([Asks(d["q"], c)])[0][0] for c in d["choices"]])) for d in DOCUMENTS]
    assert found["results"]["own"]["acc,none"] == np.mean([b == d["y"] for b, d in zip(best, DOCUMENTS, strict=True)])

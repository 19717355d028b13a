"""KL divergence and perplexity: values worked out by hand, and what shifts and equal logits must give."""

import numpy as np
import pytest

from qwq_ref.eval.kld import kl_divergence, log_softmax, same_top
from qwq_ref.eval.perplexity import perplexity, surprise
from tests.support.contracts import checked

FAIR, BIASED = np.log([[0.5, 0.5]]), np.log([[0.75, 0.25]])


def test_two_coins():
    assert checked(kl_divergence)(FAIR, BIASED) == pytest.approx([0.5 * np.log(4 / 3)])
    assert checked(kl_divergence)(BIASED, FAIR) == pytest.approx([0.75 * np.log(1.5) - 0.25 * np.log(2)])


def test_a_shift_of_all_logits_changes_nothing():
    x = np.random.default_rng(0).normal(size=(5, 9)) * 40
    assert np.exp(checked(log_softmax)(x)).sum(axis=-1) == pytest.approx(np.ones(5))
    assert kl_divergence(x, x + 900) == pytest.approx(np.zeros(5), abs=1e-9)
    assert np.isfinite(log_softmax(np.array([[1e4, -1e4]]))).all()


def test_the_likeliest_token():
    assert checked(same_top)(np.array([[1, 2], [5, 3]]), np.array([[1, 9], [3, 5]])).tolist() == [True, False]


def test_perplexity_of_a_text_that_is_predicted_evenly_is_the_vocabulary():
    found = checked(surprise)(np.zeros((4, 7)), [3, 1, 4, 1])
    assert found.shape == (3,)
    assert checked(perplexity)(found) == pytest.approx(7)


def test_each_position_predicts_the_next_token():
    logits = np.full((3, 5), -50.0)
    logits[0, 2] = logits[1, 4] = 50
    logits[2, 0] = 50  # after the text: counts for nothing
    assert perplexity(surprise(logits, [1, 2, 4])) == pytest.approx(1)
    assert perplexity(surprise(logits, [1, 4, 2])) > 1e40


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_have_no_distance(bad):
    """The index of a NaN is no likeliest token."""
    good, broken = np.zeros((2, 5)), np.zeros((2, 5))
    broken[1, 3] = bad
    for call in (kl_divergence, same_top):
        for pair in ((good, broken), (broken, good)):
            with pytest.raises(ValueError, match="the largest of the logits must be finite, got"):
                call(*pair)
    with pytest.raises(ValueError, match="must be finite"):
        surprise(np.concatenate([broken, good]), [0, 1, 2, 3])

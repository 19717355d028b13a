"""The loss of an int8 cache on a real model, whose keys have large biases."""

import pytest

from tests.support.real_models import QWEN_05B, real_model
from tests.tools.cache_loss import measured, own_text


@pytest.mark.real
def test_an_int8_cache_loses_little():
    kld, top = measured(real_model(QWEN_05B), 256, own_text())
    assert kld.mean() <= 5e-4
    assert top.mean() >= 0.985

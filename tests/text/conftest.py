"""The chat templates that several files of these tests render."""

import pytest

from qwq_ref.text import ChatTemplate, load_chat_template
from tests.support.small_tokenizer import TEMPLATE


@pytest.fixture(scope="session")
def template():
    return ChatTemplate(TEMPLATE, "small.jinja")


@pytest.fixture(scope="session")
def real_template(real_folder):
    return load_chat_template(real_folder)

"""One server with the shipped model for all tests of a module."""

import openai
import pytest

import qwq_ref
from tests.support.servers import serving


@pytest.fixture(scope="session")
def nano():
    return qwq_ref.load("qwq-nano", weights="q8", kv="int8")


@pytest.fixture(scope="module")
def endless():
    """A model that ends no answer: the limits do."""
    model = qwq_ref.load("qwq-nano", weights="q8", kv="int8")
    model.__dict__["end_tokens"] = {}
    return model


@pytest.fixture(scope="module")
def server(nano):
    with serving(lambda: nano) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client

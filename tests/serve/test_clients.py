"""Other programs that call the server, each from its own environment: the tier `clients`."""

import json

import pytest

from qwq_ref.serve.limits import ServerLimits
from tests.support.client_programs import SCRIPTS, node_package, run_client
from tests.support.servers import serving

pytestmark = pytest.mark.clients
KEY = "correct-horse-7"


@pytest.fixture(scope="module")
def guarded(nano):
    """A server with a key, and with little room."""
    with serving(lambda: nano, ServerLimits(running=2, waiting=4), key=KEY) as running:
        yield running


def greedy(model, prompt, **how):
    generation = model.generate(prompt, temperature=0, **how)
    for _ in generation:
        pass
    return generation


def test_openai_for_javascript(nano, guarded, tmp_path):
    folder = node_package("openai").parents[1]
    lines = run_client("node", SCRIPTS / "openai.mjs", folder, guarded.url, KEY, folder=tmp_path).splitlines()
    assert sum(line.startswith("ok: ") for line in lines) == 20
    texts = greedy(nano, "What is 123+456?").texts
    assert json.loads(lines[-1]) == {
        "model": "qwq-nano",
        "content": texts["answer"],
        "reasoning_content": texts["thinking"],
    }

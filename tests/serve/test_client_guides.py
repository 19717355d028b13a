"""docs/clients.md, followed: its scripts run, and its settings make programs ask a server. The tier `clients`."""

import copy
import json

import pytest
import yaml

from tests.support.client_programs import node_package, python_with, run_client
from tests.support.pages import fenced
from tests.support.paths import DOCS
from tests.support.servers import serving

pytestmark = pytest.mark.clients
PAGE = DOCS / "clients.md"
ADDRESS = "http://127.0.0.1:8080"
ANSWER = "The answer is \\boxed{46}."


@pytest.fixture(scope="module")
def server(nano):
    """A server that takes the likeliest tokens: the guides leave the sampling to the model."""
    model = copy.copy(nano)
    model.__dict__["prepare"] = lambda prompt, **how: nano.prepare(prompt, **{**how, "temperature": 0})
    with serving(lambda: model) as running:
        yield running


@pytest.fixture
def guide(server):
    """A function from a language and a word to the only block with both, with the server's address."""

    def block(language, word):
        (text,) = [text for _, text in fenced(PAGE, language) if word in text]
        return text.replace(ADDRESS, server.url)

    return block


def test_the_script_of_javascript(guide, server, tmp_path):
    (tmp_path / "node_modules").symlink_to(node_package("openai").parent)
    (tmp_path / "chat.mjs").write_text(guide("js", "new OpenAI"))
    variables = {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "none"}
    out = run_client("node", "chat.mjs", folder=tmp_path, **variables)
    assert out.endswith(ANSWER)
    assert len(out) > 2 * len(ANSWER)  # the reasoning comes before it


def test_the_script_of_langchain(guide, tmp_path):
    (tmp_path / "chat.py").write_text(guide("py", "langchain"))
    assert run_client(python_with("langchain"), "chat.py", folder=tmp_path).count(ANSWER) == 2


def test_the_models_of_llm(guide, tmp_path):
    program = python_with("llm").with_name("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(guide("yaml", "model_id"))
    for name in ("nano", "nano-thinks"):
        command = (program, "-m", name, "What is 12+34?")
        assert run_client(*command, folder=tmp_path, LLM_USER_PATH=str(tmp_path)).strip() == ANSWER
    logged = run_client(program, "logs", "--json", "-n", "1", folder=tmp_path, LLM_USER_PATH=str(tmp_path))
    assert json.loads(logged)[0]["reasoning"]


CHECK = """
import { readFileSync } from "node:fs";
const { configYamlSchema } = await import(process.argv[2]);
configYamlSchema.strict().parse(JSON.parse(readFileSync("config.json")));
"""


def test_the_file_of_continue_fits_its_schema(guide, tmp_path):
    schema = node_package("@continuedev/config-yaml") / "dist" / "schemas" / "index.js"
    config = yaml.safe_load(guide("yaml", "schema: v1"))
    (tmp_path / "check.mjs").write_text(CHECK)
    (tmp_path / "config.json").write_text(json.dumps(config))
    run_client("node", "check.mjs", schema, folder=tmp_path)
    config["models"][0]["provider"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(AssertionError, match="provider"):
        run_client("node", "check.mjs", schema, folder=tmp_path)

"""Small checkpoints on disk: one with random weights, and models that say a given text."""

import itertools
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import qwq_ref
from qwq_ref import core
from qwq_ref.config import Config
from qwq_ref.formats import Checkpoint
from tests.support.models import config_values, random_weights
from tests.support.small_tokenizer import SIZE, TEMPLATE, VALUES

PADDED = SIZE + 11  # rows of the embedding that no text has


def write_checkpoint(folder, values, weights):
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer.json").write_text(json.dumps(VALUES))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    defaults = {"do_sample": True, "temperature": 0.6, "top_k": 40, "top_p": 0.95}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    save_file(weights, folder / "model.safetensors")
    return folder


def weights_of(folder):
    with Checkpoint.open(folder) as checkpoint:
        return dict(checkpoint)


@pytest.fixture(scope="session", params=["core", "numpy"])
def random_model(random_folder, request):
    if request.param == "core" and not core.available():
        pytest.skip("the C core is not built: there was no compiler")
    return qwq_ref.load(random_folder, backend=request.param)


def id_of(token):
    return next(entry["id"] for entry in VALUES["added_tokens"] if entry["content"] == token)


def scripted_weights(values, successor):
    """Return weights whose head is a table from each token to the next; attention and MLP add nothing."""
    config = Config.from_dict(values)
    weights = {name: np.zeros(shape, np.float32) for name, shape in config.tensors().items()}
    for name, value in weights.items():
        if name.endswith("norm.weight"):
            value[:] = 1
    weights["model.embed_tokens.weight"][:] = np.eye(config.V, config.D)
    for token, following in successor.items():
        weights["lm_head.weight"][following, token] = 1
    return weights


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory):
    values = config_values(vocab_size=PADDED, eos_token_id=VALUES["added_tokens"][2]["id"])
    weights = random_weights(Config.from_dict(values), 7, harsh=True)
    return write_checkpoint(tmp_path_factory.mktemp("random"), values, weights)


@pytest.fixture(scope="session")
def scripted(tmp_path_factory):
    """Return a function from (thinking, answer) texts to the folder of a model that says them after every prompt."""
    folders = {}

    def make(thinking, answer, ends=True):
        if (thinking, answer, ends) not in folders:
            folder = tmp_path_factory.mktemp("scripted")
            values = config_values(vocab_size=PADDED, hidden_size=PADDED, eos_token_id=id_of("<|im_end|>"))
            tokenizer = qwq_ref.text.load_tokenizer(write_checkpoint(folder, values, scripted_weights(values, {})))
            said = [*tokenizer.encode(thinking), tokenizer.think_end, *tokenizer.encode(answer)]
            said.append(id_of("<|im_end|>") if ends else said[-2])
            last = tokenizer.encode("\n")[-1]  # the template's prompt ends with <think> and a line end
            script = [last, *said]
            assert ends is False or len(set(script)) == len(script), "a token would have two successors"
            successor = dict(itertools.pairwise(script))
            save_file(scripted_weights(values, successor), folder / "model.safetensors")
            folders[thinking, answer, ends] = folder
        return folders[thinking, answer, ends]

    return make

"""The planted mistakes are those of the catalogue: the oracle's prediction comes true, tap by tap.

Each mistake exists twice, independently: as a change of the table in NumPy, and as a patch of Hugging Face's model. The
mistaken model's own values are the inputs of every prediction.
"""

import functools
import json

import numpy as np
import pytest
import torch

from qwq_ref.config import Config
from qwq_ref.formats import open_floats
from qwq_ref.oracle.explain.mistakes import BY_NAME
from qwq_ref.oracle.explain.mistakes.quantised import grid_steps
from qwq_ref.oracle.graph import (
    CORRECT,
    TRUTH,
    Phase,
    phases_of,
    shape_of,
    split_name,
    tap_names,
)
from qwq_ref.oracle.walk import Stream, Weights, walk
from qwq_ref.spec.ops import to_bf16
from tests.support import hf
from tests.support.models import config_values, yarn
from tests.support.planted import PLANTS, files, on_grid, planted

IDS = tuple(int(token) for token in np.random.default_rng(2).integers(0, 53, 17))
PHASES = phases_of(IDS, 3)
# A chunk of several tokens behind a cache: what there is between a prompt and a step.
CHUNKS = (Phase("a", 0, IDS[:9]), Phase("b", 9, IDS[9:13]), *phases_of(IDS, 4)[1:])
EVERYTHING = {
    "rope_scaling": yarn(original_max_position_embeddings=512),
    "rope_theta": 1e5,
    "use_sliding_window": True,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rms_norm_eps": 1e-2,
    "hidden_size": 40,
}
HAS_EVERYTHING = config_values(num_hidden_layers=3, **EVERYTHING)
# Type -> its correct arithmetic, and how far off a prediction may be. In the two small types a plant rounds after every
# operation of torch, and the catalogue less often: one step of the type covers that.
TYPES = {
    torch.float32: (TRUTH, 5e-7),
    torch.bfloat16: (CORRECT["bf16"][0], 2.0**-7),
    torch.float16: (CORRECT["fp16"][0], 2.0**-10),
}


def loud_weights(config):
    """Weights that show every mistake, and keep all numbers within float16."""
    rng = np.random.default_rng(1)
    weights = {}
    for name, shape in config.tensors().items():
        value = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            value = 1 + 0.3 * value
        elif name.endswith("bias"):
            value *= 0.3
        elif "embed_tokens" not in name:
            value /= np.sqrt(shape[-1])
        weights[name] = value.astype(np.float32)
    return weights


class Case:
    """A model, and its results without a planted mistake. `read` are its weights, as the oracle is given them."""

    def __init__(self, changes, grid, dtype, phases, source):
        values = config_values(num_hidden_layers=3) | changes
        self.config = Config.from_dict(values)
        self.weights = loud_weights(self.config)
        if grid:
            self.weights = on_grid(self.weights)
        self.read = self.weights
        if source:
            model = files.made(source)
            self.config, self.weights, self.read = model.config, model.right, open_floats(model.path)
            values = self.config.to_dict() | {"bos_token_id": None, "eos_token_id": 0}
        self.phases = phases
        self.model = hf.build(self.config, values, self.weights, dtype)
        self.arithmetic, self.tolerance = TYPES[dtype]
        self.right = self.run()

    def run(self):
        """Run Hugging Face's model -> {(phase, tap): array}. Keys that its sliding cache dropped count as masked."""
        seen, past = {}, None
        for p, phase in enumerate(self.phases):
            taps, past = hf.taps(self.model, phase.ids, past)
            for name, value in taps.items():
                if name.endswith((".scores", ".probs")):
                    dropped = ((0, 0), (0, 0), (phase.S - value.shape[-1], 0))
                    value = np.pad(value, dropped, constant_values=-np.inf if name.endswith("scores") else 0)
                assert value.shape == shape_of(name, self.config, phase), name
                seen[p, name] = value
        assert seen.keys() == {(p, name) for p in range(len(self.phases)) for name in tap_names(self.config)}
        return seen

    def mistaken(self, name, layers=None):
        with planted(name, self.model, self.config, layers):
            return self.run()

    def first_difference(self, seen):
        """Return the first tap, in the order of the computation, that changed. A cache with more keys may change the
        order of sums."""
        for name in tap_names(self.config):
            if any(off(seen[p, name], self.right[p, name]) > 1e-6 for p in range(len(self.phases))):
                return name
        return None

    def predict(self, name, seen):
        """-> {(phase, tap): (what the reference makes of the mistaken model's values, what the mistake does)}"""
        results = {}

        def visit(p, tap, result):
            results[p, tap] = result[0], result.get(1, result[0])
            return seen[p, tap]

        streams = [Stream(self.arithmetic), Stream(self.arithmetic, BY_NAME[name].replaces(self.config))]
        walk(self.config, self.phases, streams, Weights(self.read), visit)
        return results

    def first_mistaken(self, name, layers=None):
        """Return the first tap that the catalogue changes with an effect."""
        first = 0
        windowed = [self.config.window(layer) is not None for layer in range(self.config.L)]
        if name in ("window-ignored", "window-one-wider", "window-one-narrower"):
            first = windowed.index(True)
        if name in ("window-everywhere", "decode-misses-oldest"):  # the oldest is beyond a window
            first = windowed.index(False)
        allowed = layers or {None, *range(first, self.config.L)}
        return next(tap for tap in tap_names(self.config) if split_name(tap)[0] in allowed and self.changed(name, tap))

    def changed(self, name, tap):
        return split_name(tap)[1] in BY_NAME[name].replaces(self.config)


@functools.cache
def case_of(changes, grid, dtype, phases, source=""):
    return Case(json.loads(changes), grid, dtype, phases, source)


def small_case(name, dtype=torch.float32):
    """The case of the config that the plant names; plants share cases."""
    plant = PLANTS[name]
    return case_of(json.dumps(plant.values), plant.grid, dtype, PHASES, plant.source)


def off(got, wanted):
    """RMS of the difference, relative to that of `wanted`; infinite where masks differ."""
    got, wanted = np.float64(got), np.float64(wanted)
    if not np.array_equal(np.isinf(got), np.isinf(wanted)):
        return np.inf
    visible = np.isfinite(wanted)
    difference = np.linalg.norm(got[visible] - wanted[visible])
    return difference and difference / max(np.linalg.norm(wanted[visible]), 1e-300)


def check(case, name, layers=None):
    """Check that the mistake appears where the catalogue predicts it, and leaves no trace afterwards."""
    seen = case.mistaken(name, layers)
    assert case.first_difference(seen) == case.first_mistaken(name, layers)
    missed = hit = 0.0
    for (p, tap), (truth, mistake) in case.predict(name, seen).items():
        here = layers is None or split_name(tap)[0] in layers
        error = off(mistake if here else truth, seen[p, tap])
        assert error <= (1e-3 if PLANTS[name].flips else case.tolerance), (p, tap)
        if here and case.changed(name, tap):
            missed, hit = max(missed, off(truth, seen[p, tap])), max(hit, error)
    assert missed > 2 * hit
    unchanged(case, case.run())


def unchanged(case, seen):
    for key, value in case.right.items():
        assert np.array_equal(seen[key], value), key


def test_every_mistake_of_the_catalogue_can_be_planted():
    assert set(PLANTS) == set(BY_NAME)


LOUD = [name for name, plant in PLANTS.items() if not plant.quiet]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", LOUD)
def test_the_prediction_comes_true(name, dtype):
    case = small_case(name, dtype)
    if dtype in PLANTS[name].silent:
        unchanged(case, case.mistaken(name))
    else:
        check(case, name)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in LOUD
        if torch.float32 not in PLANTS[name].silent
        and not PLANTS[name].source
        and BY_NAME[name].replaces(Config.from_dict(HAS_EVERYTHING))
    ],
)
def test_it_comes_true_in_a_model_that_has_everything(name):
    """The model has YaRN, windows and another head_dim; the prompt comes in chunks."""
    check(case_of(json.dumps(EVERYTHING), True, torch.float32, CHUNKS), name)


@pytest.mark.parametrize("name", [name for name, plant in PLANTS.items() if not plant.whole])
def test_in_one_layer(name):
    dtype = torch.bfloat16 if torch.float32 in PLANTS[name].silent else torch.float32
    check(small_case(name, dtype), name, {0} if name == "window-everywhere" else {1})


@pytest.mark.parametrize("name", [name for name, plant in PLANTS.items() if plant.whole])
def test_a_mistake_of_the_whole_model_is_in_no_layer(name):
    case = small_case(name)
    with pytest.raises(ValueError, match="whole model"), planted(name, case.model, case.config, {1}):
        pass


def test_a_layer_that_is_not_there():
    case = small_case("gelu")
    with pytest.raises(ValueError, match="of a model of 3"), planted("gelu", case.model, case.config, {3}):
        pass


@pytest.mark.parametrize("name", PLANTS)
def test_an_exception_leaves_nothing_behind(name):
    case = small_case(name)

    def state():
        modules = [(key, sorted(vars(module)), dict(module._buffers)) for key, module in case.model.named_modules()]
        hooks = [len(module._forward_pre_hooks) for module in case.model.modules()]
        globals_ = dict(vars(hf.modeling_qwen2)) | {f"functional.{k}": v for k, v in vars(torch.nn.functional).items()}
        return repr(modules), hooks, {key: id(value) for key, value in globals_.items()}

    before, weights = state(), {key: value.clone() for key, value in case.model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), planted(name, case.model, case.config):
        raise KeyboardInterrupt
    assert state() == before
    for key, value in case.model.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_weights_on_a_grid():
    config = Config.from_dict(config_values(intermediate_size=256, hidden_size=200))
    weights = loud_weights(config)
    for name, w in on_grid(weights).items():
        if ".layers." not in name or w.ndim == 1 or w.shape[1] == 200:  # 200 columns are no whole groups
            assert np.array_equal(w, weights[name])
            continue
        assert np.array_equal(w, to_bf16(w))
        groups = w.astype(np.float64).reshape(len(w), -1, min(128, w.shape[1]))
        step = grid_steps(w).reshape(groups.shape)[..., :1]
        assert np.array_equal(np.round(groups / step) * step, groups)
        assert np.max(np.ptp(groups, axis=-1) / step[..., 0]) == 15
        assert np.linalg.norm(w - weights[name]) < 0.15 * np.linalg.norm(w)


@pytest.mark.parametrize("name", ["gptq-zero-high", "gptq-zero-low"])
def test_without_a_grid_there_is_no_step(name):
    case = small_case("gelu")
    with pytest.raises(ValueError, match="grid"), planted(name, case.model, case.config):
        pass

"""The rules of the house: who imports whom, contracts on every function of the spec, and what import costs."""

import ast
import subprocess
import sys

import numpy as np
import pytest

import qwq_ref
from qwq_ref import spec
from qwq_ref.config import Config
from qwq_ref.numerics import engine, fixed, key_bias, kv, quant
from qwq_ref.spec import model, ops
from tests.support import contracts
from tests.support.models import config_values, random_weights
from tests.support.paths import PACKAGE

# Imports go from a line to lines above it.
ORDER = [
    {"errors", "forms", "startup"},
    {"files", "tables", "text_files"},
    {"config", "sandbox"},
    {"footprint", "spec", "core"},
    {"numerics", "host", "tasks"},
    {"formats"},
    {"text"},
    {"interop"},
    {"engine"},
    {"oracle", "eval", "bench", "inside", "plots", "cluster"},
    {"serve"},
    {"train"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def imports(path):
    """The absolute names of all modules that a file imports, at its top or within functions."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    package = parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def sources():
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", sorted((PACKAGE / "spec").glob("*.py")), ids=lambda path: path.name)
def test_the_spec_imports_numpy_and_the_config_and_nothing_else(path):
    for name in imports(path):
        allowed = (
            "numpy",
            "qwq_ref.spec",
            "qwq_ref.config",
            "__future__",
            "typing",
            "collections.abc",
            "dataclasses",
            "math",
        )
        assert name.startswith(allowed), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own in ("__init__", "__main__"):
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "qwq_ref" and parts[1] != own and parts[1] in LEVEL:
            assert LEVEL[parts[1]] < LEVEL[own], f"{path.name} ({own}) imports {name}"


def test_every_module_has_a_place_in_the_order():
    assert {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in sources()} <= set(LEVEL) | {
        "__init__",
        "__main__",
    }


def test_every_function_of_the_spec_has_a_contract_and_is_checked():
    functions = contracts.public_functions()
    assert len(functions) >= 60
    for function in functions.values():
        contracts.parse(function)
    contracts.called.clear()
    config = Config.from_dict(config_values())
    for dtype in ("bfloat16", "float16"):
        _, cache = spec.forward(config, random_weights(config, 0), [1, 2], tap=ops.no_tap, dtype=dtype)
    spec.crop(cache, 1)
    long = config.with_rope({"rope_theta": 1e4, "rope_type": "yarn", "original_max_position_embeddings": 16}, "test")
    spec.rope_frequencies(long.rope, config.E)
    spec.generate(config, random_weights(config, 0), [1, 2], spec.Sampling(), np.random.default_rng(0), 1)
    spec.distribution(np.zeros(9), spec.Sampling(0.5, 3, 0.9, 0.1, 1.1, 0.1), [0], [1])
    spec.distribution(np.zeros(9), spec.Sampling(typical_p=0.9, top_n_sigma=1.0, logit_bias={0: 1.0}))
    spec.draw(np.ones(3) / 3, np.random.default_rng(0))
    codes, scales = np.zeros((3, 64), np.uint8), np.ones((3, 1), np.float16)
    quant.quantise_q4(np.ones((2, 64), np.float32))
    quant.quantise_q8(np.ones((2, 64), np.float32))
    quant.dequantise(quant.levels(codes, scales.astype(np.uint8)), scales)
    quant.super_scale(scales, np.ones((3, 8), np.int8))
    quant.matmul_integers(np.ones((2, 64), np.float32), codes, scales)
    quant.matmul_floats(np.ones((2, 64), np.float32), np.ones((3, 64), np.float32))
    rows = np.ones((2, 17), np.float32)
    fixed.rmsnorm(rows, rows[0], 1e-5)
    fixed.rope_tables(rows[0], 1.0, np.arange(3))
    fixed.softmax(rows)
    fixed.swiglu(rows, rows)
    fixed.top_k(rows[0], 2)
    fixed.uniform(0, 0)
    few = fixed.exp(np.ones((2, 1, 4), np.float32))
    tables = fixed.rope_tables(np.ones(2, np.float32), 1.0, np.arange(1024))
    turns = key_bias.turns_of(*tables, *(table[:1] for table in tables))
    bias = key_bias.key_bias(few[:, 0], np.full((1, 4), 9, np.float32), turns)
    held = *kv.quantise_kv(few, 2, bias.key_gain, bias.center), *kv.quantise_kv(few)
    kv.attention_int8(few, *held, np.ones((2, 2), bool), bias=bias)
    kv.attention_fp32(few, few, few, np.ones((2, 2), bool))
    prepared = engine.prepare(config, random_weights(config, 0), "q8")
    engine.forward(config, prepared, [1, 2], engine.empty_cache(config, "int8"))
    assert contracts.called | {"exact", "no_tap"} == set(functions)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("rmsnorm", (np.ones((3, 8)), np.ones(7), 1e-5)),
        ("rmsnorm", (np.ones((3, 8, 1)), np.ones(8), 1e-5)),
        ("linear", (np.ones((3, 8)), np.ones((8, 3)))),
        ("linear", (np.ones((3, 8)), np.ones((4, 8)), np.ones(8))),
        ("swiglu", (np.ones((3, 8)), np.ones((3, 9)))),
        ("rope", (np.ones((3, 2, 8)), np.ones((3, 4)), np.ones((3, 4)))),
        ("embed", (np.ones((3, 1), int), np.ones((5, 8)))),
    ],
)
def test_a_wrong_shape_breaks_a_contract(name, arguments):
    with pytest.raises(AssertionError, match="contract"):
        getattr(ops, name)(*arguments)


def test_a_config_in_sight_fixes_the_letters():
    """Within forward, D is the config's: two arrays that agree with each other, but not with it, are caught."""
    config = Config.from_dict(config_values())
    halves = {
        name: value[..., : value.shape[-1] // 2] if value.shape[-1] == config.D else value
        for name, value in random_weights(config, 0).items()
    }
    with pytest.raises(AssertionError, match="contract"):
        model.forward(config, halves, [1])


def test_what_import_and_help_leave_out():
    """The packages that take long to import are for those who use them."""
    script = "import sys, qwq_ref, qwq_ref.cli; print(sorted(set(sys.modules) & set(%r)))"
    heavy = ["numpy", "torch", "transformers", "tokenizers", "jinja2", "huggingface_hub", "tqdm"]
    done = subprocess.run([sys.executable, "-c", script % heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_load_and_spec_are_found_at_the_top():
    assert qwq_ref.spec is spec
    assert qwq_ref.load.__module__ == "qwq_ref.engine.loader"
    assert {"load", "spec", "text"} <= set(dir(qwq_ref))
    with pytest.raises(AttributeError):
        _ = qwq_ref.nothing

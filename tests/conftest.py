"""Profiles, the long tier, the real tier, and the enforcement of the spec's shape contracts in every test."""

import os

# Before NumPy and torch: pytest-xdist's workers own the cores, one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
from hypothesis import HealthCheck, settings

from qwq_ref import core
from tests.support import contracts, real_models
from tests.support.hub_server import hub, local_hub  # noqa: F401
from tests.support.shared_data import shared_data  # noqa: F401
from tests.support.small_tokenizer import (  # noqa: F401
    folder,
    real,
    real_folder,
    real_hf,
    real_plain_hf,
    small,
    small_hf,
    small_plain_hf,
)

if not core.available():  # each process that a test starts would say so
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning")

_common = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fast", max_examples=60, derandomize=True, database=None, **_common)
settings.register_profile("long", max_examples=10_000, **_common)
settings.load_profile("fast")


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="10,000 Hypothesis examples a test, and the tests marked long")
    parser.addoption("--real", action="store_true", help="the tests marked real, and no others: see QWQ_REF_MODELS")
    parser.addoption("--browser", action="store_true", help="run the tests of the page, too: see the mark browser")


def pytest_configure(config):
    if config.getoption("--long"):
        settings.load_profile("long")


def pytest_report_header(config):
    problem = real_models.missing()
    return f"real tier: every test is skipped: {problem}" if config.getoption("--real") and problem else None


def pytest_collection_modifyitems(config, items):
    of_tier = [item for item in items if item.get_closest_marker("real")]
    if config.getoption("--real"):
        config.hook.pytest_deselected(items=[item for item in items if item not in of_tier])
        items[:] = of_tier
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="long tier: run with --long"))
        if item.get_closest_marker("browser") and not (config.getoption("--browser") or config.getoption("--long")):
            item.add_marker(pytest.mark.skip(reason="browser tier: run with --browser"))
        if item.get_closest_marker("real") and not config.getoption("--real"):
            item.add_marker(pytest.mark.skip(reason="real tier: run with --real, and QWQ_REF_MODELS=FOLDER"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    real_models.tier = item.get_closest_marker("real") is not None


@pytest.fixture(autouse=True, scope="session")
def shape_contracts():
    with contracts.enforced():
        yield

"""Profiles, the tiers of tests, and the enforcement of the spec's shape contracts in every test."""

import os

# Before NumPy and torch: pytest-xdist's workers own the cores, one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
from hypothesis import HealthCheck, settings

from qwq_ref import core
from tests.support import client_programs, contracts, real_models
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


TIERS = {"real": real_models, "clients": client_programs}  # mark and option -> the module that knows its folder


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="10,000 Hypothesis examples a test, and the tests marked long")
    for name, module in TIERS.items():
        parser.addoption(
            f"--{name}", action="store_true", help=f"the tests marked {name}, and no others: see {module.VARIABLE}"
        )
    parser.addoption("--browser", action="store_true", help="run the tests of the page, too: see the mark browser")


def pytest_configure(config):
    if config.getoption("--long"):
        settings.load_profile("long")


def pytest_report_header(config):
    problems = {name: module.missing() for name, module in TIERS.items() if config.getoption(f"--{name}")}
    return [f"{name} tier: every test is skipped: {problem}" for name, problem in problems.items() if problem]


def pytest_collection_modifyitems(config, items):
    chosen = {name for name in TIERS if config.getoption(f"--{name}")}
    if chosen:
        of_tier = [item for item in items if any(item.get_closest_marker(name) for name in chosen)]
        config.hook.pytest_deselected(items=[item for item in items if item not in of_tier])
        items[:] = of_tier
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="long tier: run with --long"))
        if item.get_closest_marker("browser") and not (config.getoption("--browser") or config.getoption("--long")):
            item.add_marker(pytest.mark.skip(reason="browser tier: run with --browser"))
        for name, module in TIERS.items():
            if item.get_closest_marker(name) and name not in chosen:
                reason = f"{name} tier: run with --{name}, and {module.VARIABLE}=FOLDER"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    for name, module in TIERS.items():
        module.tier = item.get_closest_marker(name) is not None


@pytest.fixture(autouse=True, scope="session")
def shape_contracts():
    with contracts.enforced():
        yield

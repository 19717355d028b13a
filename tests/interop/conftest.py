"""llama-cpp-python and gguf are not among the test dependencies: tests that need them are skipped without."""

import pytest

from qwq_ref.interop.llama_cpp.gguf import QUANTS, write_gguf
from tests.support.gguf_models import peer_config


@pytest.fixture(scope="session")
def gguf():
    """The package gguf, where llama-cpp-python is installed, too."""
    pytest.importorskip("llama_cpp", reason="runs the real llama.cpp: pip install 'qwq_ref[bench]'")
    return pytest.importorskip("gguf", reason="writes models for the real llama.cpp: pip install 'qwq_ref[bench]'")


@pytest.fixture(scope="session")
def files(gguf, tmp_path_factory):
    """{quant: a GGUF file of `peer_config`}."""
    folder = tmp_path_factory.mktemp("peer")
    for quant in QUANTS:
        write_gguf(folder / f"{quant}.gguf", peer_config(), quant)
    return {quant: folder / f"{quant}.gguf" for quant in QUANTS}

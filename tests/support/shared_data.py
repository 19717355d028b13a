"""QwQ-32B's own tokenizer, template and config, and GSM8K text, if this machine has them."""

import os
from pathlib import Path

import pytest

from tests.support.paths import ROOT


@pytest.fixture(scope="session")
def shared_data():
    folder = Path(os.environ.get("QWQ_REF_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            f"the real model's files are not at {folder}: set QWQ_REF_DATA to the folder that holds qwq-32b/ and gsm8k/"
        )
    return folder

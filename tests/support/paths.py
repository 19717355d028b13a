"""Where the project's own files lie."""

from pathlib import Path

import qwq_ref

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PACKAGE = Path(qwq_ref.__file__).parent
QWQ_CONFIG = PACKAGE / "models" / "qwq-32b" / "config.json"

"""The configuration of the documentation site.

    pip install -e '.[docs]'
    sphinx-build -W docs build/site

The API pages are made from the docstrings. Docstrings are plain text with Markdown's inline code; the hook at the end
translates them for Sphinx.
"""

import itertools
import re
from pathlib import Path

import qwq_ref

project = "qwq_ref"
author = "The qwq_ref developers"
version = release = qwq_ref.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.apidoc"]
exclude_patterns = ["_build", "api/modules.rst"]
html_theme = "furo"
html_title = f"qwq_ref {version}"
html_show_copyright = False

nb_execution_mode = "off"  # notebooks are stored with their output
myst_heading_anchors = 3  # links such as kernels.md#the-ceilings

package = Path(qwq_ref.__file__).parent
apidoc_modules = [
    {
        "path": str(package),
        "destination": "api",
        # The build script compiles on import; __main__ runs the command line.
        "exclude_patterns": [str(package / "core" / "build.py"), str(package / "__main__.py")],
        "separate_modules": True,
        "module_first": True,
    }
]
apidoc_automodule_options = {"members"}
autodoc_default_options = {"ignore-module-all": True}  # names are documented where they are defined
autodoc_member_order = "bysource"
autodoc_mock_imports = ["torch", "transformers", "llama_cpp", "gguf", "lm_eval"]  # optional packages
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: name for name in ("Array", "Round", "Tap")}

SHAPES = re.compile(r"(?=.*(\[|->))[\w \[\],./*+-]*(->)?[\w \[\],./*+-]*")
EMPHASIS = r"(?<!\w)\*(?:\w[\w -]*\w)\*(?!\w)"


def escape(match):
    return f"\\{match[1]}" if match[1] else match[0]


def leave_out_links_to_sources(app, name, source):
    """Links that leave docs/ lead to source files, which the site does not hold: keep their text."""
    source[0] = re.sub(r"\[([^\]]*)\]\(\.\./[^)]*\)", r"\1", source[0])


def docstring_to_rst(app, what, name, thing, options, lines):
    """Translate a docstring in place: the shape contract, inline code, indented blocks, and characters of RST."""
    made = []
    for code, group in itertools.groupby(lines, lambda line: line.startswith("    ")):
        block = list(group)
        if code:
            made += ["", "::", "", *block, ""]
            continue
        if not made and SHAPES.fullmatch(block[0]):
            made.append(f"Shapes: ``{block.pop(0)}``")
        parts = re.split(r"(`+[^`]*`+)", "\n".join(block))  # inline code may go on in the next line
        parts[::2] = [re.sub(EMPHASIS + r"|([*|\\]|_(?=\W|$))", escape, part) for part in parts[::2]]
        parts[1::2] = [f"``{part.strip('`')}``\\ " for part in parts[1::2]]
        made += "".join(parts).split("\n")
    lines[:] = made


def short_aliases(app, what, name, thing, options, signature, returned):
    """The alias's name, where Sphinx writes TypeAliasForwardRef."""
    return tuple(text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text) for text in (signature, returned))


def setup(app):
    app.connect("source-read", leave_out_links_to_sources)
    app.connect("autodoc-process-docstring", docstring_to_rst)
    app.connect("autodoc-process-signature", short_aliases)

"""The table of weight forms: how a whole model's weights are kept, and the KV cache that goes with each.

Loader, converter, commands, benchmarks and oracle all read this table. `engine.plan` turns a line of it into sizes.
The module imports no other one, so that `qwq --help` stays fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Form:
    """One weight form.

    matrix     format of the layers' matrices, a name of `core.FORMATS`
    head       format of the output head, whose errors matter most
    embedding  dtype of the embedding, "F32" or "BF16"; norms and biases are F32 in every form
    kv         the cache form that goes with it, a name of `KV_FORMS`
    floats     whether products are computed in floats, and not on int8 activations
    only_from  the checkpoint's dtype that this form keeps exactly and requires; None: any
    """

    matrix: str
    head: str
    embedding: str
    kv: str
    floats: bool
    only_from: str | None = None


FORMS = {
    "fp32": Form("fp32", "fp32", "F32", "fp32", floats=True),
    "bf16": Form("bf16", "bf16", "BF16", "fp32", floats=True, only_from="BF16"),
    "q8": Form("q8", "q8", "BF16", "int8", floats=False),
    "q4": Form("q4", "q8", "BF16", "int8", floats=False),
}  # the most exact first
FILE = "file"  # the name of the form of a `FileForm`


@dataclass(frozen=True, eq=False)
class FileForm:
    """The weight form of one quantised file: each matrix in a format of its own, which holds its numbers without loss.

    formats  name of `Config.tensors` -> `core.Format` of each matrix
    kv       the cache form that goes with it
    columns  name -> int32 [K], the order of a matrix's packed columns, where it is not the matrix's own
    """

    formats: Mapping[str, Any]
    kv: str
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return FILE


AnyForm = str | FileForm  # a name of `FORMS`, or the form of a file


def same_columns(first: Any, second: Any) -> bool:
    """Return whether two orders of columns are the same; None is the matrix's own."""
    if first is None or second is None:
        return first is second
    return bool((first == second).all())


def cache_form(form: AnyForm) -> str:
    """Return the cache form that goes with a weight form."""
    return form.kv if isinstance(form, FileForm) else FORMS[form].kv


KV_FORMS = ("fp32", "int8")  # forms of the KV cache, the most exact first

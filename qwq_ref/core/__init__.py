"""The C core: NumPy in, NumPy out. A function has the name and argument order of its reference in `numerics`.

A wrapper checks types, shapes and contiguity, and allocates the result; C checks sizes once more. Every instruction
set and every number of threads gives the same bits.
"""

from ._ffi import Array, CoreError, OutOfRange, Stop, Stopped, available, ffi, lib
from .blocks import BLOCK_TYPES, block_of, pack_blocks
from .formats import ALIGN, CODES, FORMATS, LARGEST, PANEL, SCALES, Format, packed_bytes
from .isa import FEATURES, ISAS, chosen_isa, features, isas, needs
from .matmul import matmul, quantise_activations
from .memory import aligned
from .threads import MOST_THREADS
from .weights import Packed, Words, empty, interleave, pack, quantise, quantise_q4, quantise_q8, unpack_rows

__all__ = [
    "ALIGN",
    "BLOCK_TYPES",
    "CODES",
    "FEATURES",
    "FORMATS",
    "ISAS",
    "LARGEST",
    "MOST_THREADS",
    "PANEL",
    "SCALES",
    "Array",
    "CoreError",
    "Format",
    "OutOfRange",
    "Packed",
    "Stop",
    "Stopped",
    "Words",
    "aligned",
    "available",
    "block_of",
    "chosen_isa",
    "empty",
    "features",
    "ffi",
    "interleave",
    "isas",
    "lib",
    "matmul",
    "needs",
    "pack",
    "pack_blocks",
    "packed_bytes",
    "quantise",
    "quantise_activations",
    "quantise_q4",
    "quantise_q8",
    "unpack_rows",
]

"""How fast the matrices of quantised files are packed: the commands `gguf`, `awq`, `gptq` and `mlx` of `load_time`."""

import json
import time
from statistics import median

import numpy as np
from safetensors.numpy import save_file

from qwq_ref import core
from qwq_ref.config import Config
from qwq_ref.engine.packing import in_one_piece
from qwq_ref.engine.reading import in_memory
from qwq_ref.formats import open_source
from qwq_ref.formats.gguf import blocks
from qwq_ref.formats.gguf.types import TYPES
from qwq_ref.formats.parts import Parts
from tests.support.models import config_values

ROWS, COLUMNS = 640, 1536  # a piece that stays in the processor's cache
TURNS = 5
SIZES = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 2, "vocab_size": 4096}
SIZES |= {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128}


def seconds(call):
    """The shortest processor time of several calls."""
    times = []
    for _ in range(3 * TURNS):
        begun = time.process_time()
        call()
        times.append(time.process_time() - begun)
    return min(times)


def measure_types():
    """Each type of GGUF's, one thread, from memory to memory."""
    rng, kinds = np.random.default_rng(0), {kind.name: kind for kind in TYPES.values()}
    print(f"{'type':<8}{'C, GB/s of file':>18}{'NumPy':>8}{'ratio':>8}   one thread, {ROWS} rows of {COLUMNS}")
    for name in core.BLOCK_TYPES:
        kind, (format, columns, size) = kinds[name], core.block_of(name)
        data = rng.integers(0, 256, (ROWS, COLUMNS // columns * size), np.uint8)
        out = core.empty(format, (ROWS, COLUMNS))
        fast = seconds(lambda name=name, data=data, out=out: core.pack_blocks(name, data, out))
        slow = seconds(lambda kind=kind, data=data, out=out: blocks.parts(kind, data).pack(out))
        print(f"{name:<8}{data.nbytes / fast / 1e9:18.2f}{data.nbytes / slow / 1e9:8.2f}{slow / fast:8.1f}")


def packed(source, threads):
    form = source.kept.form

    def tensors(allocate):
        return in_memory(source, form, threads, None, allocate)

    return in_one_piece(source.config, form, tensors)


def measure_file(path, turns=TURNS):
    """A whole file, from the system's cache to fresh memory, with one thread and with two."""
    with open_source(path) as source:
        size = sum(source.dtypes.values())
        of_threads = {1: [], 2: []}
        held = packed(source, 2)  # on a virtual machine, the first use of memory costs several times the second
        del held
        for _ in range(turns):
            for threads, times in of_threads.items():
                begun, used = time.perf_counter(), time.process_time()
                held = packed(source, threads)
                times.append((time.perf_counter() - begun, time.process_time() - used))
                del held
    for threads, times in of_threads.items():
        wall, cpu = (median(column) for column in zip(*times, strict=True))
        best = min(wall for wall, _ in times)
        speeds = [f"{size / taken / 1e9:.2f}" for taken in (wall, best, cpu)]
        print(
            f"{size / 1e9:.2f} GB, {threads} threads, GB/s of file: {speeds[0]}, best of {turns} {speeds[1]}; "
            f"{speeds[2]} of processor time"
        )


def measure_gguf(path):
    measure_types()
    if path is not None:
        measure_file(path)


def words(rng, *shape):
    return rng.integers(-(1 << 31), 1 << 31, shape, np.int32)


def awq(rng, N, K, bits, ordered):
    scales = np.full((K // 128, N), 2**-8, np.float16)
    return {"qweight": words(rng, K, N // 8), "qzeros": words(rng, K // 128, N // 8), "scales": scales}


def gptq(rng, N, K, bits, ordered):
    scales = np.full((K // 128, N), 2**-8, np.float16)
    of = np.arange(K, dtype=np.int32) // 128
    zeros = np.full((K // 128, N * bits // 32), 0x77777777, np.int32)
    given = {"qweight": words(rng, K * bits // 32, N), "qzeros": zeros, "scales": scales}
    return given | {"g_idx": np.random.default_rng(K).permutation(of) if ordered else of}


def mlx(rng, N, K, bits, ordered):
    scales = np.full((N, K // 64), 2**-8, np.float16)
    return {"weight": words(rng, N, K * bits // 32).view(np.uint32), "scales": scales, "biases": scales}


METHODS = {
    "awq": (awq, [(4, False)]),
    "gptq": (gptq, [(4, False), (4, True), (8, False), (3, False)]),
    "mlx": (mlx, [(4, False), (8, False), (3, False), (5, False), (6, False)]),
}


def settings(method, bits, ordered):
    if method == "mlx":
        return {"quantization": {"bits": bits, "group_size": 64}}
    own = {"awq": {"zero_point": True, "version": "gemm"}, "gptq": {"desc_act": ordered, "sym": False}}[method]
    return {"quantization_config": {"quant_method": method, "bits": bits, "group_size": 128} | own}


def measure_words(method, folder):
    """Checkpoints with random words, two layers wide."""
    matrix, kinds = METHODS[method]
    config = Config.from_dict(config_values(**SIZES))
    for bits, ordered in kinds:
        path, rng, tensors = folder / f"{method}-{bits}{'-ordered' * ordered}", np.random.default_rng(0), {}
        for name, shape in config.tensors().items():
            if len(shape) == 2 and ".layers." in name:
                leaves = matrix(rng, *shape, bits, ordered)
                tensors |= {f"{name.removesuffix('.weight')}.{leaf}": value for leaf, value in leaves.items()}
            else:
                tensors[name] = np.ones(shape, np.float16)
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(config.to_dict() | settings(method, bits, ordered)))
        save_file(tensors, path / "model.safetensors")
        print(f"{method} {bits} bits{', in an order of groups' * ordered}")
        with open_source(path) as source:
            compare(source)
        measure_file(path)


def compare(source):
    """One matrix, one thread: C beside NumPy."""
    name = "model.layers.0.mlp.up_proj.weight"
    place, kept = source._places[name], source.kept
    N, K = place.shape
    out = core.empty(place.format, (N, K))
    kept.pack(name, 0, N, out)  # tensors that are held whole are read
    step = 512

    def fast():
        for n in range(0, N, step):
            kept.pack(name, n, n + step, out.rows(n, n + step))

    def slow():
        for n in range(0, N, step):
            rows: Parts = kept.parts(name, n, n + step)
            rows.pack(out.rows(n, n + step))

    found = [place.nbytes / seconds(call) / 1e9 for call in (fast, slow)]
    print(
        f"one matrix, one thread: C {found[0]:.2f} GB/s of file, NumPy {found[1]:.2f}, ratio {found[0] / found[1]:.1f}"
    )

"""Loading: the form and the context that fit in memory, and refusals before any weight is read."""

import itertools
import re
import threading

import pytest

import qwq_ref
from qwq_ref import core
from qwq_ref.cli import main
from qwq_ref.engine import loader
from qwq_ref.engine.fit import core_needs
from qwq_ref.errors import MemoryLimitError, TemplateError, UsageError
from qwq_ref.formats import Checkpoint, safetensors
from qwq_ref.formats import checkpoint as reader
from qwq_ref.host import memory

FORMS = [("fp32", "fp32"), ("q8", "int8"), ("q4", "int8")]


def test_a_model_that_does_not_fit_is_refused_before_loading(random_folder, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 150_000)
    monkeypatch.setattr("qwq_ref.formats.checkpoint.Checkpoint.__getitem__", None)
    with pytest.raises(
        MemoryLimitError, match=r"needs .* \(weights .* \+ KV cache .* \+ scratch .*\), but .* available"
    ):
        qwq_ref.load(random_folder)


@pytest.mark.parametrize(("backend", "available"), [("core", 4 << 20), ("numpy", 12 << 20)])
def test_the_context_shrinks_to_what_fits_unless_it_was_asked_for(random_folder, monkeypatch, backend, available):
    if backend == "core" and not core.available():
        pytest.skip("the C core is not built: there was no compiler")
    how = {"backend": backend, "weights": "fp32"}
    assert qwq_ref.load(random_folder, **how).context == 4096
    monkeypatch.setattr(memory, "available_bytes", lambda: available)
    smaller = qwq_ref.load(random_folder, **how).context
    assert 256 <= smaller < 4096
    with pytest.raises(MemoryLimitError):
        qwq_ref.load(random_folder, context=4096, **how)
    with pytest.raises(UsageError, match="ctx-size"):
        qwq_ref.load(random_folder, context=4097, **how)


def test_memory_is_announced_before_anything_is_read(random_folder, monkeypatch, capfd):
    """The line lists weights, cache and scratch. The command prints it for a large model, or with -v."""
    lines = []
    monkeypatch.setattr(Checkpoint, "rows", lambda *a: pytest.fail("it was read"))
    monkeypatch.setattr(Checkpoint, "__getitem__", lambda *a: pytest.fail("it was read"))

    def announce(line, size):
        lines.append((line, size))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qwq_ref.load(random_folder, context=300, announce=announce)
    ((line, size),) = lines
    assert re.fullmatch(
        r"(numpy, )?weights fp32, KV cache fp32, 300 tokens of context: weights .* \+ KV cache .* \+ scratch .* = "
        r".* available",
        line,
    )
    assert size > 0
    monkeypatch.undo()
    for arguments, announced in (((), False), (("-v",), True)):
        assert main(["generate", "hello", "-n", "1", "-m", str(random_folder), *arguments]) == 0
        assert ("tokens of context: weights" in capfd.readouterr().err) == announced
    monkeypatch.setattr("qwq_ref.cli.loading._LARGE", 1)
    assert main(["generate", "hello", "-n", "1", "-m", str(random_folder)]) == 0
    assert "tokens of context: weights" in capfd.readouterr().err


@pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")
def test_of_a_large_checkpoint_no_second_copy_stays_in_memory(random_folder, monkeypatch):
    """The system is told to forget each slice after its reading: all bytes of all tensors."""
    told = []
    monkeypatch.setattr(safetensors, "forget_range", lambda _, begin, count: told.append((begin, begin + count)))
    qwq_ref.load(random_folder)
    assert not told, "a small one may stay"
    monkeypatch.setattr(reader, "DROP_FROM", 1)
    qwq_ref.load(random_folder)
    with Checkpoint.open(random_folder) as checkpoint:
        wanted = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    told.sort()
    assert sum(end - begin for begin, end in told) == wanted
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(told))


@pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")
def test_less_memory_takes_smaller_weights(random_folder, monkeypatch):
    """`load` takes the most exact form that fits, and a requested form or none."""
    needs = {form: sum(core_needs(qwq_ref.load(random_folder).config, form, kv)(256).values()) for form, kv in FORMS}
    assert needs["fp32"] > needs["q8"] > needs["q4"]
    for form, _ in FORMS:
        monkeypatch.setattr(memory, "available_bytes", lambda form=form: needs[form])
        assert qwq_ref.load(random_folder).backend.form == form
    with pytest.raises(MemoryLimitError, match="weights"):
        qwq_ref.load(random_folder, weights="fp32")
    monkeypatch.setattr(memory, "available_bytes", lambda: needs["q4"] - 1)
    with pytest.raises(MemoryLimitError):
        qwq_ref.load(random_folder)


@pytest.mark.parametrize("backend", ["core", "numpy"])
def test_a_template_that_does_not_compile_is_refused(random_folder, tmp_path, backend):
    if backend == "core" and not core.available():
        pytest.skip("the C core is not built: there was no compiler")
    file = tmp_path / "bad.jinja"
    file.write_text("{% if %}")
    with pytest.raises(TemplateError, match="line 1"):
        qwq_ref.load(random_folder, backend=backend, chat_template=file)


def test_a_bad_template_stops_the_reading_of_weights():
    """Weights are read while the template is compiled. The next report of progress raises the error."""
    counts, released = [], threading.Event()

    class Template:
        def check(self):
            released.wait(60)
            raise TemplateError(None, None, "is wrong")

    progress, compiled = loader._until_compiled(Template(), counts.append)
    progress(1)
    released.set()
    assert isinstance(compiled.exception(60), TemplateError)
    with pytest.raises(TemplateError):
        progress(2)
    assert counts == [1]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"backend": "gpu"}, "backend: must be one of core, numpy, got gpu"),
        ({"weights": "q2"}, "weights: must be one of fp32, bf16, q8, q4, file, got q2"),
        ({"kv": "fp8"}, "kv: must be one of fp32, int8"),
        ({"threads": 0}, "threads: must be at least 1"),
        ({"backend": "numpy", "weights": "q4"}, "backend: numpy has fp32 weights"),
    ],
)
def test_unknown_choices_are_refused(random_folder, how, message):
    with pytest.raises(UsageError, match=message):
        qwq_ref.load(random_folder, **how)

"""The program in a completion, in the forms in which models give it."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.tasks.verifiers.extract import answer, extract_code

CODE = "def f(x):\n    return x\n"


@pytest.mark.parametrize(
    "completion",
    [
        f"```python\n{CODE}```",
        f"Here it is:\n\n```python\n{CODE}```\nIt returns x.",
        f"```py\n{CODE}```",
        f"``` Python3 \n{CODE}```",
        f"```\n{CODE}```",
        f"```python\nwrong\n```\nBetter:\n```python\n{CODE}```",
        f"```python\n{CODE}```\nOutput:\n```text\n3\n```",
        f"```python\n{CODE}```\nOutput:\n```\n3\n```",
        f"<think>\n```python\nwrong\n```\n</think>\n```python\n{CODE}```",
        f"</think>a</think>```\n{CODE}```",
        f"~~~python\n{CODE}~~~",
        f"````python\n{CODE}````",
        f"  ```python\n{CODE}  ```",
        f"```python\n{CODE}",
        f"Sure:\n```python\n{CODE}`",
        CODE,
        f"<think>wrong</think>{CODE}",
        f"```python\n{CODE}```\nrest that opens\n```python\ncut o",
    ],
)
def test_completions(completion):
    found = extract_code(completion)
    assert found.removesuffix("`\n") == CODE, found


def test_a_fence_within_a_docstring_ends_nothing():
    code = 'def f(x):\n    """\n    >>> ```python\n    ```python x\n    """\n'
    assert extract_code(f"```python\n{code}```") == code


@pytest.mark.parametrize("name", ["f", "missing", "", "f(", "\\"])
def test_a_block_that_defines_the_function_comes_first(name):
    completion = f"```python\n{CODE}```\nExample:\n```python\nprint(f(3))\n```"
    assert extract_code(completion, name) == (CODE if name == "f" else "print(f(3))\n")


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("", ""),
        ("a", "a"),
        ("<think>a</think>b", "b"),
        ("a</think>b</think>c", "c"),
        ("<think>a", ""),
        ("  \n<think>a", ""),
        ("write <think> here", "write <think> here"),
    ],
)
def test_the_answer_is_after_the_reasoning(completion, text):
    assert answer(completion) == text


@given(st.text(alphabet="`~ python\ndef f(:<think></think>"))
def test_any_text_has_a_program(text):
    assert isinstance(extract_code(text, "f"), str)


@pytest.mark.parametrize("text", ["```" * 100_000, "```\n" * 100_000, "`" * 300_000, "```python" + " " * 300_000 + "`"])
def test_long_texts_take_no_time(text):
    began = time.monotonic()
    extract_code(text, "f")
    assert time.monotonic() - began < 10

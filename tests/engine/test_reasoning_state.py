"""Where an output stands, from its tokens to the last message: pieces, JSON, both streams and the message agree."""

import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from qwq_ref.errors import UsageError
from qwq_ref.text import load_tokenizer
from tests.support.markers import KINDS
from tests.support.scripts import Given, command, model_that_says, read, report
from tests.support.small_tokenizer import VALUES

EMOJI = [VALUES["model"]["vocab"][token] for token in "ðŁĺĢ"]  # the four bytes of one character
ENOUGH = "\n\nI have thought long enough; here is the answer.\n"
OPENS, CLOSES, ENDS = "<|im_start|>assistant\n<think>\n", "</think>", "<|im_end|>"


@pytest.fixture(scope="module")
def ids(small):
    def ids(*parts):
        """Text and ids -> ids; the markers and other added tokens in a text become their tokens."""
        return [i for part in parts for i in ([part] if isinstance(part, int) else small.encode(part, special=True))]

    return ids


@pytest.fixture(scope="module")
def says(small, ids):
    def says(*parts, prompt=OPENS, **more):
        return model_that_says(small, ids(*parts), Given(ids(prompt)), **more)

    return says


# --- Each way to open, to close and to end ---------------------------------------------------------------------------

# (prompt, output, options) -> reasoning, answer, finish_reason, a part of the message
CASES = {
    "the prompt opens": ((OPENS, "so</think>\n\n4", {}), "so", "4", "stop", None),
    "the model opens": (("x", "<think>so</think>\n\n4", {}), "so", "4", "stop", None),
    "both open": ((OPENS, "<think>\nso</think>4", {}), "\nso", "4", "stop", None),
    "opened twice": (("x", "<think>a<think>b</think>4", {}), "ab", "4", "stop", None),
    "closed twice": ((OPENS, "so</think></think>\n4</think>", {}), "so", "4", "stop", None),
    "closed and never opened": (("x", "4</think>5", {}), "", "45", "stop", None),
    "opened again": ((OPENS, "a</think>4<think>b</think>\n5", {}), "ab", "4\n5", "stop", None),
    "none at all": (("x", "\n\n4", {}), "", "\n\n4", "stop", None),
    "spelled, not written": ((OPENS, ["so ", ("</think>",), "</think>4"], {}), "so </think>", "4", "stop", None),
    "the budget closes": ((OPENS, "abcdef</think>4", {"think_budget": 2}), "ab" + ENOUGH, "cdef4", "stop", None),
    "closed after the budget": (
        (OPENS, ["a", "</think>", "</think>", "\n\n4"], {"think_budget": 1}), "a" + ENOUGH, "4", "stop", None),
    "opened after the budget": (
        (OPENS, ["a", "4", "<think>", "5"], {"think_budget": 1}), "a" + ENOUGH, "4\n\n5", "stop", None),
    "a budget for a model that opens": (
        ("x", ["hm", "<think>", "ab", "4"], {"think_budget": 2}), "ab" + ENOUGH, "hm\n\n4", "stop", None),
    "no reasoning, of a prompt that opens": ((OPENS, "\n4", {"think_budget": 0}), "", "4", "stop", None),
    "no reasoning, of a model that opens": (("x", "<think>4", {"think_budget": 0}), "", "4", "stop", None),
    "no reasoning, twice": (("x", "<think>4<think>5", {"think_budget": 0}), "", "4\n\n5", "stop", None),
    "a budget that is not spent": ((OPENS, "ab</think>4", {"think_budget": 9}), "ab", "4", "stop", None),
    "ended inside": (
        (OPENS, "so", {}), "so", "", "no_answer", "the model ended inside its reasoning, without an answer (2 tokens)"),
    "ended before a word": (
        (OPENS, "", {}), "", "", "no_answer", "the model ended inside its reasoning, without an answer (0 tokens)"),
    "ended inside what it opened": (
        ("x", "<think>so", {}), "so", "", "no_answer", "the model ended inside its reasoning, without an answer"),
    "ended after its reasoning": (
        (OPENS, "so</think>\n\n", {}), "so", "", "no_answer", "ended after its reasoning, without an answer"),
    "ended at once": (("x", "", {}), "", "", "no_answer", "the model gave no answer (0 tokens)"),
    "ended in blanks": (("x", " \n", {}), "", " \n", "no_answer", "the model gave no answer"),
    "ended inside a second reasoning": (
        (OPENS, "a</think>4<think>b", {}), "ab", "4", "stop", "inside its reasoning, after the answer (5 tokens)"),
    "no room to reason": (
        (OPENS, "abcdef", {"max_tokens": 2}), "ab", "", "length", "the reasoning used up max-tokens (2 tokens)"),
    "no room for the budget's words": (
        (OPENS, "abcdef", {"think_budget": 2, "max_tokens": 4}), None, "", "length", "the reasoning used up"),
    "no room after the reasoning": (
        (OPENS, "a</think>\n4", {"max_tokens": 3}), "a", "", "length", "the reasoning used up max-tokens (3 tokens)"),
    "no room for the whole answer": (
        (OPENS, "a</think>4567", {"max_tokens": 4}), "a", "45", "length", "the answer was cut off by max-tokens (4"),
    "no room without reasoning": (
        ("x", "4567", {"max_tokens": 2}), "", "45", "length", "the answer was cut off by max-tokens"),
    "no room for a second reasoning": (
        (OPENS, "a</think>4<think>bcd", {"max_tokens": 6}), "abc", "4", "length",
        "the reasoning after the answer used up max-tokens (6 tokens)"),
    "a character cut by the end": ((OPENS, ["</think>", *EMOJI[:3]], {}), "", "\ufffd", "stop", None),
    "a character cut by a marker": ((OPENS, [*EMOJI[:2], "</think>", *EMOJI], {}), "\ufffd", "😀", "stop", None),
    "a character cut by a limit": (
        (OPENS, ["</think>", *EMOJI], {"max_tokens": 3}), "", "\ufffd", "length", "the answer was cut off by"),
    "a control token in the middle": ((OPENS, "so<|im_start|>x</think>4", {}), "sox", "4", "stop", None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_way(small, says, ids, name):
    (prompt, output, options), thinking, answer, reason, message = CASES[name]
    parts = [output] if isinstance(output, str) else output
    parts = [i for part in parts for i in (small.encode(part[0]) if isinstance(part, tuple) else ids(part))]
    model = says(*parts, prompt=prompt)
    agree(model, thinking, answer, reason, message, **options)


def agree(model, thinking, answer, reason, message, **options):
    """Check the pieces of Python, the JSON and both streams against one truth. `thinking` None: anything."""
    generation = model.generate("what?", temperature=0, **options)
    said, answered = read(generation)
    thinking = said if thinking is None else thinking
    assert (said, answered, generation.run.finish_reason) == (thinking, answer, reason)
    assert (generation.ending is None) == (message is None)
    assert message is None or message in generation.ending
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    told, err = report(model, *flags)
    wanted = {"thinking": thinking, "answer": answer, "finish_reason": reason, "ending": generation.ending}
    assert {key: told[key] for key in wanted} == wanted
    assert told["thinking_tokens"] == generation.thinking_tokens
    line = f"qwq: {generation.ending}\n" if message else ""
    assert err == line
    for how in ("show", "hide", "only"):
        status, out, err = command(model, "--think", how, *flags)
        assert status == 0
        assert joined(out) == joined(thinking if how == "only" else answer)
        shown, found, rest = err.rpartition(line) if line else err.rpartition("prompt: ")
        assert found
        assert "qwq: " not in shown + rest
        assert joined(shown) == (joined(thinking) if how == "show" else "")


def joined(text):
    """Without line ends: the command puts some between the parts, which JSON tells apart."""
    return text.replace("\n", "")


# --- Words for what cannot be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, 5])
@pytest.mark.parametrize("prompt", [OPENS, "x"])
def test_a_budget_needs_a_token_that_closes(small, ids, tmp_path, budget, prompt):
    for kind in ("absent", "</think> absent"):
        (tmp_path / "tokenizer.json").write_text(json.dumps(KINDS[kind]))
        tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
        model = model_that_says(tokenizer, tokenizer.encode("a"), Given(tokenizer.encode(prompt, special=True)))
        with pytest.raises(UsageError, match=r"^think_budget: this model has no </think> token"):
            model.generate("what?", think_budget=budget)
        assert read(model.generate("what?", temperature=0))[1 - (kind == "</think> absent" and prompt == OPENS)] == "a"


# --- Any sequence of tokens ------------------------------------------------------------------------------------------


class Outputs(RuleBasedStateMachine):
    """A model that says one token more at each step. After each, it is as if the model ended there.

    The reference is written from the whole list of ids: the last marker before an id says what the id belongs to.
    """

    tokenizer = None  # set by the test

    @initialize(
        prompt=st.sampled_from([OPENS, "<|im_start|>assistant\n", f"{OPENS}\n{CLOSES}\n\n"]),
        budget=st.sampled_from([None, None, 0, 1, 2, 5]),
        limit=st.sampled_from([None, None, None, 4, 9, 30]),
    )
    def begin(self, prompt, budget, limit):
        self.prompt, self.budget, self.limit = self.tokenizer.encode(prompt, special=True), budget, limit
        self.opened = prompt == OPENS
        self.said = []

    @rule(
        texts=st.lists(st.sampled_from(["a", "4", "\n", " ", "<", "</think>", "<think>", ENDS]), min_size=1, max_size=3)
    )
    def say(self, texts):  # without added tokens: text that spells a marker is none
        self.said += [token for text in texts for token in self.tokenizer.encode(text)[:1]]

    @rule(count=st.integers(1, 4))
    def say_a_part_of_a_character(self, count):
        self.said += EMOJI[:count]

    @rule(
        token=st.sampled_from(["<think>", "</think>", "<|im_start|>", "<tool_call>", "<think>", "</think>"]),
        then=st.sampled_from(["", "\n", "\n\n", "4", "\n4"]),
    )
    def mark(self, token, then):
        self.said += [self.tokenizer.added[token], *self.tokenizer.encode(then)]

    def expected(self):
        """-> output ids, reasoning, answer, whether it ended at a limit, whether inside reasoning."""
        start, end = self.tokenizer.added["<think>"], self.tokenizer.added[CLOSES]
        closing = [end, *self.tokenizer.encode("\n\n")]
        before = [start] if self.opened and self.budget != 0 else [start, end] if self.opened else []
        output, announced = [], False

        def inside(ids):
            markers = [i for i in before + ids if i in (start, end)]
            return bool(markers) and markers[-1] == start

        def reasoned(ids):
            return [i for n, i in enumerate(ids) if i not in (start, end) and inside(ids[:n])]

        for token in self.said:
            output.append(token)
            if self.budget is not None and inside(output) and len(reasoned(output)) >= self.budget:
                output += [*([] if announced or not self.budget else self.tokenizer.encode(ENOUGH)), *closing]
                announced = True
            if self.limit is not None and len(output) >= self.limit:
                break
        cut = self.limit is not None and len(output) >= self.limit
        output = output[: self.limit]
        texts, runs = {True: "", False: ""}, []
        for n, i in enumerate(output):
            if i in (start, end) or not runs:
                runs.append((inside(output[: n + (i in (start, end))]), []))
            if i not in (start, end):
                runs[-1][1].append(i)
        for n, (thinking, ids) in enumerate(runs):
            text = self.tokenizer.decode(ids)
            seen = bool(before) or any(earlier for earlier, _ in runs[:n])
            texts[thinking] += text.lstrip("\n") if not thinking and seen and not texts[False] else text
        return output, texts[True], texts[False], cut, inside(output)

    def model(self):
        return model_that_says(self.tokenizer, self.said, Given(self.prompt))

    @property
    def options(self):
        return {"think_budget": self.budget} | ({} if self.limit is None else {"max_tokens": self.limit})

    @invariant()
    def pieces_and_state_are_those_of_the_reference(self):
        output, thinking, answer, cut, inside = self.expected()
        generation = self.model().generate("what?", temperature=0, **self.options)
        assert read(generation) == (thinking, answer)
        assert generation.run.output == output
        assert generation.still_thinking == inside
        blank = not answer.strip()
        assert generation.run.finish_reason == ("length" if cut else "no_answer" if blank else "stop")
        ending = generation.ending
        assert (ending is None) == (not cut and not inside and not blank)
        if ending is not None:
            assert ("reasoning" in ending) == (inside or (blank and self.reasoned(thinking, output)))
            assert ("max-tokens" in ending) == cut

    def reasoned(self, thinking, output):
        return self.opened or self.tokenizer.added["<think>"] in output

    def teardown(self):
        if hasattr(self, "said"):
            _, thinking, answer, _, _ = self.expected()
            generation = self.model().generate("what?", temperature=0, **self.options)
            read(generation)
            options = {name: value for name, value in self.options.items() if value is not None}
            agree(self.model(), thinking, answer, generation.run.finish_reason, generation.ending, **options)


def test_any_sequence_of_markers(small):
    machine = type("Outputs", (Outputs,), {"tokenizer": small})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=2 * settings.default.max_examples, stateful_step_count=6)
    )

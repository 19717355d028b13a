"""Suites without a model: an answerer that says what a table holds, and tasks that judge by equality."""

from qwq_ref.eval.suites.answers import Completion
from qwq_ref.eval.suites.suite import Form, Suite, Task
from qwq_ref.tasks.verifiers import Verdict


def verdict(correct):
    return Verdict(correct, "passed" if correct else "wrong", 0.0)


def task(identity, gold, group=""):
    return Task(identity, f"{identity}?", lambda answer: verdict(answer == gold), group)


def suite_of(count, begun="", **facts):
    """Tasks t0, t1, ... whose answers are a0, a1, ..."""
    return Suite("toy", [task(f"t{i}", f"{begun}a{i}") for i in range(count)], Form(begun=begun), 10, facts)


class Says:
    """Answers with `says(asked)`, in the order `order` of the questions; counts what it was asked."""

    def __init__(self, says, order=list):
        self.says, self.order, self.asked = says, order, []

    def __call__(self, asked):
        for one in self.order([*asked]):
            self.asked.append(one.key)
            yield one, completion(self.says(one))


def completion(text, reasoning="", tokens=3, reason="stop"):
    return Completion(text, reasoning, 5, tokens, len(reasoning), reason, 0.25)

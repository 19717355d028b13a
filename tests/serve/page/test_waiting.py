"""The page while it waits, and answers that are not whole."""

import threading

import pytest

from tests.support.browsers import Watched, refusal, scripted, stream
from tests.support.servers import serving

pytestmark = pytest.mark.browser

WARNINGS = [
    (
        "the reasoning used up max-tokens (20 tokens)",
        "The reasoning reached the largest number of tokens after 20 tokens",
    ),
    (
        "the answer was cut off by max-tokens (2000 tokens)",
        "cut off at the largest number of tokens after 2,000 tokens",
    ),
    ("the answer was cut off by the context (9 tokens)", "cut off at the end of the context after 9 tokens"),
    ("the output repeats itself: the last token came 8 times; x", "the loop guard ended it"),
    ("the model gave no answer (1 tokens)", "The model gave no answer (1 tokens)."),
]


@pytest.mark.parametrize(("ending", "words"), WARNINGS)
def test_a_limit_is_named(tab, ending, words):
    scripted(tab.page, stream("so", reasoning=["hm"], finish="length", ending=ending))
    tab.ask("go on")
    assert words in tab.page.locator(".note.warning").inner_text()


def test_the_server_s_own_words_for_limits_are_known(tab):
    tab.page.get_by_role("button", name="Settings").click()
    tab.page.get_by_label("Largest number of tokens").fill("20")
    tab.page.get_by_role("button", name="Save").click()
    tab.ask("What is 123+456?")
    note = tab.page.locator(".note.warning").inner_text()
    assert note.startswith("The reasoning reached the largest number of tokens after 20 tokens, so there is no answer.")
    assert "without an answer" in tab.page.locator(".fold summary").inner_text()


@pytest.mark.parametrize(("status", "code", "words"), [(429, "server_busy", "busy"), (503, "loading", "loading")])
def test_a_busy_server_is_asked_again(tab, status, code, words):
    busy = refusal(status, code, **{"retry-after": "1"})
    asked = scripted(tab.page, busy, busy, stream("here"))
    tab.page.get_by_label("Message", exact=True).fill("go on")
    tab.page.keyboard.press("Enter")
    tab.page.get_by_text(f"is {words}. The page asks again in 1 s.").wait_for()
    tab.until("document.querySelector('.assistant .body').textContent === 'here'")
    tab.finish()
    assert len(asked) == 3
    assert asked[0] == asked[2]


def test_waiting_can_be_stopped(tab):
    asked = scripted(tab.page, refusal(429, "server_busy", **{"retry-after": "60"}))
    tab.page.get_by_label("Message", exact=True).fill("go on")
    tab.page.keyboard.press("Enter")
    tab.page.get_by_text("The page asks again in").wait_for()
    tab.page.keyboard.press("Escape")
    tab.page.get_by_text("You stopped this answer before it began.").wait_for()
    assert len(asked) == 1


def test_a_lost_connection_keeps_the_text(tab):
    asked = scripted(tab.page, stream("half of ", "it", done=False), stream("whole"))
    tab.ask("go on")
    assert tab.answer.inner_text() == "half of it"
    tab.page.get_by_text("The connection was lost.").wait_for()
    tab.page.get_by_role("button", name="Try again").click()
    tab.until("document.querySelector('.assistant .body').textContent === 'whole'")
    assert len(asked) == 2
    tab.page.get_by_role("button", name="Earlier version").click()
    assert tab.answer.inner_text() == "half of it"


def test_a_server_that_is_gone(tab):
    scripted(tab.page, lambda route: route.abort())
    tab.ask("go on")
    assert "cannot be reached" in tab.page.locator(".note.error").inner_text()
    tab.faults[:] = [fault for fault in tab.faults if "net::ERR_FAILED" not in fault]


def test_a_conversation_that_does_not_fit(tab):
    tab.ask("a b c d e f g " * 200)
    assert "does not fit in the context" in tab.page.locator(".note.error").inner_text()


def test_a_long_prompt_shows_its_progress(tab, pace):
    pace.pace = 0.05
    tab.page.get_by_label("Message", exact=True).fill("a b " * 150)
    tab.page.keyboard.press("Enter")
    tab.until("/Reading the prompt: \\d+ of \\d+ tokens/.test(document.querySelector('.status')?.textContent)")
    assert tab.page.get_by_role("progressbar").is_visible()
    tab.page.keyboard.press("Escape")
    tab.finish()


def test_a_model_that_loads(browser, slow_nano, monkeypatch):
    monkeypatch.setattr("qwq_ref.serve.engine._WAIT", 1)
    loads = threading.Event()

    def load():
        loads.wait(20)
        return slow_nano[0]

    with serving(load, wait=False) as server:
        context = browser.new_context()
        tab = Watched(context, server.url)
        tab.page.goto(server.url)
        tab.page.get_by_text("The model is loading. You can write already.").wait_for()
        tab.page.get_by_label("Message", exact=True).fill("What is 5+6?")
        tab.page.keyboard.press("Enter")
        tab.page.get_by_text("The model is loading. The page asks again in").wait_for()
        loads.set()
        tab.until("document.querySelector('.assistant .body').textContent.includes('11')")
        tab.finish()
        tab.checked()
        context.close()


def test_a_server_with_a_key(browser, slow_nano):
    with serving(lambda: slow_nano[0], key="a-long-secret") as server:
        context = browser.new_context()
        tab = Watched(context, server.url)
        tab.page.goto(server.url)
        for key in ("wrong-secret", "a-long-secret"):
            tab.page.get_by_label("Key", exact=True).fill(key)
            tab.page.get_by_role("button", name="Go on").click()
        tab.ready()
        tab.ask("What is 5+6?")
        assert "11" in tab.answer.inner_text()
        assert tab.page.evaluate("JSON.stringify({...localStorage})").count("secret") == 0
        tab.checked()
        context.close()

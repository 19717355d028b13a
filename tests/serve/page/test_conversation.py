"""Conversations with the shipped model: asked, stopped, repeated, edited, kept, searched, exported."""

import json
import re

import pytest

from tests.support.browsers import Watched, downloaded
from tests.support.servers import until

pytestmark = pytest.mark.browser

SUM = "What is 123+456?"


def whole(tab):
    """The reasoning and the text of the last answer."""
    return tab.page.locator(".thinking").last.text_content() + tab.answer.inner_text()


def seed_of(tab):
    return re.search(r"seed (\d+)", tab.page.locator(".facts").last.inner_text())[1]


def test_a_question_is_answered_with_its_reasoning_folded(tab):
    tab.ask(SUM)
    assert "579" in tab.answer.inner_text()
    fold = tab.page.locator("details.fold")
    assert re.fullmatch(r"Thought for [\d.]+ s, \d+ tokens(, [\d.]+ tokens/s)?", fold.locator("summary").inner_text())
    thinking = tab.page.get_by_role("group", name="Reasoning")
    assert not thinking.is_visible()
    fold.locator("summary").click()
    assert "3+6+0=0" in thinking.inner_text()
    assert tab.page.title().startswith(SUM)
    assert re.fullmatch(r"\d+ of 1,024 tokens", tab.page.locator("#meter .meter-text").inner_text())


def test_an_answer_is_shown_while_it_comes_and_stops(tab, pace, server):
    pace.pace = 0.03
    box = tab.page.get_by_label("Message", exact=True)
    box.fill(SUM)
    box.press("Enter")
    summary = tab.page.locator("details.fold summary")
    tab.until("/Thinking for .* [3-9] tokens/.test(document.querySelector('.fold summary')?.textContent)")
    before = server.counts.cancelled
    tab.page.get_by_role("button", name="Stop").click()
    tab.finish()
    assert tab.page.get_by_text("You stopped this answer.").is_visible()
    assert "about" in summary.inner_text()
    until(lambda: server.counts.cancelled == before + 1 and server.counts.running == 0)
    kept = tab.page.locator(".thinking").text_content()
    assert kept.startswith("Reverse")
    tab.reload()
    assert tab.page.locator(".thinking").text_content() == kept
    assert tab.page.get_by_text("You stopped this answer.").is_visible()


def test_another_seed_gives_a_version_and_the_same_seed_the_same_answer(tab):
    hot = json.dumps({"temperature": 3, "max_tokens": 30})
    tab.page.evaluate(f"localStorage['qwq.settings'] = '{hot}'")
    tab.ask("write a text")
    first, seed = whole(tab), seed_of(tab)
    tab.page.get_by_role("button", name="Answer again with the same seed").click()
    tab.finish()
    tab.page.get_by_text("2 / 2").wait_for()
    assert (whole(tab), seed_of(tab)) == (first, seed)
    tab.page.get_by_role("button", name="Answer again with another seed").click()
    tab.finish()
    tab.page.get_by_text("3 / 3").wait_for()
    assert seed_of(tab) != seed
    assert whole(tab) != first
    tab.page.get_by_role("button", name="Earlier version").click()
    assert tab.page.get_by_text("2 / 3").is_visible()
    assert seed_of(tab) == seed
    tab.reload()
    assert tab.page.get_by_text("2 / 3").is_visible()


def test_an_edit_starts_a_branch_and_loses_nothing(tab):
    tab.ask(SUM)
    tab.page.locator(".user").hover()
    tab.page.get_by_role("button", name="Edit message").click()
    box = tab.page.get_by_role("textbox", name="Edit message")
    assert box.input_value() == SUM
    box.fill("What is 5+6?")
    tab.page.get_by_role("button", name="Send as a new branch").click()
    tab.page.get_by_text("2 / 2").wait_for()
    tab.finish()
    assert "11" in tab.answer.inner_text()
    tab.page.get_by_role("button", name="Earlier version").click()
    assert "579" in tab.answer.inner_text()
    assert tab.page.locator(".message").count() == 2


def test_a_reload_keeps_conversations_and_an_answer_that_was_coming(tab, pace):
    tab.ask(SUM)
    pace.pace = 0.02
    tab.page.get_by_label("Message", exact=True).fill("What is 789+123?")
    tab.page.keyboard.press("Enter")
    tab.until("document.querySelectorAll('.thinking')[1]?.textContent.length > 20")
    tab.reload()
    assert tab.page.locator(".message").count() == 4
    assert "579" in tab.page.locator(".assistant .body").first.inner_text()
    part = tab.page.locator(".thinking").nth(1).text_content()
    assert part.startswith("Reverse")
    assert len(part) > 20
    assert tab.page.get_by_text("The page was closed or loaded again during this answer.").is_visible()
    pace.pace = 0
    tab.page.get_by_role("button", name="Try again").click()
    tab.page.get_by_text("2 / 2").wait_for()
    tab.finish()
    assert "912" in tab.answer.inner_text()


def test_a_later_turn_sees_the_earlier_ones(tab):
    sent = []
    tab.page.on("request", lambda asked: sent.append(asked.post_data_json) if "chat" in asked.url else None)
    tab.ask(SUM)
    tab.ask("What is 5+6?")
    assert [message["role"] for message in sent[-1]["messages"]] == ["user", "assistant", "user"]
    assert "Reverse" not in sent[-1]["messages"][1]["content"]  # no reasoning


def test_conversations_are_chosen_renamed_searched_deleted_and_restored(tab):
    page = tab.page
    tab.ask(SUM)
    page.get_by_role("button", name="New conversation").click()
    tab.ask("What is 5+6?")
    rows = page.locator("#list li")
    assert rows.all_inner_texts() == ["What is 5+6?", SUM]
    rows.nth(1).locator(".open").click()
    tab.until("document.querySelector('#title').textContent === 'What is 123+456?'")
    assert "579" in tab.answer.inner_text()
    rows.nth(1).hover()
    page.get_by_role("button", name=f"Rename {SUM}").click()
    page.get_by_label("Title").fill("A <b>sum</b>")
    page.get_by_label("Title").press("Enter")
    assert page.locator("#title").inner_text() == "A <b>sum</b>"
    search = page.get_by_label("Search conversations")
    search.fill("579")  # of the answer, not of a title
    tab.until("document.querySelectorAll('#list li').length === 1")
    assert rows.all_inner_texts() == ["A <b>sum</b>"]
    search.fill("no such words")
    page.get_by_text("Nothing found.").wait_for()
    search.press("Escape")
    tab.until("document.querySelectorAll('#list li').length === 2")
    rows.nth(1).hover()
    page.get_by_role("button", name="Delete A <b>sum</b>").click()
    tab.until("document.querySelectorAll('#list li').length === 1")
    page.get_by_role("button", name="Undo").click()
    tab.until("document.querySelectorAll('#list li').length === 2")
    assert "579" in tab.answer.inner_text()


def test_a_second_window_shows_what_the_first_one_did(tab, context, server):
    other = Watched(context, server.url)
    other.open()
    tab.ask(SUM)
    shown = "document.dispatchEvent(new Event('visibilitychange'))"
    other.page.evaluate(shown)
    other.until("document.querySelectorAll('#list li').length === 1")
    other.page.locator("#list .open").click()
    other.until("document.querySelector('.assistant .body')?.textContent.includes('579')")
    other.ask("What is 5+6?")
    tab.page.evaluate(shown)
    tab.until("document.querySelectorAll('.message').length === 4")
    other.page.locator("#list li").hover()
    other.page.get_by_role("button", name=f"Delete {SUM}").click()
    other.until("document.querySelectorAll('#list li').length === 0")
    tab.page.evaluate(shown)
    tab.until("document.querySelectorAll('.message').length === 0")
    other.checked()


def test_a_browser_that_keeps_nothing(context, server):
    context.add_init_script("""for (const name of ["localStorage", "sessionStorage", "indexedDB"]) {
        Object.defineProperty(window, name, { get() { throw new DOMException("denied", "SecurityError"); } }); }""")
    tab = Watched(context, server.url)
    tab.open()
    tab.page.get_by_text("This browser keeps nothing for the page").wait_for()
    tab.ask(SUM)
    assert "579" in tab.answer.inner_text()
    assert tab.page.locator("#list li").count() == 1
    tab.checked()


def test_exports_and_imports(tab, tmp_path):
    page = tab.page
    tab.ask(SUM)
    name, text = downloaded(page, page.get_by_role("button", name="Export this conversation as Markdown").click)
    assert name == "What-is-123-456.md"
    assert text.startswith(
        f"# {SUM}\n\n## You\n\n{SUM}\n\n## Answer\n\n<details><summary>Reasoning</summary>\n\n```text\nReverse"
    )
    assert "579" in text.split("</details>")[1]
    name, text = downloaded(page, page.get_by_role("button", name="Export all").click)
    found = json.loads(text)
    assert (name, len(found["conversations"][0]["messages"])) == ("qwq-conversations.json", 2)
    path = tmp_path / "saved.json"
    path.write_text(text)
    page.locator("#import-file").set_input_files(path)
    page.get_by_text("Imported 1 conversation").wait_for()
    assert page.locator("#list li").count() == 2
    assert "579" in tab.answer.inner_text()


def test_a_broken_import_changes_nothing(tab, tmp_path):
    message = {"id": "a", "parent": None, "role": "user", "text": "x"}
    files = {
        "text.json": "no json",
        "kind.json": "{}",
        "role.json": [{**message, "role": "system"}],
        "parent.json": [{**message, "parent": "b"}],
        "twice.json": [message, message],
        "text2.json": [{**message, "text": 7}],
    }
    for name, content in files.items():
        if isinstance(content, list):
            whole = {"title": "x", "leaf": "a", "messages": content}
            content = json.dumps({"kind": "qwq conversations", "version": 1, "conversations": [whole]})
        (tmp_path / name).write_text(content)
        tab.page.locator("#import-file").set_input_files(tmp_path / name)
        tab.page.locator(".toast").get_by_text(re.compile("is not JSON|no conversations|is broken")).wait_for()
        tab.page.locator(".toast").evaluate("element => element.remove()")
    tab.reload()
    assert tab.page.locator("#list li").count() == 0

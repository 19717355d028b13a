"""The tab that looks into the model shows the numbers of /inside."""

import pytest

from qwq_ref.formats import open_floats, resolve
from qwq_ref.inside import look

pytestmark = pytest.mark.browser


@pytest.fixture
def inside(tab):
    tab.page.get_by_role("tab", name="Inside").click()
    tab.page.locator(".lens caption").wait_for()
    settle(tab)
    return tab.page


def settle(tab):
    tab.page.wait_for_timeout(100)
    tab.until("!document.querySelector('.inside-status').textContent.startsWith('Looking')")


def test_an_example_is_shown_and_a_token_chosen(tab, inside, slow_nano):
    tokens = inside.get_by_role("listbox", name="Tokens")
    options = tokens.get_by_role("option")
    count = options.count()
    options.nth(count - 8).click()
    settle(tab)
    assert tokens.locator("[aria-selected=true]").get_attribute("data-at") == str(count - 8)
    model = slow_nano[0]
    thought, said = inside.get_by_label("Reasoning, </think>, answer").input_value().split("</think>")
    encode = model.tokenizer.encode
    ids = [*model.prompt_ids("What is 12+34?"), *encode(thought), model.tokenizer.think_end, *encode(said)]
    assert count == len(ids)
    with open_floats(resolve("qwq-nano")) as weights:
        found = look(weights.config, weights, ids, token=count - 8)
    heads = inside.get_by_role("listbox", name="Heads").get_by_role("option")
    assert heads.count() == model.config.L * model.config.H
    query = found.attention.query[2, 6]
    name = heads.nth(26).get_attribute("aria-label")
    assert f"at {query.argmax()} ({100 * query.max():.0f} %)" in name
    said = model.tokenizer.decode([int(found.lens.ids[-1, count - 8, 0])])
    shown = inside.locator(".lens tbody tr").last.locator("td")
    assert shown.first.locator(".word").inner_text() == said.replace(" ", "␣")
    assert f"to {found.residual.rms[-1, count - 8]:.4g}." in inside.locator(".picture").last.inner_text()


def test_the_keyboard_chooses_tokens_and_heads(tab, inside):
    tokens = inside.get_by_role("listbox", name="Tokens")
    tokens.focus()
    inside.keyboard.press("Home")
    inside.keyboard.press("ArrowRight")
    settle(tab)
    assert tokens.get_attribute("aria-activedescendant") == "token-1"
    inside.keyboard.press("Tab")
    heads = inside.get_by_role("listbox", name="Heads")
    inside.keyboard.press("Home")
    inside.keyboard.press("ArrowDown")
    inside.keyboard.press("ArrowRight")
    chosen = heads.locator("[aria-selected=true]")
    assert chosen.count() == 1
    assert inside.locator(".head-words").inner_text() == chosen.get_attribute("aria-label")


def test_an_answer_of_the_conversation_is_looked_into(tab):
    tab.ask("What is 5+6?")
    tab.page.get_by_role("button", name="Look inside the model at this answer").click()
    tab.page.locator(".lens caption").wait_for()
    assert tab.page.get_by_label("Question").input_value() == "What is 5+6?"
    assert "</think>" in tab.page.get_by_label("Reasoning, </think>, answer").input_value()
    tab.page.get_by_role("tab", name="Chat").click()
    assert tab.answer.is_visible()


def test_hostile_tokens_and_texts_that_are_too_long(tab, inside):
    inside.get_by_label("Question").fill("<img src=x onerror=alert(1)>\u202e")
    inside.get_by_label("Reasoning, </think>, answer").fill("<script>alert(1)</script>" * 200)
    inside.get_by_role("button", name="Look", exact=True).click()
    inside.get_by_text("are left out: a look takes 512.").wait_for()
    settle(tab)
    assert inside.locator("#inside img, #inside script").count() == 0
    inside.get_by_label("Question").fill("a b " * 600)
    inside.get_by_role("button", name="Look", exact=True).click()
    inside.get_by_text("The server cannot look: prompt: has").wait_for()


def test_a_model_that_cannot_be_looked_into(tab, slow_nano, monkeypatch, tmp_path):
    monkeypatch.setattr(slow_nano[0], "path", tmp_path)
    tab.page.get_by_role("tab", name="Inside").click()
    tab.page.get_by_text("The server cannot look: the weights of this model are packed").wait_for()

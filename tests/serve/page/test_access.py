"""The page without a mouse, for screen readers, in the dark, on a phone, and in other writing systems."""

import json
from pathlib import Path

import pytest

from tests.support.browsers import scripted, stream

pytestmark = pytest.mark.browser

PHONE = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}
CHECKS = (Path(__file__).parent / "checks.js").read_text()
ANSWER = "# A\n\n`b` and [c](https://c.example)\n\n```\nd\n```\n\n| e |\n|---|\n| f |"
WIDE = "\n\n".join(
    ["x" * 400, "| a |\n|---|\n".replace("a", "wide words | " * 12).replace("---|", "---|" * 13), "```\n" + "y" * 300]
)


def views(tab):
    """Show one view after the other, and yield its name."""
    page = tab.page
    yield "empty"
    scripted(
        page,
        stream(
            "# A\n\n`b` and [c](https://c.example)\n\n```\nd\n```\n\n| e |\n|---|\n| f |",
            reasoning=["g"],
            ending="x (1 tokens)",
        ),
    )
    tab.ask("What is 5+6?")
    page.locator("summary").click()
    page.locator(".user").hover()
    yield "conversation"
    page.get_by_role("button", name="Settings").click()
    yield "settings"
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Shortcuts").click()
    yield "shortcuts"
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Edit message").click()
    yield "edit"
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Inside").click()
    page.locator(".lens caption").wait_for()
    page.wait_for_timeout(150)
    yield "inside"


@pytest.mark.parametrize("profile", [{"color_scheme": "light"}, {"color_scheme": "dark"}], ids=["light", "dark"])
def test_everything_has_a_name_and_can_be_read(tab):
    for name in views(tab):
        for check in ("unnamed", "alike", "dangling", "faint"):
            assert tab.page.evaluate(f"({CHECKS}).{check}()") == [], (name, check)


@pytest.mark.parametrize("profile", [PHONE], ids=["phone"])
def test_a_phone_scrolls_up_and_down_only(tab):
    page = tab.page

    def check(name):
        wide = "['html', '#scroller', '#inside'].map((name) => document.querySelector(name).scrollWidth)"
        assert max(page.evaluate(wide)) <= 360, name
        size = page.get_by_role("tab", name="Chat").bounding_box()
        assert size["x"] + size["width"] <= 360

    check("empty")
    assert not page.get_by_role("button", name="New conversation").is_visible()
    scripted(page, stream(WIDE))
    tab.ask("z" * 300)
    check("conversation")
    page.get_by_role("button", name="Show or hide the list").click()
    page.get_by_role("button", name="Settings").click()
    box = page.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Close the list").click()
    page.get_by_role("tab", name="Inside").click()
    page.locator(".lens caption").wait_for()
    check("inside")


def focused(page):
    return page.evaluate(
        "document.activeElement.ariaLabel || document.activeElement.textContent.trim() || document.activeElement.id"
    )


def test_a_conversation_by_keyboard_alone(tab, pace):
    page, key = tab.page, tab.page.keyboard
    assert focused(page) == "Message"
    key.type("What is 5+6?")
    key.press("Shift+Enter")
    key.type("Now.")
    key.press("Enter")
    tab.until("document.querySelector('.facts')?.textContent")
    tab.finish()
    assert tab.page.locator(".user .body").inner_text() == "What is 5+6?\nNow."
    assert focused(page) == "Message"
    pace.pace = 0.03
    key.type("What is 123+456?")
    key.press("Enter")
    tab.until("document.querySelectorAll('.thinking')[1]?.textContent.length > 4")
    key.press("Escape")
    page.get_by_text("You stopped this answer.").wait_for()
    pace.pace = 0
    key.press("ArrowUp")
    assert focused(page) == "Edit message"
    key.press("Control+A")
    key.type("What is 7+8?")
    key.press("Enter")
    page.get_by_text("2 / 2").wait_for()
    tab.finish()
    assert page.locator(".user .body").last.inner_text() == "What is 7+8?"
    assert "boxed" in tab.answer.inner_text()
    key.press("Control+Shift+O")
    assert page.locator(".message").count() == 0
    assert focused(page) == "Message"
    key.press("Control+K")
    key.press("ArrowDown")
    assert focused(page).startswith("What is 5+6?")
    key.press("F2")
    key.type("Sums")
    key.press("Enter")
    assert page.locator("#title").inner_text() == "New conversation"
    key.press("Enter")
    tab.until("document.querySelector('#title').textContent === 'Sums'")
    key.press("Shift+Escape")
    assert focused(page) == "Message"


def test_every_control_is_reached_by_tab_and_shows_the_focus(tab):
    tab.ask("What is 5+6?")
    page = tab.page
    page.evaluate("document.querySelector('.skip').focus()")
    seen, unseen = [], []
    while True:
        page.keyboard.press("Tab")
        name = focused(page)
        assert len(seen) < 60
        seen.append(name)
        if page.evaluate("document.activeElement === document.body"):
            break
        shown = (
            "getComputedStyle(document.activeElement).outlineStyle !== 'none' || document.activeElement.id === 'box'"
        )
        if not page.evaluate(shown):
            unseen.append(name)
    assert unseen == []
    for wanted in (
        "New conversation",
        "Search conversations",
        "Settings",
        "Chat",
        "Message",
        "Copy answer",
        "Edit message",
    ):
        assert wanted in seen
    assert any(name.startswith("Thought for") for name in seen)


def test_enter_of_an_input_method_sends_nothing(tab):
    asked = scripted(tab.page, stream("好"))
    box = tab.page.get_by_label("Message", exact=True)
    box.fill("你好")
    event = "bubbles: true, cancelable: true, key: 'Enter'"
    for more in ("isComposing: true", "keyCode: 229"):
        box.evaluate(f"element => element.dispatchEvent(new KeyboardEvent('keydown', {{ {event}, {more} }}))")
    assert box.input_value() == "你好"
    assert asked == []
    box.press("Enter")
    tab.until("document.querySelector('.assistant .body')?.textContent === '好'")


def test_a_screen_reader_hears_whole_answers(tab, pace):
    pace.pace = 0.005
    tab.page.evaluate("""() => { globalThis.heard = [];
        new MutationObserver(() => heard.push(document.querySelector('#live').textContent))
            .observe(document.querySelector('#live'), { childList: true, characterData: true, subtree: true }); }""")
    tab.ask("What is 5+6?")
    tab.until("heard.length >= 1")
    tab.page.wait_for_timeout(100)
    heard = [text for text in tab.page.evaluate("heard") if text]
    assert len(set(heard)) == 1
    assert heard[0].startswith("Answer: ")
    assert tab.page.locator("#thread[aria-live], #thread [aria-live]").count() == 0


def test_words_that_run_from_right_to_left(tab):
    scripted(tab.page, stream("שלום, מה שלומך?\n\nplain words"))
    tab.ask("مرحبا بالعالم")
    sides = tab.page.locator(".body p").evaluate_all("all => all.map((each) => getComputedStyle(each).direction)")
    assert sides == ["rtl", "rtl", "ltr"]


def test_the_theme_is_chosen_and_kept(tab):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.page.evaluate(ground)
    tab.page.get_by_role("button", name="Theme: system").click()
    tab.page.get_by_role("button", name="Theme: light").click()
    dark = tab.page.evaluate(ground)
    assert dark != light
    tab.reload()
    assert tab.page.evaluate(ground) == dark
    tab.page.get_by_role("button", name="Theme: dark").click()
    assert tab.page.evaluate(ground) == light
    tab.page.emulate_media(color_scheme="dark")
    assert tab.page.evaluate(ground) == dark


@pytest.mark.parametrize("profile", [{"reduced_motion": "reduce"}], ids=["still"])
def test_nothing_moves_where_that_is_not_wanted(tab, pace):
    pace.pace = 0.03
    tab.page.get_by_label("Message", exact=True).fill("What is 5+6?")
    tab.page.keyboard.press("Enter")
    tab.page.locator(".writing").wait_for()
    assert tab.page.evaluate("document.getAnimations().length") == 0
    pace.pace = 0
    tab.finish()


def test_settings_show_the_models_own_values_and_are_sent(tab):
    page = tab.page
    page.get_by_role("button", name="Settings").click()
    assert page.get_by_label("Temperature").get_attribute("placeholder") == "model: 0.6"
    assert page.get_by_label("Top-k").get_attribute("placeholder") == "model: 40"
    values = {
        "Temperature": "0",
        "Top-p": "0.5",
        "Top-k": "7",
        "Min-p": "0.1",
        "Presence penalty": "-1",
        "Frequency penalty": "0.5",
    }
    values |= {"Repetition penalty": "1.1", "Seed": "5", "Largest number of tokens": "9", "System prompt": "Be brief."}
    for label, value in values.items():
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_label("Reasoning effort").select_option("low")
    page.get_by_role("button", name="Save").click()
    tab.reload()
    asked = []
    page.on("request", lambda sent: asked.append(json.loads(sent.post_data)) if "chat/comp" in sent.url else None)
    tab.ask("Hi")
    body = asked[0]
    assert body.pop("messages") == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    for name in ("stream", "stream_options", "return_progress"):
        del body[name]
    assert body == {
        "temperature": 0, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "presence_penalty": -1, "frequency_penalty": 0.5,
        "repetition_penalty": 1.1, "seed": 5, "max_tokens": 9, "reasoning_effort": "low",
    }  # fmt: skip
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Reset").click()
    page.get_by_role("button", name="Save").click()
    tab.ask("Hi")
    assert set(asked[1]) == {"messages", "seed", "stream", "stream_options", "return_progress"}

"""Draw the pictures of the page in docs/serve.md again. All answers come from the shipped model.

python -m tests.tools.screenshots [FOLDER]

FOLDER is docs/ by default. The pictures need Chromium, and Playwright: pip install 'qwq_ref[browser]'.
"""

import sys
from pathlib import Path

import qwq_ref
from tests.support.browsers import Slow, Watched, chromium, launched
from tests.support.paths import DOCS
from tests.support.servers import serving

EARLIER = ("What can you do?", "What is 48-19?", "Sort 5, 3, 9")
QUESTIONS = ("What is 123+456?", "What is 789+123?")


def draw(folder):
    from playwright.sync_api import sync_playwright

    model = qwq_ref.load("qwq-nano", weights="q8", kv="int8")
    slow = Slow(model.backend)
    with serving(lambda: model) as server, sync_playwright() as playwright:
        browser = launched(playwright, chromium())

        def tab(**profile):
            tab = Watched(browser.new_context(**profile), server.url)
            tab.open()
            for question in EARLIER:
                tab.ask(question)
                tab.page.keyboard.press("Control+Shift+O")
            return tab

        def talk(tab, path, questions):
            """Ask questions, unfold the reasoning of the first, and draw the last one while it is answered."""
            for question in questions[:-1]:
                tab.ask(question)
            tab.page.locator("summary").first.click()
            slow.pace = 0.02
            tab.page.get_by_label("Message", exact=True).fill(questions[-1])
            tab.page.keyboard.press("Enter")
            tab.until("document.querySelectorAll('.thinking')[1]?.textContent.length > 40")
            tab.page.screenshot(path=path)
            tab.page.keyboard.press("Escape")
            slow.pace = 0

        light = tab(viewport={"width": 1180, "height": 720}, color_scheme="light")
        talk(light, folder / "page.png", QUESTIONS)
        dark = tab(viewport={"width": 940, "height": 1180}, color_scheme="dark")
        dark.page.get_by_role("tab", name="Inside").click()
        dark.page.locator(".lens caption").wait_for()
        dark.page.locator(".head").nth(27).click()  # layer 2, head 7 finds the digit 1
        dark.page.wait_for_timeout(300)
        below = "element => { element.scrollTop = element.querySelector('.picture').offsetTop - 80; }"
        dark.page.locator("#inside").evaluate(below)
        dark.page.mouse.move(5, 500)
        dark.page.wait_for_timeout(200)
        dark.page.screenshot(path=folder / "page-inside.png")
        phone = tab(viewport={"width": 360, "height": 720}, color_scheme="dark", has_touch=True, is_mobile=True)
        talk(phone, folder / "page-phone.png", QUESTIONS)
        browser.close()


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS)

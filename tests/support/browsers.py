"""Chromium for the tests of the page, and answers that a test scripts."""

import json
import shutil
import time
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
NEEDS = "the page is not tested: it needs Chromium and pip install 'qwq_ref[browser]'"
# The page begins with settings under which the shipped model says the same each time.
GREEDY = """try { localStorage["qwq.settings"] ??= '{"temperature":0}'; } catch { }"""
REFUSED = "Failed to load resource: the server responded with a status of"  # a test asked for it


def chromium():
    """Chromium's path. Skips the test where the browser or Playwright is missing."""
    pytest.importorskip("playwright.sync_api", reason=NEEDS)
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(NEEDS)
    return found


def launched(playwright, path):
    """A browser without a sandbox, which containers lack, and without anything that it would ask the network for."""
    options = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-gpu"]
    return playwright.chromium.launch(executable_path=path, args=options)


class Watched:
    """A tab whose faults are noted: errors, and violations of the policy. `page` is Playwright's."""

    def __init__(self, context, url):
        self.url = url
        self.faults = []
        self.asked = []
        context.add_init_script(GREEDY)
        self.page = context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda problem: self.faults.append(str(problem)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("dialog", lambda dialog: (self.faults.append(f"a dialog: {dialog.message}"), dialog.dismiss()))

    def _console(self, message):
        if message.type in ("error", "warning") and not message.text.startswith(REFUSED):
            self.faults.append(message.text)

    def open(self):
        self.page.goto(self.url)
        self.ready()
        return self.page

    def reload(self):
        self.page.reload()
        self.ready()

    def ready(self):
        self.page.wait_for_selector("html[data-ready]", state="attached")
        self.until("document.querySelector('#welcome-model').textContent !== ''")

    def until(self, condition, seconds=60):
        """Wait for a condition in JavaScript. The page's policy refuses Playwright's own way to wait for one."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, condition
            self.page.wait_for_timeout(20)

    def ask(self, text):
        """Send a message, and wait for the end of its answer."""
        answers = self.page.locator(".assistant").count()
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.keyboard.press("Enter")
        self.page.locator(".assistant").nth(answers).wait_for()
        self.finish()

    def finish(self):
        """Wait until nothing is written."""
        self.page.get_by_role("button", name="Send").wait_for()
        self.until("!document.querySelector('.writing')")

    @property
    def answer(self):
        """The body of the last answer."""
        return self.page.locator(".assistant .body").last

    def checked(self):
        """Raise AssertionError for a fault, and for a request to another place."""
        assert not self.faults
        elsewhere = [url for url in self.asked if not url.startswith((self.url, "blob:", "data:"))]
        assert not elsewhere


def stream(*pieces, reasoning=(), finish="stop", ending=None, done=True, output=None):
    """The body of a streamed chat with these pieces."""
    deltas = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": piece} for piece in reasoning] + [{"content": piece} for piece in pieces]
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    if done:
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish, "ending": ending}]})
        counts = {"prompt_tokens": 7, "completion_tokens": output or len(deltas) - 1}
        chunks.append(
            {"choices": [], "usage": {**counts, "completion_tokens_details": {"reasoning_tokens": len(reasoning)}}}
        )
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + ("data: [DONE]\n\n" if done else "")


def scripted(page, *bodies, status=200, headers=None):
    """Answer the chats of a page with these bodies, in order, and then with the last one. Returns the requests."""
    asked, waiting = [], list(bodies)

    def answer(route):
        asked.append(route.request.post_data_json)
        body = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if callable(body):
            body(route)
        else:
            kind = {"content-type": "text/event-stream" if status == 200 else "application/json"}
            route.fulfill(status=status, headers={**kind, **(headers or {})}, body=body)

    page.route("**/v1/chat/completions", answer)
    return asked


def refusal(status, code, message="refused", **headers):
    """A body for `scripted` that refuses with an error of the API."""
    content = json.dumps({"error": {"message": message, "type": "x", "param": None, "code": code}})
    return lambda route: route.fulfill(
        status=status, headers={"content-type": "application/json", **headers}, body=content
    )


class Slow:
    """Gives a backend a pace: seconds for each pass over the weights."""

    def __init__(self, backend):
        self.pace = 0.0
        run = backend.run_together

        def run_together(*arguments, **how):
            time.sleep(self.pace)
            return run(*arguments, **how)

        backend.run_together = run_together


def downloaded(page, act):
    """Do something that offers a file -> (its name, its text)."""
    with page.expect_download() as found:
        act()
    return found.value.suggested_filename, Path(found.value.path()).read_text()

"""One browser and one server for a module, and a fresh profile for each test."""

import pytest

import qwq_ref
from tests.support.browsers import Slow, Watched, chromium, launched
from tests.support.servers import serving


@pytest.fixture(scope="package")
def slow_nano():
    chromium()
    model = qwq_ref.load("qwq-nano", weights="q8", kv="int8")
    return model, Slow(model.backend)


@pytest.fixture(scope="module")
def server(slow_nano):
    with serving(lambda: slow_nano[0]) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = launched(playwright, path)
        yield browser
        browser.close()


@pytest.fixture
def pace(slow_nano):
    """The pace of the model: set `pace.pace` to the seconds of each pass."""
    yield slow_nano[1]
    slow_nano[1].pace = 0.0


@pytest.fixture
def profile():
    """Options of the browser's profile, which a test may replace by a parametrize of its own."""
    return {}


@pytest.fixture
def context(browser, profile):
    context = browser.new_context(**{"viewport": {"width": 1100, "height": 700}, **profile})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    yield context
    context.close()


@pytest.fixture
def tab(context, server):
    """The page, open. At the end, it has had no fault, and asked no other place."""
    tab = Watched(context, server.url)
    tab.open()
    yield tab
    tab.checked()

"""The page at `/`: its files, and the policy under which a browser shows them."""

import pytest

from qwq_ref.serve.app import make_app
from qwq_ref.serve.engine import ServedModel
from qwq_ref.serve.limits import ServerLimits
from tests.support.servers import request, serving, status

KEY = "correct-horse"


@pytest.fixture(scope="module")
def paged(nano, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "index.html").write_text("<!doctype html><title>hello</title>")
    (folder / "page.js").write_text("'use strict';")
    (folder.parent / "secret.txt").write_text("secret")
    with serving(lambda: nano, key=KEY, page=folder) as running:
        yield running


def test_files_of_the_folder_have_a_strict_policy_and_need_no_key(paged):
    for path, text in (("/", b"hello"), ("/page/page.js", b"use strict")):
        answer = paged.ask_raw(request(path))
        assert status(answer) == 200
        assert text in answer
        head = answer.partition(b"\r\n\r\n")[0].lower()
        assert head.count(b"content-security-policy:") == 1
        assert b"default-src 'none'" in head
        assert b"unsafe" not in head
        assert b"x-content-type-options: nosniff" in head
    assert status(paged.ask_raw(request("/v1/models"))) == 401
    assert status(paged.ask_raw(request("/", host="evil.example"))) == 403


OUTSIDE = ["/page/../secret.txt", "/page/%2e%2e/secret.txt", "/page//etc/passwd", "/page/none.js"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_else_is_served(paged, path):
    answer = paged.ask_raw(request(path))
    assert status(answer) in (401, 404)
    assert b"secret" not in answer.partition(b"\r\n\r\n")[2]


def test_without_a_page_there_is_nothing_at_the_root(nano, tmp_path):
    assert make_app(ServedModel("x", lambda: nano, ServerLimits()), page=tmp_path)
    with serving(lambda: nano, page=tmp_path) as running:
        assert status(running.ask_raw(request("/"))) == 404

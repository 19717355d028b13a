"""Answers that attack the page change nothing outside their bubble, and Markdown is drawn in one pass."""

import json

import pytest

from tests.support.browsers import scripted, stream

pytestmark = pytest.mark.browser

SCRIPTS = """<script>document.title = "broken"; alert(1)</script>
<img src=x onerror="document.title='broken'"> <svg onload=alert(1)> <iframe src="javascript:alert(1)"></iframe>
<style>body { display: none }</style> <a href="javascript:alert(1)">press</a> <base href="https://evil.example/">
[press](javascript:alert(1)) [press](JaVaScRiPt:alert(1)) [press]( data:text/html,<script>alert(1)</script>)
[press](vbscript:x) [press](//evil.example) [press](/v1/models) [press](http://) [press](file:///etc/passwd)
![x](https://evil.example/spy.png) ![x](javascript:alert(1)) <https://evil.example> &lt;script&gt;
# <img src=x onerror=alert(1)>
| <script>alert(1)</script> | b |
|---|---|
| [x](javascript:alert(1)) | <b>c</b> |
"""
KINDS = "all => all.map((each) => getComputedStyle(each).unicodeBidi)"
LINKS = "element => [...element.querySelectorAll('a')].map((each) => [each.protocol, each.rel, each.target])"
TAGS = {"P", "H3", "H4", "H5", "H6", "UL", "OL", "LI", "BLOCKQUOTE", "HR", "A", "EM", "STRONG", "DEL", "CODE", "PRE"}
TAGS |= {"SPAN", "DIV", "BUTTON", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD"}
FRAME = """() => { const copy = document.body.cloneNode(true);
    copy.querySelector('#thread').remove();
    for (const each of copy.querySelectorAll('#list, #list-note, #title, #live, #meter')) each.remove();
    return copy.innerHTML; }"""


@pytest.fixture
def said(tab):
    """A function that has the model say texts -> the body of the answer."""

    def say(*pieces, reasoning=()):
        tab.page.unroute("**/v1/chat/completions")
        scripted(tab.page, stream(*pieces, reasoning=reasoning))
        tab.ask("go on")
        return tab.answer

    return say


def html(body):
    return body.evaluate("element => element.innerHTML")


def tags(body):
    return set(body.evaluate("element => [...element.querySelectorAll('*')].map((each) => each.tagName)"))


def test_markup_is_text(tab, said):
    said("a plain answer")
    before = tab.page.evaluate(FRAME)
    body = said(*(SCRIPTS[i : i + 7] for i in range(0, len(SCRIPTS), 7)), reasoning=[SCRIPTS])
    assert tags(body) <= TAGS
    assert tab.page.title() == "go on – qwq"
    assert "<script>document.title" in body.inner_text()
    links = body.evaluate(LINKS)
    assert links  # the addresses that stand as text
    assert all(link == ["https:", "noopener noreferrer", "_blank"] for link in links)
    assert not tab.page.locator(
        "#thread [onerror], #thread [style], #thread script, #thread img, #thread iframe"
    ).count()
    assert tab.page.evaluate(FRAME) == before


def test_titles_and_errors_are_text(tab):
    scripted(tab.page, f"data: {json.dumps({'error': {'message': SCRIPTS, 'code': 'x'}})}\n\n")
    tab.ask("<img src=x onerror=alert(1)>")
    assert tab.page.locator("#title").inner_text() == "<img src=x onerror=alert(1)>"
    assert tab.page.locator(".note.error").inner_text().startswith("The server refused: <script>")
    assert not tab.page.locator("#side img, header img, .note img").count()


LINES = {
    "letters": "x" * 2**20,
    "brackets": "[" * 2**18,
    "stars": "*a" * 2**17,
    "ticks": "`a``" * 2**16,
    "bars": "|" * 2**18,
    "quotes": "> " * 2**17,
    "items": "- " * 2**17,
    "hebrew": "שלום " * 2**16,
}


@pytest.mark.parametrize("profile", [{"viewport": {"width": 360, "height": 640}}], ids=["phone"])
def test_long_lines(tab, said):
    for name, line in LINES.items():
        pieces = [line[i : i + 2**15] for i in range(0, len(line), 2**15)]
        body = said("begin\n", *pieces, "\n\nend **bold**")
        assert body.locator("strong").last.inner_text() == "bold", name
        width = tab.page.evaluate(
            "[document.documentElement.scrollWidth, document.querySelector('#scroller').scrollWidth]"
        )
        assert width == [360, 360], name
        assert tab.page.get_by_label("Message", exact=True).is_visible()
        tab.page.get_by_role("button", name="Show or hide the list").click()
        tab.page.get_by_role("button", name="New conversation").click()


MANY = {
    "p": ("", "a line\n", 50),
    "li": ("", "- an item\n", 10_000),
    "span": ("```\n", "a line\n", 100),
    "tr": ("| a | b |\n|---|---|\n", "| a | b |\n", 10_001),
    "blockquote": ("", "> a\n\n", 10_000),
}


def test_many_lines(tab, said):
    for tag, (head, line, least) in MANY.items():
        body = said(head, *[line * 100] * 100)
        assert body.locator(tag).count() >= least, tag
        assert body.inner_text().rstrip().endswith(line.strip("-|>` \n").split(" | ")[-1]), tag
        tab.page.get_by_role("button", name="New conversation").click()


def test_a_fence_that_never_ends_holds_all_that_follows(said):
    body = said("before\n```html\n<script>alert(1)</script>\n**a**", "\n[x](https://a.example)\n# b")
    assert body.locator("pre").inner_text() == "<script>alert(1)</script>\n**a**\n[x](https://a.example)\n# b\n"
    assert body.locator("strong, a, h3").count() == 0


def test_marks_that_turn_the_direction_stay_inside(tab, said):
    turned = "\u202e\u2066\u2067 evil \u202d" * 20
    before = tab.page.get_by_role("button", name="Copy answer").count()
    said(turned, f"\n\n# {turned}\n- {turned}\n| {turned} | a |\n|---|---|\n| {turned} | b |")
    assert tab.page.get_by_role("button", name="Copy answer").count() == before + 1
    found = tab.page.locator(".body > *").evaluate_all(KINDS)
    assert set(found) <= {"isolate", "plaintext", "isolate-override"}


WHOLE = """# Title

Some *emphasis*, **strong**, ***both***, ~~gone~~, `code **x**`, 2*3*4, a_name_b, \\*no\\*, \\(x\\), \\boxed{7}.
Second line: [a link](https://example.org/a_b_c) and https://example.org/x_y).

1. one
   - inner
   - inner two

   more of one
2. two

> a quote
> - with an item

| left | right |
|:-----|------:|
| `a\\|b` | **2** |

~~~python
print("hi")
~~~

---
- [ ] task
"""


def test_each_kind_of_markdown(said):
    body = said(WHOLE)
    assert body.locator("h3").inner_text() == "Title"
    first = body.locator("p").first
    assert first.inner_text() == (
        "Some emphasis, strong, both, gone, code **x**, 2*3*4, a_name_b, *no*, \\(x\\), \\boxed{7}.\n"
        "Second line: a link and https://example.org/x_y)."
    )
    assert first.locator("em").all_inner_texts() == ["emphasis", "both"]
    assert first.locator("a").evaluate_all("all => all.map((each) => each.href)") == [
        "https://example.org/a_b_c",
        "https://example.org/x_y",
    ]
    assert body.locator("ol > li").count() == 2
    assert body.locator("ol > li").first.locator("ul > li").all_inner_texts() == ["inner", "inner two"]
    assert "more of one" in body.locator("ol > li").first.inner_text()
    assert body.locator("blockquote li").inner_text() == "with an item"
    assert body.locator("td").all_inner_texts() == ["a|b", "2"]
    assert body.locator("td").last.get_attribute("class") == "right"
    assert body.locator("pre").inner_text() == 'print("hi")\n'
    assert body.locator("hr").count() == 1


@pytest.mark.parametrize("size", [1, 2, 5, 11])
def test_pieces_of_any_size_give_the_same_nodes(tab, said, size):
    whole = html(said(WHOLE + WHOLE))
    text = WHOLE + WHOLE
    found = tab.page.evaluate(
        """async ([text, size]) => {
            const { Markdown } = await import("/page/markdown.js");
            const element = document.createElement("div");
            const markdown = new Markdown(element);
            for (let at = 0; at < text.length; at += size) {
                markdown.add(text.slice(at, at + size));
                markdown.draw();
            }
            markdown.finish();
            element.normalize();
            return element.innerHTML;
        }""",
        [text, size],
    )
    tab.answer.evaluate("element => element.normalize()")
    assert found == html(tab.answer) or found == whole


def test_code_is_copied_as_it_is(tab, said):
    said("```c\nint main(void)\n{\n\treturn 0;\n}\n```\n")
    tab.page.get_by_role("button", name="Copy the code").click()
    tab.page.get_by_text("Copied").wait_for()
    assert tab.page.evaluate("navigator.clipboard.readText()") == "int main(void)\n{\n\treturn 0;\n}"

"""Measure the page: the time to its first paint, and the time to draw answers of a growing length.

python -m tests.tools.page_speed

The tool needs Chromium, and Playwright: pip install 'qwq_ref[browser]'.
"""

import statistics

import qwq_ref
from tests.support.browsers import Watched, chromium, launched
from tests.support.servers import serving

WORDS = "Some *words* of an answer, with `code` and **strong** ones. "
# kind -> (a piece, pieces, pieces in a call): each call draws the last line, too, as the page does for each frame
ANSWERS = {
    "tokens of text": ("word ", 16_000, 1),
    "tokens of Markdown": ("*a* `b`\n\n", 8_000, 1),
    "a line of 1 MB": ("x" * 1024, 1024, 1),
    "10,000 lines": (WORDS + "\n", 10_000, 10),
    "10,000 lines of code": ("let x = 1;\n", 10_000, 10),
    "10,000 items": ("- an item\n", 10_000, 10),
    "10,000 rows": ("| a | b |\n", 10_000, 10),
}
DRAW = """async ([head, piece, pieces, size]) => {
    const { Markdown } = await import("/page/markdown.js");
    const scroller = document.querySelector("#scroller");
    const body = document.createElement("div");
    body.className = "body";
    const message = document.createElement("article");
    message.className = "message assistant writing";
    message.append(body);
    document.querySelector("#thread").replaceChildren(message);
    const markdown = new Markdown(body);
    const begin = performance.now();
    markdown.add(head);
    let longest = 0;
    for (let at = 0; at < pieces; at += size) {
        const before = performance.now();
        markdown.add(piece.repeat(size));
        markdown.draw();
        if (at % (20 * size) === 0) scroller.scrollTop = scroller.scrollHeight; // lays out
        longest = Math.max(longest, performance.now() - before);
    }
    markdown.finish();
    scroller.scrollTop = scroller.scrollHeight;
    return [performance.now() - begin, longest];
}"""
PAINT = """() => [performance.getEntriesByName('first-contentful-paint')[0]?.startTime,
    performance.getEntriesByType('resource').length]"""


def main():
    from playwright.sync_api import sync_playwright

    model = qwq_ref.load("qwq-nano", weights="q8", kv="int8")
    with serving(lambda: model) as server, sync_playwright() as playwright:
        browser = launched(playwright, chromium())
        paints = []
        for _ in range(9):  # each with an empty cache
            context = browser.new_context()
            tab = Watched(context, server.url)
            tab.open()
            tab.page.wait_for_timeout(100)
            found = tab.page.evaluate(PAINT)
            paints.append(found[0])
            context.close()
        print(f"first paint: median {statistics.median(paints):.0f} ms, longest {max(paints):.0f} ms, {found[1]} files")
        tab = Watched(browser.new_context(), server.url)
        tab.open()
        tab.page.evaluate("document.querySelector('#welcome').hidden = true")
        for name, (piece, pieces, size) in ANSWERS.items():
            head = "```\n" if "code" in name else "| a | b |\n|---|---|\n" if "rows" in name else ""
            half, _ = tab.page.evaluate(DRAW, [head, piece, pieces // 2, size])
            whole, longest = tab.page.evaluate(DRAW, [head, piece, pieces, size])
            share = f"{whole / half:.1f} times that of the half"
            print(f"{name}: {whole / 1000:.2f} s, {share}; the longest step {longest:.0f} ms")
        browser.close()


if __name__ == "__main__":
    main()

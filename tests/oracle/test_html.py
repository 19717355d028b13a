"""The report as a page: well-formed, self-contained, safe, and with the report's own numbers and nothing else."""

import copy
import itertools
import json
import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

from qwq_ref import oracle
from qwq_ref.config import Config
from qwq_ref.oracle.graph import BEFORE, LAYER
from qwq_ref.oracle.render.html import MOST, page
from tests.support.models import config_values, random_weights

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "wbr"}
INLINE = {"b", "code", "span", "strong", "wbr"}
ROPE = "model.layers.1.self_attn.q_rope"
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&lt;\x00\x1b\u202e\ud800]]>"


def tap(name, phase="prompt", status="ok", **changes):
    return {
        "phase": phase,
        "tap": name,
        "status": status,
        "precision": "bf16",
        "error": 0.00312,
        "allowed": 0.0176,
        "introduced": 0.00201,
        "own_allowed": 0.0156,
        "cosine": 0.9999951,
        "max_abs": 0.0456,
        "at": [3, 0, 1],
        "p99": 0.0234,
        "where": "",
        "note": "",
    } | changes


def names(layers):
    inside = [f"model.layers.{n}.{op.tap}" for n in range(layers) for op in LAYER]
    return [*(op.tap for op in BEFORE), *inside, "model.norm", "lm_head"]


def facts(layers=3, steps=2, wrong=(), keep=lambda name: True, **changes):
    """What Report.to_dict tells; `wrong` taps, the first of them first, in the place of those that are right."""
    phases = ["prompt", *(f"decode-{i}" for i in range(steps))]
    other = {(t["phase"], t["tap"]): t for t in wrong}
    taps = [other.get((p, name)) or tap(name, p) for p in phases for name in names(layers) if keep(name)]
    missing = [[p, name] for p in phases for name in names(layers) if not keep(name)]
    counts = Counter(t["status"] for t in taps)
    return {
        "format": "qwq-golden-report",
        "version": "1.0",
        "made_by": "qwq_ref 0.1.0",
        "passed": not wrong,
        "mismatch": None,
        "golden": "packs/gqa",
        "model": "a small one",
        "theirs": "arrays",
        "precision": "bf16",
        "margin": 4.0,
        "layers": layers,
        "phases": [
            {"name": p, "start": 0 if i == 0 else 16 + i, "tokens": 1 if i else 17} for i, p in enumerate(phases)
        ],
        "with_weights": True,
        "first": wrong[0] if wrong else None,
        "causes": [],
        "unexplained": [],
        "nearest": None,
        "tried": 56,
        "drift": False,
        "counts": {s: counts[s] for s in ("ok", "introduced", "propagated", "beyond", "nan", "shape")}
        | {"missing": len(missing)},
        "logits": {"tokens": 17, "kl": 0.0951, "kl_max": 0.224, "top1": 0.647, "top5": 0.718, "decided": 6}
        | {"top1_decided": 0.8333},
        "hidden": None,
        "notes": [],
        "unknown": [],
        "missing": missing,
        "taps": taps,
    } | changes


def cause(*explains, **changes):
    return {
        "name": "rope-interleaved",
        "says": "RoPE turns neighbouring pairs",
        "scope": "in layer 1 only, of 0-2",
        "explains": [list(place) for place in explains],
        "against": 8,
        "share": 0.99998,
        "equals": ["rope-backwards"],
    } | changes


def introduced(name=ROPE, phase="prompt", **changes):
    return tap(
        name, phase, "introduced", **{"error": 0.903, "introduced": 0.905, "where": "token 1-16 of 17"} | changes
    )


def failing(**changes):
    after = names(3)[names(3).index(ROPE) + 1 :]
    wrong = [introduced(), *(tap(name, status="propagated", error=0.25) for name in after)]
    return facts(wrong=wrong, **({"causes": [cause(("prompt", ROPE))]} | changes))


def decoding():
    """Wrong in decoding only, and more so in its second step."""
    return facts(wrong=[introduced(phase="decode-0"), introduced(phase="decode-1", introduced=90.5)])


def unusable():
    nan = {"error": None, "introduced": None, "max_abs": None, "p99": None, "note": "at [3, 4]"}
    shape = dict.fromkeys(["error", "allowed", "introduced", "own_allowed", "cosine", "max_abs", "at", "p99"])
    wrong = [
        tap("model.layers.1.mlp.act", status="nan", **nan),
        tap("model.layers.2.resid_post", status="shape", **shape, note="shape [17, 7], but the tap is [17, 44]"),
        tap("model.layers.2.resid_mid", status="beyond", error=None, introduced=None, own_allowed=None),
    ]
    return facts(wrong=wrong)


def large():
    """64 layers and 4 phases, all wrong from layer 9 on."""
    wrong = [
        introduced(name, p) if "rope" in name else tap(name, p, "propagated", error=1e3 * 1.1**i)
        for p in ("prompt", "decode-0", "decode-1", "decode-2")
        for i, name in enumerate(names(64)[3 + 9 * len(LAYER) + 8 :])
    ]
    return facts(64, 3, wrong, unexplained=[[t["phase"], t["tap"]] for t in wrong])


def mismatch():
    nothing = {"taps": [], "missing": [], "logits": None, "precision": "", "passed": False}
    return facts() | nothing | {"mismatch": "other tokens: position 3 is 5, where the pack was recorded on 7"}


def drift():
    wrong = [tap("model.layers.2.resid_post", "decode-1", "propagated", error=0.0264)]
    return facts(wrong=wrong, first=None, passed=True, drift=True)


def hostile():
    bad = introduced(note=HOSTILE, where=HOSTILE, precision=HOSTILE)
    return facts(
        wrong=[bad, tap("lm_head", status="beyond", note=HOSTILE)],
        golden=HOSTILE,
        model=HOSTILE,
        theirs=HOSTILE,
        precision=HOSTILE,
        made_by=HOSTILE,
        causes=[cause(("prompt", ROPE), name=HOSTILE, says=HOSTILE, scope=HOSTILE, equals=[HOSTILE])],
        unexplained=[["prompt", HOSTILE], [HOSTILE, f"model.layers.0.{HOSTILE}"]],
        nearest={"name": HOSTILE, "share": 0.5},
        hidden=[{"name": HOSTILE, "needs": HOSTILE}],
        notes=[HOSTILE],
        unknown=[HOSTILE],
        missing=[[HOSTILE, HOSTILE]],
    )


CASES = {
    "pass": facts(),
    "fail": failing(),
    "decoding": decoding(),
    "unusable": unusable(),
    "large": large(),
    "mismatch": mismatch(),
    "hostile mismatch": mismatch() | {"mismatch": HOSTILE, "theirs": HOSTILE},
    "drift": drift(),
    "hostile": hostile(),
    "one layer": facts(1, 0),
    "two layers": facts(2, 1, wrong=[tap("lm_head", status="beyond", error=2.0)]),
    "logits only": facts(keep=lambda name: name == "lm_head", wrong=[introduced("lm_head")]),
    "every other layer": facts(5, keep=lambda name: not re.search(r"layers\.[13]\.", name)),
    "no tap kept": facts(keep=lambda name: False),
    "exact": facts(wrong=(), keep=lambda name: True) | {"taps": [tap(n, error=0.0, introduced=0.0) for n in names(3)]},
}
PAGES = {name: page(values) for name, values in CASES.items()}
every_page = pytest.mark.parametrize("html", PAGES.values(), ids=PAGES)


class Tree(HTMLParser):
    """Tags with their attributes, and text by the tag that it is in; it minds that tags are closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        self.texts.append(("", "" if tag in INLINE else " "))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self):
        return " ".join("".join(data for tag, data in self.texts if tag != "style").split())


def figures(html):
    """SVGs by their name."""
    found = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.S)]
    return {svg.get("aria-labelledby").split()[0].removesuffix("-t"): svg for svg in found}


def classed(svg, name):
    return [element for element in svg.iter() if name in (element.get("class") or "").split()]


def tooltips(svg, css=""):
    return [rect.find(f"{SVG}title").text for rect in svg.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None
            and (rect.get("class") or "").startswith(css)]  # fmt: skip


def rows(html):
    """The table of wrong taps -> its cells, as text."""
    if "<h2>Wrong taps</h2>" not in html:
        return []
    body = re.search(r"<h2>Wrong taps</h2>.*?<tbody>(.*?)</tbody>", html, re.S)[1]
    return [
        [Tree(cell).text() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr.*?</tr>", body)
    ]


def definition(html, name):
    """The texts that a page has under a name."""
    return [Tree(found).text() for found in re.findall(rf"<dt>{re.escape(name)}</dt><dd>(.*?)</dd>", html)]


@every_page
def test_tags_are_balanced_and_figures_are_xml(html):
    tree = Tree(html)
    assert html.startswith("<!DOCTYPE html>")
    ids = [attrs["id"] for _, attrs in tree.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert html.count("<svg") == len(figures(html))


@every_page
def test_a_page_is_accessible(html):
    tree = Tree(html)
    headings = [int(tag[1]) for tag, _ in tree.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(headings))
    assert all(attrs.get("scope") in ("col", "row", "colgroup") for tag, attrs in tree.tags if tag == "th")
    for svg in figures(html).values():
        assert svg.get("role") == "img"
        labels = [svg.find(f"{SVG}{tag}") for tag in ("title", "desc")]
        assert [label.get("id") for label in labels] == svg.get("aria-labelledby").split()
        assert all(label.text for label in labels)


@every_page
def test_a_page_needs_nothing_from_elsewhere(html):
    tree = Tree(html)
    allowed = {"class", "id", "scope", "rowspan", "colspan", "role", "tabindex", "lang", "charset", "name", "content"}
    allowed |= {"aria-label", "aria-labelledby", "aria-hidden", "http-equiv", "xmlns", "viewbox", "width", "height"}
    allowed |= {"x", "y", "cx", "cy", "r", "d", "patternunits", "patterntransform"}
    assert {name for _, attrs in tree.tags for name in attrs} <= allowed
    assert not {tag for tag, _ in tree.tags} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "base",
        "a",
        "use",
        "image",
    }
    style = "".join(data for tag, data in tree.texts if tag == "style")
    assert "@import" not in style
    assert re.findall(r"url\((.*?)\)", style) == ["#hatch"]
    assert "default-src 'none'" in html


@every_page
def test_all_that_is_drawn_has_a_style_and_is_within_its_figure(html):
    styled = {"propagated", "beyond"}  # marks that are as all are
    styled |= set(re.findall(r"\.([\w-]+)", re.sub(r"{.*?}", " ", re.search(r"<style>(.*?)</style>", html, re.S)[1])))
    for svg in figures(html).values():
        _, _, width, height = map(float, svg.get("viewBox").split())
        assert (svg.get("width"), svg.get("height")) == (f"{width:g}", f"{height:g}")
        for element in svg.iter():
            assert set((element.get("class") or "").split()) <= styled
            if element.tag == f"{SVG}rect":
                x, y, w, h = (float(element.get(key)) for key in ("x", "y", "width", "height"))
                assert 0 <= x <= x + w <= width
                assert 0 <= y <= y + h <= height
            if element.tag == f"{SVG}circle":
                assert 0 <= float(element.get("cx")) <= width
                assert 0 <= float(element.get("cy")) <= height
            if element.tag == f"{SVG}text":
                assert "end" in element.get("class", "") or float(element.get("x")) + 6 * len(element.text) <= width + 9
    if classed(ET.fromstring("<g>" + "".join(re.findall(r"<svg.*?</svg>", html, re.S)) + "</g>"), "h"):
        assert 'id="hatch"' in html


@every_page
def test_sections_come_in_their_order(html):
    order = ["Verdict", "Logits", "Error by tap and layer", "Wrong taps", "What could not be told from these tensors"]
    order += ["Not compared", "Notes", "Versions"]
    found = re.findall(r"<h2>(.*?)</h2>", html)
    assert found == [title for title in order if title in found]
    assert {"Verdict", "Versions"} <= set(found)


@pytest.mark.parametrize("name", ["hostile", "hostile mismatch"])
def test_text_from_files_stays_text(name):
    html = PAGES[name]
    html.encode()  # no lone surrogates
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", html)
    tree = Tree(html)  # and the tests above hold for it: no tag or attribute of its own
    assert "<script" not in html
    assert "<img" not in html
    shown = HOSTILE.translate(dict.fromkeys([0, 0x1B, 0x202E, 0xD800], "?"))
    assert shown in tree.text()
    html = html.replace("<wbr>", "")
    assert html.count("alert(1)") == html.count("&lt;script&gt;alert(1)&lt;/script&gt;")
    if name == "hostile":
        for where in ("title", "code", "p", "dd", "li", "td"):
            assert any("alert(1)" in data for tag, data in tree.texts if tag == where), where


def test_pages_are_small():
    assert len(PAGES["large"].encode()) < 600_000
    assert len(PAGES["fail"].encode()) < 60_000
    assert len(PAGES["mismatch"].encode()) < 8_000


def test_the_dictionary_is_that_of_a_report(tmp_path):
    """The ones that these tests draw have the keys that a report's has; a stored one is drawn as the report is."""
    config = Config.from_dict(config_values())
    pack = oracle.record(config, random_weights(config, 0), tmp_path / "pack", [1, 2, 3, 4, 5], 2)
    with oracle.Golden.open(pack) as golden:
        taps = {p.name: {t: golden.read(p.name, t) for t in golden.manifest.sizes} for p in golden.manifest.phases}
        taps["decode-1"]["model.layers.1.mlp.act"] = np.asarray(taps["decode-1"]["model.layers.1.mlp.act"]) * 2
        report = oracle.compare(golden, taps, model=random_weights(config, 0), precision="fp32")
    real = report.to_dict()
    assert real.keys() == facts().keys()
    assert all(t.keys() == tap("").keys() for t in real["taps"])
    assert real["logits"].keys() == facts()["logits"].keys()
    assert real["counts"].keys() == facts()["counts"].keys()
    assert page(json.loads(json.dumps(real))) == page(real)
    assert "first divergence at model.layers.1.mlp.act, in decode-1" in Tree(page(real)).text()
    assert str(report.first.distance.at[-1]) in rows(page(real))[0][9]


def test_the_verdict_comes_first_and_says_all():
    html = PAGES["fail"]
    verdict = Tree(re.search(r"<h2>Verdict</h2>.*?</section>", html, re.S)[0].removesuffix("</section>")).text()
    assert "FAIL first divergence at model.layers.1.self_attn.q_rope, in the prompt" in verdict
    assert definition(html, "on its own inputs") == ["error 0.905, where a correct bf16 may have 0.0156 (58 × allowed)"]
    assert definition(html, "from the golden value") == ["error 0.903, where a correct bf16 may have 0.0176"]
    assert definition(html, "where") == ["token 1-16 of 17"]
    assert "Cause: rope-interleaved" in verdict
    assert "RoPE turns neighbouring pairs" in verdict
    assert definition(html, "scope") == ["in layer 1 only, of 0-2"]
    assert definition(html, "reproduces") == ["1 wrong tap to within rounding (99.998% of the error)"]
    assert definition(html, "cannot be told from") == ["rope-backwards here"]
    assert definition(html, "against it") == ["8 other taps, which it would move, are right"]
    counts = CASES["fail"]["counts"]
    assert f"{counts['ok']} right" in verdict
    assert f"{counts['propagated']} – wrong only from their inputs" in verdict


def test_logits():
    html = PAGES["fail"]
    assert definition(html, "KL divergence") == ["0.0951 nats in the mean, 0.224 at most"]
    assert definition(html, "same top 1") == ["64.7%; 83.3% of the 6 tokens that rounding cannot turn"]
    assert definition(html, "overlap of top 5") == ["71.8%"]
    unknown = page(facts(logits=facts()["logits"] | {"kl": None, "top1": None}))
    assert definition(unknown, "KL divergence") == ["unknown nats in the mean, 0.224 at most"]


def test_what_no_mistake_explains():
    left = [["prompt", ROPE], ["prompt", "model.layers.2.mlp.act"], ["prompt", "model.layers.1.mlp.act"]]
    text = Tree(page(failing(causes=[], unexplained=left, nearest={"name": "gelu", "share": 0.61}))).text()
    assert "Unexplained: 3 taps" in text
    assert "None of 56 known mistakes reproduces them. The nearest is gelu, with 61% of the error." in text
    assert "mlp.act 1-2 prompt" in text
    assert "Cause: not known." in Tree(page(failing(causes=[]))).text()
    assert "with the model's weights it may be" in Tree(page(failing(causes=[], with_weights=False))).text()
    also = page(
        failing(causes=[cause(("prompt", ROPE)), cause(("prompt", "lm_head"), name="gelu", against=0, equals=[])])
    )
    assert re.findall(r"<h3>(\w+): <code>(\S+)</code>", also) == [("Cause", "rope-interleaved"), ("Also", "gelu")]


def test_the_first_divergence_is_marked_once():
    for name, where, elsewhere in (("fail", "map-prompt", "map-decoding"), ("decoding", "map-decoding", "map-prompt")):
        svgs = figures(PAGES[name])
        (outline,) = classed(svgs[where], "f")
        assert outline.find(f"{SVG}title").text.startswith(f"first divergence: {ROPE}")
        assert not classed(svgs[elsewhere], "f")
        (cell,) = [
            rect
            for rect in svgs[where].iter(f"{SVG}rect")
            if rect is not outline and any(title.text.startswith(ROPE) for title in rect)
        ]
        x, y, w, h = (float(cell.get(key)) for key in ("x", "y", "width", "height"))
        assert [float(outline.get(key)) for key in ("x", "y", "width", "height")] == [x - 2, y - 2, w + 4, h + 4]
        assert [element.text for element in svgs["depth"].iter(f"{SVG}text")].count("first divergence") == 1
        (row,) = [row for row in rows(PAGES[name]) if "first divergence" in row[2]]
        assert row[1:3] == ["prompt" if name == "fail" else "decode-0", f"{ROPE}← first divergence"]
    assert not classed(figures(PAGES["pass"])["map-prompt"], "f")


def test_the_table_has_the_reports_numbers():
    first = rows(PAGES["fail"])[0]
    assert first == [
        str(names(3).index(ROPE) + 1), "prompt", f"{ROPE}← first divergence", "● wrong by itself", "0.903", "0.0176",
        "0.905", "0.0156", "0.999995", "0.0456 at [3, 0, 1]", "0.0234", "token 1-16 of 17", "cause: rope-interleaved",
    ]  # fmt: skip
    numbers = [row[4:11] for row in rows(PAGES["unusable"])]
    assert ["infinite", "0.0176", "infinite", "0.0156", "0.999995", "infinite at [3, 0, 1]", "infinite"] in numbers
    assert [""] * 7 in numbers
    assert ["infinite", "0.0176", "", "", "0.999995", "0.0456 at [3, 0, 1]", "0.0234"] in numbers


@pytest.mark.parametrize("name", ["fail", "decoding", "unusable", "large", "drift", "two layers", "logits only"])
def test_the_table_has_the_worst_in_the_order_of_the_computation(name):
    given, found = CASES[name], rows(PAGES[name])
    wrong = [t for t in given["taps"] if t["status"] != "ok"]
    assert len(found) == min(MOST, len(wrong))
    assert [int(row[0]) for row in found] == sorted(int(row[0]) for row in found)
    for row in found:
        told = given["taps"][int(row[0]) - 1]
        assert row[1] == told["phase"]
        assert row[2].startswith(told["tap"])
    if given["first"]:
        assert any("first divergence" in row[2] for row in found)
    if len(wrong) > MOST:
        assert f"The {MOST} worst of {len(wrong):,}" in PAGES[name]
        assert {row[3] for row in found} == {"● wrong by itself"}  # of these there are enough


def test_the_first_divergence_is_in_the_table_however_small():
    wrong = [introduced(introduced=0.0157), *(introduced(name) for name in names(3)[-30:])]
    wrong += [introduced(name, "decode-0") for name in names(3)[-30:]]
    found = rows(page(facts(wrong=wrong)))
    assert len(found) == MOST
    assert found[0][2] == f"{ROPE}← first divergence"


def test_a_map_has_a_cell_for_each_tap_and_tells_how_far_off_it_is():
    svgs = figures(PAGES["fail"])
    told = tooltips(svgs["map-prompt"])
    assert [words.split(":")[0] for words in told[:-1]] == sorted(
        names(3), key=lambda name: _row_of(name)
    )  # the outline is last
    assert f"{ROPE}: wrong by itself, 58 × allowed" in told
    assert "lm_head: wrong only from its inputs, 14.2 × allowed" in told
    assert "model.embed_tokens: right, 0.177 × allowed" in told
    counts = Counter(t["status"] for t in CASES["fail"]["taps"] if t["phase"] == "prompt")
    assert len(tooltips(svgs["map-prompt"], "o")) == counts["ok"]
    assert len(tooltips(svgs["map-prompt"], "i")) == counts["introduced"]
    assert len(tooltips(svgs["map-prompt"], "p")) == counts["propagated"]
    summary = svgs["map-prompt"].find(f"{SVG}desc").text
    assert summary == f"{counts['ok']} right, 1 wrong by itself, {counts['propagated']} wrong only from their inputs"


def _row_of(name):
    """Maps are written line by line."""
    inside = {op.tap: i for i, op in enumerate(LAYER)}
    layer = re.match(r"model\.layers\.(\d+)\.(.*)", name)
    if layer:
        return 1, inside[layer[2]], int(layer[1])
    return (0, names(0).index(name), 0) if name in [op.tap for op in BEFORE] else (2, names(0).index(name), 0)


def test_colour_is_not_the_only_sign():
    svg = figures(PAGES["fail"])["map-prompt"]
    marks = {css: path.get("d").count("M") for path in svg.iter(f"{SVG}path") for css in [path.get("class").split()[1]]}
    counts = Counter(t["status"] for t in CASES["fail"]["taps"] if t["phase"] == "prompt")
    assert marks["introduced"] == counts["introduced"]
    assert marks["propagated"] == counts["propagated"]
    strong = page(facts(wrong=[introduced(), introduced("lm_head", introduced=0.0156 * 63)]))
    kinds = [path.get("class") for path in figures(strong)["map-prompt"].iter(f"{SVG}path")]
    assert kinds == ["m introduced strong"]  # both beyond 16, from where on dark marks would not be seen
    kinds = {path.get("class") for path in figures(PAGES["unusable"])["map-prompt"].iter(f"{SVG}path")}
    assert kinds == {"m nan strong", "m shape strong", "m beyond strong"}


@pytest.mark.parametrize(("most", "factor"), [(1.2, 2), (63, 2), (65, 4), (1e5, 10), (1e11, 100), (1e40, 10_000)])
def test_the_scale_fits_the_errors(most, factor):
    wrong = [tap("model.layers.0.resid_pre", status="propagated", error=1.1 * 0.0176)]
    wrong.append(tap("lm_head", status="propagated", error=most * 0.0176))
    svgs = figures(page(facts(wrong=wrong)))
    edges = [text.text for text in svgs["legend"].iter(f"{SVG}text")]
    assert edges[1:3] == ["1", f"{factor:,}"]
    level = min(5, int(math.log(most, factor)))
    assert any("lm_head" in words for words in tooltips(svgs["map-prompt"], f"p{level}"))


def test_decoding_shows_the_worst_step():
    svg = figures(PAGES["decoding"])["map-decoding"]
    assert f"{ROPE} in decode-1: wrong by itself, 5,800 × allowed" in tooltips(svg)
    assert "In decoding, the worst of 2 steps" in PAGES["decoding"]
    assert "map-decoding" not in PAGES["one layer"]


def test_missing_taps_are_hatched_and_listed():
    html = PAGES["every other layer"]
    svgs = figures(html)
    assert len(classed(svgs["map-prompt"], "h")) == 2 * len(LAYER)
    assert "not compared" in [text.text for text in svgs["legend"].iter(f"{SVG}text")]
    listed = Tree(re.search(r"<h2>Not compared</h2>(.*?)</section>", html, re.S)[1]).text()
    assert listed.count(" 1, 3 all") == len(LAYER)
    assert not classed(figures(PAGES["pass"])["map-prompt"], "h")
    assert "not compared" not in PAGES["pass"]


def test_error_over_depth():
    svg = figures(PAGES["fail"])["depth"]
    points = [point.find(f"{SVG}title").text for css in ("d0", "d1") for point in classed(svg, css) if len(point)]
    assert points[:3] == [
        "layer 0, prompt: error 0.00312, allowed 0.0176",
        "layer 1, prompt: error 0.25, allowed 0.0176",
        "layer 2, prompt: error 0.25, allowed 0.0176",
    ]
    assert len(points) == 6
    assert svg.find(f"{SVG}desc").text == (
        "prompt: more than allowed in layer 1-2; decoding: within what is allowed in each layer"
    )
    heights = [float(point.get("cy")) for point in classed(svg, "d0") if len(point)]
    assert heights[0] > heights[1] == heights[2]
    ticks = [element.text for element in svg.iter(f"{SVG}text") if element.get("class") == "end"]
    assert ticks[:6] == ["0.005", "0.01", "0.02", "0.05", "0.1", "0.2"]


@pytest.mark.parametrize(
    ("least", "most", "ticks"),
    [
        (1e-7, 1e-1, ["10⁻⁷", "10⁻⁶", "10⁻⁵", "10⁻⁴", "0.001", "0.01", "0.1"]),
        (2e-8, 3e-8, ["10⁻⁸", "2·10⁻⁸", "5·10⁻⁸"]),
        (1e-9, 1e12, ["10⁻⁹", "10⁻⁶", "0.001", "1", "1000", "10⁶", "10⁹", "10¹²"]),
    ],
)
def test_ticks_can_be_read(least, most, ticks):
    taps = [tap(name, error=least, allowed=most) for name in names(3)]
    svg = figures(page(facts(steps=0) | {"taps": taps}))["depth"]
    assert [text.text for text in svg.iter(f"{SVG}text") if text.get("class") == "end"] == ticks


def test_the_line_is_of_the_tap_that_most_layers_have():
    only = facts(4, keep=lambda name: "resid_post" not in name or "layers.0" in name)
    assert "Error of <code>mlp.<wbr>down_proj</code> by layer" in page(only)
    broken = figures(PAGES["every other layer"])["depth"]
    assert broken.find(f"{SVG}title").text == "Error of resid_post by layer"
    errors = [path.get("d") for path in classed(broken, "s0")]
    assert max(path.count("M") for path in errors) == 3


def test_depth_shows_the_worst_step_zero_and_infinity():
    post = "model.layers.{}.resid_post"
    wrong = [
        tap(post.format(0), "decode-0", "propagated", error=0.5),
        tap(post.format(0), "decode-1", "propagated", error=0.4),
        tap(post.format(1), "decode-1", "beyond", error=None),
        tap(post.format(2), "decode-0", error=0.0),
        tap(post.format(2), "decode-1", error=0.0, allowed=0.0),
        tap("model.layers.2.self_attn.o_proj", "decode-1", "propagated", allowed=0.0),
    ]
    html = page(facts(wrong=wrong))
    svg = figures(html)["depth"]
    points = {p.find(f"{SVG}title").text: float(p.get("y")) + 3 for p in classed(svg, "d1") if len(p)}
    plot = classed(svg, "plot")[0]
    top = float(plot.get("y"))
    assert list(points) == [
        "layer 0, decoding: error 0.5, allowed 0.0176",
        "layer 1, decoding: error infinite, allowed 0.0176",
        "layer 2, decoding: error 0, allowed 0.0176",
    ]
    assert list(points.values())[1:] == [top, top + float(plot.get("height"))]
    assert "model.layers.2.self_attn.o_proj in decode-1: wrong only from its inputs, infinitely far off" in html


def test_what_is_allowed_in_a_single_layer_can_be_seen():
    lines = [path.get("d") for path in classed(figures(PAGES["one layer"])["depth"], "l0")]
    assert any("h18" in line for line in lines)


def test_logits_alone():
    html = PAGES["logits only"]
    svgs = figures(html)
    assert set(svgs) == {"legend", "map-prompt", "map-decoding"}
    assert not any("resid_post" in text.text for text in svgs["map-prompt"].iter(f"{SVG}text"))
    assert "there is no line to draw over depth" in html
    assert "first divergence at lm_head, in the prompt" in Tree(html).text()


def test_other_tokens():
    html = PAGES["mismatch"]
    assert "<svg" not in html
    assert (
        "FAIL other tokens: position 3 is 5, where the pack was recorded on 7; nothing was compared"
        in Tree(html).text()
    )
    assert re.findall(r"<h2>(.*?)</h2>", html) == ["Verdict", "Versions"]


def test_a_pass():
    text = Tree(PAGES["pass"]).text()
    assert "PASS no error above 18% of what is allowed (model.rotary_emb.cos, in the prompt, in all)" in text
    assert "<h2>Wrong taps</h2>" not in PAGES["pass"]
    assert "<title>PASS: arrays against packs/gqa</title>" in PAGES["pass"]
    assert "PASS nothing could be measured" in Tree(PAGES["no tap kept"]).text()


def test_drift_passes_and_is_told():
    text = Tree(PAGES["drift"]).text()
    assert "PASS no error above 150% of what is allowed (model.layers.2.resid_post, in decode-1, in all)" in text
    assert "the roundings add up to more than in our runs: 1 tap." in text
    assert len(rows(PAGES["drift"])) == 1


def test_what_could_not_be_told():
    text = Tree(page(facts(hidden=[{"name": "cache-bf16", "needs": "fp32 or fp16"}]))).text()
    assert "cache-bf16" in text
    assert "fp32 or fp16" in text
    assert "each known mistake that concerns this model would have shown" in page(facts(hidden=[]))
    assert "was not looked into" in PAGES["pass"]


def test_notes_unknown_names_and_versions():
    html = page(facts(notes=["a note"], unknown=[f"name.{i}" for i in range(MOST + 7)]))
    text = Tree(html).text()
    assert "a note" in text
    assert f"name.{MOST - 1} and 7 more" in text
    assert definition(html, "made by") == ["qwq_ref 0.1.0"]
    assert definition(html, "format") == ["qwq-golden-report 1.0"]
    assert definition(html, "allowed") == ["4 times the rounding of correct implementations"]
    assert definition(html, "phases (tokens from position)") == [
        "prompt (17 from 0), decode-0 (1 from 17), decode-1 (1 from 18)"
    ]


def test_drawing_changes_nothing():
    given = failing()
    before = copy.deepcopy(given)
    assert page(given) == page(given)
    assert given == before


def _luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_marks_can_be_seen(theme):
    style = re.search(r"<style>(.*?)</style>", PAGES["pass"], re.S)[1]
    themes = [dict(re.findall(r"--(\w+):(#\w{6})", found)) for found in re.findall(r":root{(.*?)}", style)]
    assert len(themes) == 2
    assert themes[0].keys() == themes[1].keys()
    colours = {name: _luminance(colour) for name, colour in themes[theme].items()}

    def contrast(a, b):
        light, dark = max(colours[a], colours[b]), min(colours[a], colours[b])
        return (light + 0.05) / (dark + 0.05)

    for a, b in (("ink", "bg"), ("ink", "soft"), ("dim", "bg"), ("dim", "soft"), ("on", "pass"), ("on", "fail")):
        assert contrast(a, b) >= 4.5, (a, b)
    assert contrast("second", "bg") >= 3
    for ramp in "ipb":
        for level in range(6):  # a mark on its cell; the colours of a scale go one way
            assert contrast("bg" if level >= 4 else "ink", f"{ramp}{level}") >= 3, (ramp, level)
        values = [colours[f"{ramp}{level}"] for level in range(6)]
        assert values == sorted(values, reverse=theme == 0)

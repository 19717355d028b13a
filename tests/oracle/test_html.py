"""The report as a page: well-formed, self-contained, safe, with the numbers of the report."""

import copy
import itertools
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from qwq_ref import oracle
from qwq_ref.config import Config
from qwq_ref.oracle.render.html import MOST, page
from tests.support.models import config_values, random_weights
from tests.support.reports import (
    CASES,
    HOSTILE,
    PAGES,
    ROPE,
    SVG,
    Tree,
    cause,
    classed,
    facts,
    failing,
    figures,
    introduced,
    names,
    tap,
)

every_page = pytest.mark.parametrize("html", PAGES.values(), ids=PAGES)


def rows(html):
    """Return the cells of the table of wrong taps, as text."""
    if "<h2>Wrong taps</h2>" not in html:
        return []
    body = re.search(r"<h2>Wrong taps</h2>.*?<tbody>(.*?)</tbody>", html, re.S)[1]
    return [
        [Tree(cell).text() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr.*?</tr>", body, re.S)
    ]


def definition(html, name):
    """Return the texts that a page has under a name."""
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
    """The facts of these tests have the keys of a report's facts. A stored report gives the same page."""
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
    themes = [dict(re.findall(r"--(\w+):(#\w{6})", found)) for found in re.findall(r":root{(.*?)}", style, re.S)]
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

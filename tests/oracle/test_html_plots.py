"""The plots of the page: the maps of taps and layers, and the error over depth."""

import math
import re
from collections import Counter

import pytest

from qwq_ref.oracle.graph import BEFORE, LAYER
from qwq_ref.oracle.render.html import page
from tests.support.reports import (
    CASES,
    PAGES,
    ROPE,
    SVG,
    Tree,
    classed,
    facts,
    figures,
    introduced,
    names,
    tap,
)


def tooltips(svg, css=""):
    return [rect.find(f"{SVG}title").text for rect in svg.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None
            and (rect.get("class") or "").startswith(css)]  # fmt: skip


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
    """The row number of a tap: maps are written row by row."""
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

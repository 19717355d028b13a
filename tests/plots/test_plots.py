"""The pictures: their numbers follow the data, their bytes do not change, and every letter can be read."""

import re
import warnings
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from qwq_ref.plots import attention, lens, residual
from qwq_ref.plots.letters import FONT, LONGEST, Letters, columns, cut, for_pixels, lacking
from qwq_ref.plots.sheet import View, drawing, rendered, text_lines
from qwq_ref.plots.theme import DARK, LIGHT

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is missing: pip install 'qwq_ref[plot]'")

SVG = "{http://www.w3.org/2000/svg}"


def facts(T=6, L=3, H=4, token=-1, head=None, layers=None, texts=None, seed=0):
    """Random data in the shape of `Inside.to_dict`."""
    rng, token, V = np.random.default_rng(seed), token % T, 40
    layers = list(range(L)) if layers is None else layers
    texts = texts or [f" w{t}" for t in range(T)]

    def probabilities(*shape):
        return np.round(rng.dirichlet(np.full(shape[-1], 0.3), shape[:-1]), 4).tolist()

    made = {
        "model": "models/random",
        "prompt": "A text",
        "tokens": [{"id": t, "text": text} for t, text in enumerate(texts)],
        "prompt_tokens": T,
        "token": token,
        "layers": L,
        "heads": H,
        "attention": {"layers": layers, "query": probabilities(len(layers), H, token + 1)},
        "residual": {
            name: np.exp(rng.normal(0, 2, (rows, T))).tolist()
            for name, rows in (("rms", L + 1), ("attention", L), ("mlp", L))
        },
        "lens": {
            "texts": {str(i): f"n{i}" for i in range(V)},
            "ids": rng.integers(0, V, (L + 1, T, 5)).tolist(),
            "probs": (-np.sort(-np.array(probabilities(L + 1, T, 5)), axis=-1)).tolist(),
            "rank": rng.integers(1, V, (L + 1, T)).tolist(),
        },
    }
    if head is not None:
        matrix = [[probabilities(t + 1) for t in range(T)] for _ in layers]
        made["attention"] |= {"head": head, "matrix": matrix}
    return made


def draw(draw, made, dark=False, kind="svg", title="A text", **how):
    texts = [token["text"] for token in made["tokens"]] + [*made["lens"]["texts"].values()]
    view = View.of(kind, title, texts, dark)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with drawing(view):
            return rendered(draw(made, view, **how), kind)


def groups(svg, name):
    """The elements of the group with an id."""
    root = ElementTree.fromstring(svg)
    return [part for group in root.iter(f"{SVG}g") if group.get("id") == name for part in group.iter(f"{SVG}path")]


def colours(svg, prefix):
    """The colours of all cells of the maps `prefix`-0, `prefix`-1, ..., row by row in each."""
    found = []
    while cells := groups(svg, f"{prefix}-{len(found)}"):
        found.append([cell.get("fill") for cell in cells])
    return found


def wanted_colours(values, norm, theme):
    from matplotlib.colors import to_hex

    return [to_hex(theme.colours()(norm(value))) for value in np.ravel(values)]


def texts(svg):
    return [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("dark", [False, True])
def test_attention_of_a_token_has_a_row_for_each_head_of_one_layer(dark):
    made = facts(T=7, token=4, layers=[1])
    svg = draw(attention.draw, made, dark)
    (found,) = colours(svg, "attention")
    assert found == wanted_colours(made["attention"]["query"][0], attention._norm(), DARK if dark else LIGHT)
    words = texts(svg)
    assert "Attention from token 4 “␣w4” to the text up to it: layer 1, one row for each head" in words
    assert {f"␣w{t}" for t in range(5)} < set(words)
    assert "␣w5" not in words


def test_attention_of_several_layers_has_the_mean_of_heads():
    made = facts()
    (found,) = colours(draw(attention.draw, made), "attention")
    means = np.mean(made["attention"]["query"], axis=1)
    assert found == wanted_colours(means, attention._norm(), LIGHT)


def test_a_long_text_is_cut_into_lines():
    made = facts(T=200, layers=[0])
    found = colours(draw(attention.draw, made), "attention")
    query = np.array(made["attention"]["query"][0])
    assert [len(line) for line in found] == [4 * 50] * 4
    assert found[2] == wanted_colours(query[:, 100:150], attention._norm(), LIGHT)
    assert [*map(len, text_lines(113, 56))] == [38, 38, 37]


def test_a_matrix_has_the_cells_that_a_token_can_see():
    made = facts(T=6, layers=[2], head=1)
    (found,) = colours(draw(attention.draw, made), "attention")
    rows = [p for row in made["attention"]["matrix"][0] for p in row]
    assert found == wanted_colours(rows, attention._norm(), LIGHT)
    large = draw(attention.draw, facts(T=200, layers=[2], head=1))
    assert b"<image" in large
    assert len(large) < 300_000


def line(svg, name):
    """The points of the line `name`, in the picture's own unit."""
    (path,) = [part for part in groups(svg, name) if "L" in part.get("d")][:1]
    return np.array(re.findall(r"[ML] (\S+) (\S+)", path.get("d")), float)


@pytest.mark.parametrize("T", [1, 6, 200])
def test_lines_of_the_residual_stream_follow_the_data(T):
    made = facts(T=T, token=T // 2)
    svg = draw(residual.draw, made)
    rms = np.array(made["residual"]["rms"])
    shown = {"chosen": rms[:, T // 2]} | {f"token-{t}": rms[:, t] for t in range(min(T, 5))}
    points = [line(svg, name)[:, 1] for name in shown]
    slope, start = np.polyfit(np.log(np.concatenate([*shown.values()])), np.concatenate(points), 1)
    assert slope < 0  # heights are counted from the top
    for name, found in zip(shown, points, strict=True):
        np.testing.assert_allclose(found, start + slope * np.log(shown[name]), atol=0.01, err_msg=name)
    for name in ("attention", "mlp"):
        share = np.array(made["residual"][name])[:, T // 2] / rms[:-1, T // 2]
        heights = line(svg, name)[:, 1]
        assert np.corrcoef(np.log(share), heights)[0, 1] < -0.99999
    largest = int(rms[-1].argmax())
    assert f"{T // 2} “␣w{T // 2}”" in texts(svg)
    assert f"{largest} “␣w{largest}”" in texts(svg)


def test_a_stream_of_zeros_can_be_drawn():
    made = facts()
    made["residual"] = {name: np.zeros_like(rows).tolist() for name, rows in made["residual"].items()}
    assert b"root mean square" in draw(residual.draw, made)


def test_the_lens_of_a_short_text_has_words():
    from matplotlib.colors import Normalize

    made = facts(T=30)
    svg = draw(lens.draw, made)
    found, ids, probs = colours(svg, "lens"), np.array(made["lens"]["ids"]), np.array(made["lens"]["probs"])
    assert [len(part) for part in found] == [4 * 10] * 3
    for n, part in enumerate(found):
        columns = slice(10 * n, 10 * n + 10)
        assert part == wanted_colours(probs[::-1, columns, 0], Normalize(0, 1), LIGHT)
    words = [word for word in texts(svg) if re.fullmatch(r"n\d+", word or "")]
    wanted = [f"n{i}" for n in range(3) for i in ids[::-1, 10 * n : 10 * n + 10, 0].ravel()]
    assert words == wanted


def test_the_lens_of_a_token_lists_tokens_with_probabilities():
    made = facts(T=30)
    words = texts(draw(lens.draw, made, token=7))
    ids, probs = np.array(made["lens"]["ids"])[::-1, 7], np.array(made["lens"]["probs"])[::-1, 7]
    pairs = [word for i, p in zip(ids.ravel(), probs.ravel(), strict=True) for word in (f"n{i}", f"{p:.2f}")]
    start = next(n for n in range(len(words)) if words[n : n + len(pairs)] == pairs)
    assert start >= 0


def test_the_lens_of_a_long_text_has_ranks():
    from matplotlib.colors import LogNorm

    made = facts(T=100)
    svg = draw(lens.draw, made)
    ranks = np.array(made["lens"]["rank"])[::-1]
    norm = LogNorm(1 / max(10, ranks.max()), 1)
    found = colours(svg, "lens")
    assert found == [wanted_colours(1 / ranks[:, part], norm, LIGHT) for part in (slice(50), slice(50, 100))]
    final = [f"n{i}" for i in np.array(made["lens"]["ids"])[-1, :, 0]]
    assert [word for word in texts(svg) if re.fullmatch(r"n\d+", word or "")] == final


DRAWN = [
    pytest.param(attention.draw, facts(), {}, id="attention"),
    pytest.param(attention.draw, facts(layers=[0], head=1), {}, id="matrix"),
    pytest.param(residual.draw, facts(), {}, id="residual"),
    pytest.param(lens.draw, facts(), {}, id="lens"),
    pytest.param(lens.draw, facts(), {"token": 0}, id="lens of a token"),
    pytest.param(lens.draw, facts(T=60), {}, id="ranks"),
]


@pytest.mark.parametrize(("subject", "made", "how"), DRAWN)
def test_the_same_data_give_the_same_bytes(subject, made, how, monkeypatch):
    first = {kind: draw(subject, made, kind=kind, **how) for kind in ("svg", "png")}
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 20)  # settings of this machine
    monkeypatch.setitem(matplotlib.rcParams, "axes.grid", True)
    for kind, picture in first.items():
        assert draw(subject, made, kind=kind, **how) == picture, kind
    assert matplotlib.rcParams["font.size"] == 20
    assert b"dc:date" not in first["svg"]
    assert first["png"].startswith(b"\x89PNG")
    assert b"Software" not in first["png"]


@pytest.mark.parametrize(("subject", "made", "how"), DRAWN)
@pytest.mark.parametrize("dark", [False, True])
def test_everything_is_on_the_paper(subject, made, how, dark):
    """No letter is cut off: each lies within the figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    view = View.of("svg", "A text", [], dark)
    with drawing(view):
        figure = subject(made, view, **how)
        canvas, paper = FigureCanvasAgg(figure), figure.bbox
        canvas.draw()  # sets the places of the names of axes
        for text in figure.findobj(matplotlib.text.Text):
            if text.get_text() and text.get_visible():
                box = text.get_window_extent(canvas.get_renderer())
                assert paper.x0 <= box.x0 <= box.x1 <= paper.x1, text
                assert paper.y0 <= box.y0 <= box.y1 <= paper.y1, text


@pytest.mark.parametrize("T", [1, 2, 5, 49, 65, 512])
@pytest.mark.parametrize("subject", [attention.draw, residual.draw, lens.draw])
def test_texts_of_every_length_can_be_drawn(subject, T):
    made = facts(T=T, L=2, H=3, layers=[0], head=0 if T == 512 else None)
    ElementTree.fromstring(draw(subject, made))


def contrast(one, other):
    from matplotlib.colors import to_rgb

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return np.dot([0.2126, 0.7152, 0.0722], linear)

    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_letters_have_contrast_and_the_scale_runs_one_way(theme):
    assert contrast(theme.ink, theme.paper) >= 7
    assert min(contrast(colour, theme.paper) for colour in (*theme.lines, theme.faint)) >= 3
    scale = [theme.colours()(step) for step in np.linspace(0, 1, 101)]
    from_paper = [contrast(colour[:3], theme.paper) for colour in scale]
    assert (np.diff(from_paper) > 0).all()
    assert min(contrast(theme.ink_on(colour), colour[:3]) for colour in scale) >= 4.5


def test_tokens_as_labels():
    letters = Letters()
    assert [letters.token(text) for text in (" is", "\n\n", "\t", "a\x1b", "$x$", "\u202e")] == [
        *("␣is", "↵↵", "⇥", r"a\x1b", "$x$", r"\u202e")
    ]
    assert letters.token("x" * 40) == "x" * (LONGEST - 1) + "…"
    assert cut("加" * 9, 7) == "加加加…"
    assert columns("加a") == 3
    assert Letters(missing=frozenset("加")).token("加a") == r"\u52a0a"
    assert Letters().text("two\nlines") == "two↵lines"


def test_marks_of_formulas_and_of_xml_stay_text():
    made = facts(T=3, texts=["$x^2$", "<b>&", "]]>"])
    svg = draw(lens.draw, made, title="$a$ <script> & \x00 ]]>")
    assert {"$x^2$", "<b>&", "]]>", r"$a$ <script> & \x00 ]]>"} <= set(texts(svg))


def test_letters_without_a_font_are_escapes_in_pixels_and_letters_in_an_svg(monkeypatch):
    from matplotlib import font_manager

    only = [entry for entry in font_manager.fontManager.ttflist if entry.name in (FONT, "Last Resort High-Efficiency")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", only)
    letters = for_pixels(["加é"])
    assert (letters.fonts, letters.missing) == ((FONT,), frozenset("加"))
    made = facts(T=3, texts=["加", "b", "c"])
    assert draw(lens.draw, made, kind="png").startswith(b"\x89PNG")  # a warning about a glyph would be an error
    assert "加" in texts(draw(lens.draw, made))
    assert lacking("a加é") == {"加"}


def test_an_installed_font_serves(monkeypatch):
    """As a font of Chinese would: here, one with a sign that FONT lacks is found by looking into the files."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    own = set(FT2Font(font_manager.findfont(FONT)).get_charmap())
    for entry in font_manager.fontManager.ttflist:
        more = set(FT2Font(entry.fname).get_charmap()) - own
        sign = next((chr(code) for code in sorted(more) if chr(code).isprintable()), None)
        if sign is not None and "Last" not in entry.name:
            break
    else:
        pytest.skip("no other font is here")
    letters = for_pixels([f"a{sign}"])
    assert letters.missing == frozenset()
    assert letters.fonts[0] == FONT
    assert len(letters.fonts) == 2

"""Facts of reports, as `Report.to_dict` returns them, and functions that take their pages apart."""

import re
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser

from qwq_ref.oracle.graph import BEFORE, LAYER
from qwq_ref.oracle.render.html import page

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
    """Facts as Report.to_dict returns them. `wrong` taps replace right ones; the first is the first divergence."""
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
        "source": None,
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
    """Wrong in decoding only, and worse in the second step."""
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


class Tree(HTMLParser):
    """Tags with their attributes, and text by its tag. Tags must be closed in order."""

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
    """Return the SVGs of a page by name."""
    found = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.S)]
    return {svg.get("aria-labelledby").split()[0].removesuffix("-t"): svg for svg in found}


def classed(svg, name):
    return [element for element in svg.iter() if name in (element.get("class") or "").split()]

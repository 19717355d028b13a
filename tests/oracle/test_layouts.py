"""A name map describes how tensors were laid out, and undoes it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq_ref.config import Config
from qwq_ref.formats.write import write_safetensors
from qwq_ref.oracle.adapters.candidate import MisfitError, fit
from qwq_ref.oracle.adapters.folders import open_candidate
from qwq_ref.oracle.graph import (
    COS,
    LAYER,
    SIN,
    absolute,
    letters,
    phases_of,
    split_name,
    tap_names,
)
from tests.support.candidates import (
    random_taps,
    write_map,
)
from tests.support.models import configs


class Layout:
    """Lays taps out in the ways that the options of a map undo. Each way is written here independently."""

    def __init__(self, draw, config):
        self.draw = draw
        self.config = config

    def chance(self):
        return self.draw(st.integers(0, 2)) == 0

    def piece(self, tap):
        """-> (options, function from the tap's flat rows [T, n] to stored ones)"""
        kind, config = split_name(tap)[1], self.config
        options, steps = {}, []
        letter = letters(tap)
        if self.chance():
            options["scale"] = self.draw(st.sampled_from([0.5, 4, -2]))
            steps.append(lambda x: x / options["scale"])
        if "S" in letter:
            return options, steps
        if kind in (COS, SIN) and self.chance():
            options["half"] = True
            steps.append(lambda x: x[:, : config.E // 2])
        elif (kind in (COS, SIN) or kind.startswith(("self_attn.q", "self_attn.k"))) and self.chance():
            options["permute"] = "pairs-to-halves"
            order = np.arange(config.E).reshape(2, -1).T.ravel()  # 0, E/2, 1, E/2 + 1, ...
            steps.append(lambda x: np.concatenate([h[:, order] for h in np.split(x, x.shape[1] // config.E, 1)], 1))
        if letter[-1] in ("K*E", "E") and "K" in "".join(letter) and self.chance():
            options["repeated"] = True
            steps.append(lambda x: np.repeat(x.reshape(len(x), -1, config.E), config.G, axis=1).reshape(len(x), -1))
        return options, steps

    def fuse(self, parts, layout):
        """Rows of several taps -> rows of one tensor"""
        if layout == "interleaved":
            return np.stack(parts, axis=-1).reshape(len(parts[0]), -1)
        if layout == "groups":
            parts = [np.split(part, self.config.K, axis=1) for part in parts]
            return np.concatenate([one for group in zip(*parts, strict=True) for one in group], axis=1)
        return np.concatenate(parts, axis=1)

    def whole(self, headed, has_keys):
        """-> (options, function from (phase, rows) to the stored array)"""
        options, steps = {}, []
        rows = self.draw(st.sampled_from([None, None, "last"] + ["cache"] * (not has_keys)))
        if rows:
            options["rows"] = rows
        if headed and self.chance():
            steps.append(lambda x: x.reshape(len(x), -1, self.config.E))
        rank = 3 if has_keys else 2 + len(steps)
        if self.chance():
            steps.append(lambda x: x[None])
            rank += 1
        if self.chance():
            axes = self.draw(st.permutations(range(rank)))
            options["transpose"] = axes
            steps.append(lambda x: np.transpose(x, np.argsort(axes)))
        reverse = self.draw(st.sampled_from([None, True, "axes", "shape"]))
        if reverse:
            options["reverse"] = reverse
            steps.append((lambda x: x.reshape(x.shape[::-1])) if reverse == "shape" else (lambda x: x.T))

        def store(phase, x):
            tokens = 1 if has_keys else 0
            if rows == "last" and self.draw(st.booleans()):
                x = np.take(x, [-1], axis=tokens)
            elif rows == "cache" and phase != "prompt":
                x = np.concatenate([np.full((3, x.shape[1]), np.float32(np.nan)), x])
            for step in steps:
                x = step(x)
            return np.asarray(x, order=self.draw(st.sampled_from("CF")))

        return options, store

    def entries(self):
        """-> [(taps, relative names, options of the tensor, function from (phase, taps) to the stored array)]"""
        draw = self.draw
        families = [[op.tap] for op in LAYER] + [[tap] for tap in tap_names(self.config) if split_name(tap)[0] is None]
        if draw(st.booleans()):
            families += [draw(st.permutations([f"self_attn.{x}_proj" for x in "qkv"]))]
        if draw(st.booleans()):
            families += [draw(st.permutations(["mlp.gate_proj", "mlp.up_proj"]))]
        if draw(st.booleans()):
            families += [["self_attn.k_rope", "self_attn.v_matmul"], ["resid_pre", "mlp.act", "resid_mid"]]
        fused = {tap for family in families if len(family) > 1 for tap in family}
        return [self.entry(family) for family in families if len(family) > 1 or family[0] not in fused]

    def entry(self, family):
        pieces = [self.piece(tap) for tap in family]
        headed = all(set("".join(letters(tap))) & set("HK") for tap in family)
        has_keys = "S" in letters(family[0])
        options, store = self.whole(headed and not has_keys, has_keys)
        layout = "concat"
        if len(family) == 1:
            options |= {"tap": family[0]} | pieces[0][0]
        else:
            possible = ["concat"] + ["groups"] * headed
            if family[0].startswith("mlp") and family[1].startswith("mlp"):
                possible.append("interleaved")
            layout = self.draw(st.sampled_from(possible))
            options["split"] = [{"tap": tap} | pieces[i][0] for i, tap in enumerate(family)]
            options |= {"layout": layout} if layout != "concat" else {}

        def stored(phase, arrays):
            parts = []
            for array, (_, steps) in zip(arrays, pieces, strict=True):
                x = array if has_keys else array.reshape(len(array), -1)
                for step in steps:
                    x = step(x)
                parts.append(x)
            return store(phase, parts[0] if len(parts) == 1 else self.fuse(parts, layout))

        return family, options, stored


@settings(max_examples=settings.default.max_examples // 2)
@given(st.data())
def test_tensors_laid_out_by_a_random_map_come_back(tmp_path_factory, data):
    config = Config.from_dict(data.draw(configs()) | {"num_hidden_layers": 2, "layer_types": None})
    length, decode = data.draw(st.integers(1, 7)), data.draw(st.integers(0, 2))
    phases = phases_of([1] * (length + decode), decode)
    taps = random_taps(config, phases, data.draw(st.integers(0, 99)))
    for (phase, tap), array in taps.items():
        if tap in (COS, SIN):
            taps[phase, tap] = np.tile(array[:, : config.E // 2], 2)
    first_layer, first = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 3))
    names, tensors, stored = {}, {}, {}
    for i, (family, options, store) in enumerate(Layout(data.draw, config).entries()):
        in_layers = family[0] in {op.tap for op in LAYER}
        pattern = f"t{i}.{{layer}}/x" if in_layers else f"t{i}"
        short = set(options) == {"tap"} and data.draw(st.booleans())
        names[pattern] = options["tap"] if short else options
        for phase in phases:
            for layer in range(config.L) if in_layers else [0]:
                full = [absolute(layer, tap) for tap in family]
                key = f"s{phase.start and first + phase.start - length}/" + pattern.replace(
                    "{layer}", str(layer + first_layer)
                )
                stored[key] = store(phase.name, [taps[phase.name, tap] for tap in full])
                tensors |= {(phase.name, tap): options.get("rows") for tap in full}

    folder = tmp_path_factory.mktemp("map", numbered=True)
    suffix = data.draw(st.sampled_from([".json", ".yaml"]))
    values = {
        "tensors": names,
        "first_layer": first_layer,
        "phases": {"prompt": "s0", "decode": "s{n}", "first": first},
    }
    name_map = write_map(folder / f"map{suffix}", values)
    if data.draw(st.booleans()):
        source = folder / "x.npz"
        np.savez(source, **stored)
    else:
        source = folder / "x.safetensors"
        write_safetensors(source, stored, "F32")
    candidate = open_candidate(source, config, name_map)
    assert set(candidate.tensors) == set(tensors)
    assert candidate.unknown == ()
    for phase in phases:
        for tap in tap_names(config):
            got, wanted = candidate.tensors[phase.name, tap](), taps[phase.name, tap]
            if tensors[phase.name, tap] == "last":
                wanted = np.take(wanted, [-1], axis=letters(tap).index("T"))
            if got.ndim > 3 and wanted.ndim == 3 and wanted.shape[0] == wanted.shape[1] > 1:
                with pytest.raises(MisfitError, match="may have heads or tokens first"):  # as many heads as tokens
                    fit(got, wanted.shape)
                continue
            assert np.array_equal(fit(got, wanted.shape)[0], wanted), (phase.name, tap, values)

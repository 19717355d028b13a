"""The picture of training runs: its lines follow the logs."""

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from qwq_ref.cli import main
from qwq_ref.plots.run import smoothed
from qwq_ref.train.rl import COLUMNS

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is missing: pip install 'qwq_ref[plot]'")

SVG = "{http://www.w3.org/2000/svg}"


def run_of(folder, rows, columns=COLUMNS):
    folder.mkdir()
    lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


def values(count, seed=0):
    table = np.random.default_rng(seed).random((count, len(COLUMNS)))
    table[:, 0] = np.arange(1, count + 1)
    return table


def line(svg, name):
    """The points [N, 2] of the line with an id."""
    group = next(group for group in ElementTree.fromstring(svg).iter(f"{SVG}g") if group.get("id") == name)
    path = group.find(f"{SVG}path").get("d")
    return np.array([[float(x), float(y)] for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)])


def test_each_line_is_the_running_mean_of_its_column(tmp_path):
    tables = [values(40, seed) for seed in (0, 1)]
    folders = [run_of(tmp_path / f"seed{n}", table) for n, table in enumerate(tables)]
    out = tmp_path / "run.svg"
    assert main(["plot", "run", *folders, "-o", str(out)]) == 0
    svg = out.read_text()
    for column in ("reward", "length", "kl", "entropy"):
        points = np.concatenate([line(svg, f"{column}-{n}") for n in range(2)])
        wanted = np.concatenate([smoothed(table[:, COLUMNS.index(column)]) for table in tables])
        height, _ = np.polynomial.Polynomial.fit(wanted, -points[:, 1], 1, full=True)
        assert np.abs(height(wanted) + points[:, 1]).max() < 0.01  # a straight scale from values to heights
        assert height.deriv()(0) > 0
    for words in ("seed0", "seed1", "part: correct", "KL from the reference", "iteration"):
        assert words in svg


def test_the_running_mean_is_cut_off_at_both_ends():
    assert np.allclose(smoothed(np.arange(40.0))[[0, 1, 20, 39]], [0.5, 1, 20, 38.5])
    assert smoothed(np.array([3.0])).tolist() == [3.0]


def test_other_stages_have_their_own_measures(tmp_path):
    columns = ("step", "loss", "grad_norm", "rate", "tokens", "seconds")
    folder = run_of(tmp_path / "base", np.arange(60.0).reshape(10, 6), columns)
    out = tmp_path / "run.svg"
    assert main(["plot", "run", folder, "-o", str(out)]) == 0
    assert "norm of the gradient" in out.read_text()
    assert "reward" not in out.read_text()


def test_the_data_as_json(tmp_path, capsys):
    folder = run_of(tmp_path / "a", values(3))
    assert main(["plot", "run", folder, "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["folder"] == folder
    assert run["columns"]["iteration"] == [1, 2, 3]


def test_folders_that_hold_no_log(tmp_path, capsys):
    out = ["-o", str(tmp_path / "x.svg")]
    short = run_of(tmp_path / "short", [])
    torn = run_of(tmp_path / "torn", [*values(2).tolist(), [3, 0.5]])
    base = run_of(tmp_path / "base", [[1, 2.0]], ("step", "loss"))
    good = run_of(tmp_path / "good", values(2))
    for folders, words, status in (
        ([str(tmp_path)], "holds no log.csv: name the folder of a run of qwq train", 2),
        ([short], "log.csv: holds no steps yet", 1),
        ([torn], f"log.csv: line 4: does not hold {len(COLUMNS)} numbers", 1),
        ([good, base], "stage: is another than that of", 2),
    ):
        assert main(["plot", "run", *folders, *out]) == status
        told = capsys.readouterr().err
        assert words in told
        assert told.count("\n") == 1
    assert not (tmp_path / "x.svg").exists()

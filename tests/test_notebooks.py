"""Every notebook runs top to bottom with tiny params; each is committed as its kind should be."""

import os
import re

import nbformat
import numpy as np
import papermill
import pytest
import xarray as xr
from filelock import FileLock

from tdalib import Params, run
from tdalib.data import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUN = {"progress_bar": False, "execution_timeout": 600}  # seconds: a kernel that says no more is an error, no wait
TINY = """
train_per_class: 3
test_per_class: 3
members: 4
checkpoints: 2
epochs: 3
workers: 1
"""


@pytest.fixture(scope="session")
def experiment(tmp_path_factory):
    """A tiny params file whose store is finished: made once, also where several processes test."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # the parent is this session's, too
    path = folder / "tiny.yaml"
    with FileLock(folder / "tiny.lock"):
        if not path.exists():
            path.write_text(f"{TINY}store: {path.with_suffix('.zarr')}\n")
        Params.read(path).experiment().run()  # what the store holds is not computed again
    return path


@pytest.mark.slow
def test_runner_leaves_store_and_executed_notebook(tmp_path, capfd):
    path = tmp_path / "tiny.yaml"
    path.write_text(f"{TINY}store: {path.with_suffix('.zarr')}\n")
    assert run.main([str(path)]) == 0
    said = "".join(capfd.readouterr())
    assert not re.search("Executing|WARNING|Warning", said)
    bars = [line.split(":")[0] for line in re.split("[\r\n]+", said) if "%|" in line]
    assert list(dict.fromkeys(bars)) == ["posterior", "attribution"]  # on lines of their own
    result = xr.open_zarr(path.with_suffix(".zarr"))
    assert result.tau.shape == (8, 9, 9, 5) and result.tau.notnull().all()
    executed = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    assert any(output.get("data", {}).get("image/png") for cell in executed.cells for output in cell.get("outputs", []))


def made(folder, sampler, methods):
    """A tiny store by another sampler."""
    file = folder / f"{sampler}.yaml"
    file.write_text(TINY + f"sampler: {sampler}\nmethods: {methods}\nstore: {file.with_suffix('.zarr')}\n")
    Params.read(file).experiment().run()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*too few to judge")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, experiment, tmp_path):
    store = str(experiment.with_suffix(".zarr"))
    values = {
        "00": {"store": store},
        "01": {"train_per_class": 2, "test_per_class": 2},
        "02": {"store": store, "seeds": 2},
        "03": {"store": store},
        "04": {"store": store},
        "05": {"store": str(tmp_path / "crossed.zarr")},
        "10": {"store": store} | dict(_pairs(TINY)),
        "20": {"store": store, "export": str(tmp_path / "trusted.csv")},
        "21": {"store": store},
        "22": {"runs": [str(experiment)], "folder": str(tmp_path)},
        "23": {"samplers": ["deep_ensemble", "sgld"]},
        "24": {"store": store},
        "25": {"runs": [str(experiment)], "folder": str(tmp_path)},
        "26": {"train_per_class": 2, "test_per_class": 2, "seeds": 4},
        "30": {name: str(experiment) for name in ("mnist3", "cifar10", "grad_dot")},
        "34": {"strengths": [0.1], "converged": [20], "widths": [2], "depths": [2]}
        | {"epochs": 5, "members": 4, "points": 2, "folder": str(tmp_path)},
        "35": {"runs": [str(experiment)], "tests": [str(experiment)], "repeats": 3},
        "36": {"runs": [str(tmp_path / "own.yaml")], "steps": [1, 3]},
        "37": {"chosen": ["dense 1", "conv 2 norm"], "lengths": [2], "train_per_class": 2, "test_per_class": 2}
        | {"members": 4, "points": 2, "folder": str(tmp_path)},
        "38": {"runs": [str(experiment)], "folder": str(tmp_path)},
        "39": {"runs": [str(experiment)], "repeats": 5},
        "90": {"size": "small"},
        "91": {"size": "small", "folder": str(tmp_path / "vit")},
        "92": {"size": "small", "folder": str(tmp_path / "bert")},
    }[path.stem[:2]]
    if path.stem[:2] == "26":
        pytest.importorskip("captum")
        pytest.importorskip("kronfluence")
    if path.stem[:2] == "36":  # its store grows
        (tmp_path / "own.yaml").write_text(f"{TINY}store: {tmp_path / 'own.zarr'}\n")
    if path.stem[:2] == "05":
        made(tmp_path, "crossed", "[loo, gd, gc]")
    if path.stem[:2] == "23":
        for name in ("crossed", "deep_ensemble", "sgld"):
            made(tmp_path, name, "[loo, gd]")
        values |= {"crossed": str(tmp_path / "crossed.zarr"), "runs": str(tmp_path / "{}.yaml")}
    papermill.execute_notebook(path, tmp_path / path.name, values, cwd=tmp_path, **RUN)


@pytest.mark.slow
@pytest.mark.parametrize("given", [
    "removals: {sets: [[0, 4], [7], [1, 2, 3]]}",
    "dataset: {folder}/numbers.npz\nmodel: mlp\noptimizer: sgd",  # float targets
])  # fmt: skip
def test_notebooks_run_on_removed_sets_and_on_points_without_class(given, tmp_path):
    stream = np.random.default_rng(0)
    shapes = {"x_train": (8, 4), "y_train": (8,), "x_test": (6, 4), "y_test": (6,)}
    np.savez(tmp_path / "numbers.npz", **{name: stream.normal(size=shape) for name, shape in shapes.items()})
    tiny, store = tmp_path / "tiny.yaml", str(tmp_path / "tiny.zarr")
    tiny.write_text(TINY + given.replace("{folder}", str(tmp_path)) + f"\nstore: {store}\n")
    assert run.main([str(tiny)]) == 0  # notebook 10
    for path in NOTEBOOKS:
        if path.stem[:2] in ("20", "21", "24"):
            papermill.execute_notebook(path, tmp_path / path.name, {"store": store}, cwd=tmp_path, **RUN)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_as_its_kind_should_be(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in cells]
    if path.stem[0] in "023" or path.stem[:2] == "90":
        assert counts == list(range(1, len(cells) + 1))
        outputs = [output for cell in cells for output in cell.outputs]
        assert not any(output.output_type == "error" for output in outputs)
        assert path.stat().st_size < 1_000_000
    else:
        assert set(counts) == {None} and not any(cell.outputs for cell in cells)


def _pairs(text):
    for line in text.split("\n"):
        if line:
            key, value = line.split(": ")
            yield key, int(value)

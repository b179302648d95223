"""The runner: wrong params give one line, before any work, and nothing is written."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tdalib import Params, run

TINY = {"name": "tiny", "train_per_class": 2, "test_per_class": 2, "members": 2, "checkpoints": 1, "epochs": 1}


def write(path, **values):
    path.write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    return path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"memebrs": 3}, "unknown key 'memebrs'; allowed are epochs, batch_size, learning_rate, weight_decay"),
        ({"methods": "[loo, lime]"}, "methods.1: method 'lime' is not known; choose from ats, gc, gd, if, loo"),
        ({"methods": "[gd, gd]"}, "methods: gd, gd names a method twice; each may stand once"),
        ({"methods": "[]"}, "methods: [] is not possible"),
        ({"train_per_class": 200}, "train_per_class: 200 is not possible; mnist3 has 1 to 100 per class"),
        ({"members": 0}, "members: 0 is not possible; input should be greater than or equal to 1"),
        ({"members": "'3'"}, "members: '3' is not possible"),
        ({"checkpoints": 16}, "checkpoints: 16 is not possible with 1 epochs"),
        ({"model": "cnn9"}, "model: model 'cnn9' is not known; choose from bow, cnn2, cnn3, gpt2, logreg"),
        ({"sampler": "mcmc"}, "sampler: sampler 'mcmc' is not known"),
        (
            {"sampler_options": "{vari: init}"},
            "sampler_options: deep_ensemble has no option 'vari'; it has stack, vary",
        ),
        (
            {"sampler_options": "{vary: all}"},
            "deep_ensemble.vary: 'all' is not possible; input should be 'init', 'batch' or 'both'",
        ),
        ({"method_options": "{if: {slover: cg}}"}, "if has no option 'slover'; it has solver, damping, memory"),
        ({"method_options": "{if: {solver: lu}}"}, "if.solver: 'lu' is not possible; input should be 'ggn' or 'cg'"),
        ({"dataset_options": "{size: 64}"}, "dataset_options: mnist3 has no option 'size'; it has none"),
        ({"schedule": "cosine"}, "schedule: 'cosine' is not possible; input should be 'constant' or 'linear'"),
        (
            {"model": "mlp", "model_options": "{depth: 0}"},
            "mlp.depth: 0 is not possible; input should be greater than or equal to 1",
        ),
        (
            {"model": "vit_lora", "model_options": "{backbone: ./no/such}"},
            "backbone './no/such' is no folder or name on the hub of a ViT",
        ),
        ({"model_options": "{width: 3}"}, "model_options: cnn2 has no option 'width'; it has none"),
        ({"weight_decay": 0}, "if: damping 0.0 is not possible"),
        ({"learning_rate": "fast"}, "learning_rate: 'fast' is not possible"),
        ({"dataset": "imagenet"}, "dataset 'imagenet' is not known"),
        ({"name": "a/b"}, "name: 'a/b' is not possible"),
        ({"learning_rate": "true"}, "learning_rate: True is not possible; it must be a number"),
        ({"method_options": "{if: {damping: fast}}"}, "if.damping: 'fast' is not possible"),
        ({"method_options": "{if: {damping: true}}"}, "if.damping: True is not possible; it must be a number"),
        ({"store": "results/t.ipynb"}, "store: 'results/t.ipynb' is not possible"),
        ({"scheduler": "nonsense"}, "scheduler: 'nonsense' is not possible"),
        ({"on": 1}, "unknown key 'True'"),
    ],
    ids=str,
)
def test_wrong_params_give_one_line_and_write_nothing(tmp_path, capsys, values, message):
    path = write(tmp_path / "bad.yaml", **TINY | {"store": tmp_path / "bad.zarr"} | values)
    assert run.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith(f"{path}: refused: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.where(np.arange(16).reshape(4, 4) == 5, np.nan, 1.0)}, "x_train[1] has a value"),
        ({"y_train": np.array([0, 0, 2, 2]), "y_test": np.array([0, 2])}, "class 1 ('1') has no train point"),
    ],
    ids=["NaN image", "empty class"],
)
def test_bad_data_gives_one_line_and_writes_nothing(tmp_path, capsys, changes, message):
    data = {"x_train": np.ones((4, 4)), "y_train": [0, 1, 0, 1], "x_test": np.ones((2, 4)), "y_test": [0, 1]}
    np.savez(tmp_path / "mine.npz", **data | changes)
    values = TINY | {"dataset": tmp_path / "mine.npz", "model": "logreg", "store": tmp_path / "bad.zarr"}
    path = write(tmp_path / "bad.yaml", **values | {"train_per_class": 1, "test_per_class": 1})
    assert run.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == {"bad.yaml", "mine.npz"}


def test_exit_code_of_the_process(tmp_path):
    path = write(tmp_path / "bad.yaml", members=0)
    done = subprocess.run([sys.executable, "-m", "tdalib.run", path], capture_output=True, text=True)
    assert done.returncode != 0 and done.stderr.count("\n") == 1 and done.stdout == ""


def test_two_experiments_in_one_store_are_refused(tmp_path, capsys):
    paths = [str(write(tmp_path / f"{k}.yaml", **TINY | {"store": tmp_path / "a.zarr", "seed": k})) for k in (0, 1)]
    assert run.main(paths) == 2
    assert "0.yaml too; choose another" in capsys.readouterr().err
    assert not (tmp_path / "a.ipynb").exists()
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize("text", ["- 1\n", "a: [\n", "", "false"])
def test_files_that_hold_no_params(tmp_path, capsys, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert run.main([str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_store_of_another_experiment_is_refused(tmp_path, capsys):
    params = Params.of(TINY | {"store": str(tmp_path / "a.zarr"), "methods": ["gd"]})
    params.experiment().run()
    path = write(tmp_path / "b.yaml", **TINY | {"store": params.path, "methods": "[gd]", "seed": 5})
    before = sorted(tmp_path.rglob("*"))
    assert run.main([str(path)]) == 2
    assert "made with seed: 0, not 5; choose another store" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_of_many_runs_one_that_fails_does_not_stop_the_rest(tmp_path, capfd):
    paths = [
        write(tmp_path / f"{name}.yaml", **TINY | {"store": tmp_path / f"{name}.zarr", "methods": "[gd]"} | values)
        for name, values in (
            ("diverges", {"optimizer": "sgd", "learning_rate": 1e5, "epochs": 30}),
            ("typo", {"memebrs": 3}),
            ("good", {}),
            ("planned", {"plan_only": "true"}),
        )
    ]
    assert run.main([str(path) for path in paths]) == 2
    out, err = capfd.readouterr()
    outcomes = dict(line.split(": ", 1) for line in out[out.index("What became of each:\n") :].splitlines()[1:])
    said = [outcomes[str(path)] for path in paths]
    assert said[0].startswith("failed: ") and "is not finite" in said[0]
    assert said[1].startswith("refused: unknown key 'memebrs'")
    assert said[2].startswith("done in 0.") and said[2].endswith(f"min, see {tmp_path / 'good.ipynb'}")
    assert said[3].startswith("planned, cnn2: ")
    assert "typo.yaml: refused: unknown key" in err and "not finite" in err
    assert (tmp_path / "good.zarr").exists() and not (tmp_path / "typo.zarr").exists()
    assert not (tmp_path / "planned.zarr").exists()


@pytest.mark.slow
def test_ctrl_c_says_one_line(tmp_path):
    """A real SIGINT to the whole process group, as a terminal sends it, once the first chunk is there."""
    store = tmp_path / "c.zarr"
    params = write(tmp_path / "c.yaml", **TINY | {"members": 40, "epochs": 300, "methods": "[loo]", "store": store})
    command = [sys.executable, "-m", "tdalib.run", params]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        while not store.joinpath("tau", "c", "0").exists() and running.poll() is None:
            time.sleep(0.2)
        os.killpg(running.pid, signal.SIGINT)
        said, _ = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert said.rstrip().endswith(f"{params}: interrupted; the same command goes on from here")
    assert "Traceback" not in said


def test_an_interrupted_run_ends_the_command(tmp_path, capsys, monkeypatch):
    paths = [
        write(tmp_path / f"{k}.yaml", **TINY | {"store": tmp_path / f"{k}.zarr", "methods": "[gd]"}) for k in "abc"
    ]

    def interrupted_at_b(params):
        if params.path.stem == "b":
            raise KeyboardInterrupt
        return "done, see there"

    monkeypatch.setattr(run, "execute", interrupted_at_b)
    assert run.main([str(path) for path in paths]) == 130
    out, err = capsys.readouterr()
    for line, outcome in zip(out.splitlines()[-3:], ("done", "interrupted", "not started"), strict=True):
        assert f".yaml: {outcome}" in line
    assert "the same command goes on from here" in err

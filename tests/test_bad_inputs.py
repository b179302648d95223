"""Bad input of every kind: each gives one sentence that names what is wrong, and nothing half-written is left.

A row is what is given and what is said, so far as it is always the same.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from torch import nn

from tdalib import Params, Recipe, attribute, attributors, data, deep_ensemble, models, report, samplers, stats, store

RECIPE = Recipe(epochs=2)
LONGEST = 400  # characters of a sentence
PLACE = {}  # where the row that is tested may write


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setitem(PLACE, "here", tmp_path)
    methods, before = attributors.METHODS, dict(attributors.METHODS)
    for name in methods.keys() - methods.ours:  # of other tests
        del methods[name]
    yield
    methods.clear()  # what this row registered is nobody else's
    methods.update(before)


def here():
    return PLACE["here"]


def a_file():
    (here() / "file").touch()
    return here() / "file"


def digits():
    return data.load("mnist3", train_per_class=2, test_per_class=2)


def ensemble(model="logreg", t=None, r=RECIPE, **asked):
    return deep_ensemble(model, digits() if t is None else t, r, **{"members": 2, "checkpoints": 1} | asked)


def run(methods="gd", posterior=None, **asked):
    return attribute(posterior or ensemble(), methods, **{"workers": 1} | asked)


def refused(call, said):
    before = {file: file.stat().st_mtime_ns for file in here().rglob("*") if ".lock" not in file.name}
    with pytest.raises((ValueError, OSError, RuntimeError)) as caught:
        call()
    sentence = str(caught.value)
    assert said in sentence and "\n" not in sentence and len(sentence) < LONGEST
    left = {file for file in here().rglob("*") if ".lock" not in file.name} - before.keys()
    assert not [file for file in left if "draft" in file.name or file.suffix == ".partial"]
    return left


def rows(table):
    return pytest.mark.parametrize(("call", "said"), [pytest.param(*row[1:], id=row[0]) for row in table])


# fmt: off
PARAMS = [
    ("recipe dict", lambda: ensemble(r={'epochs': 2}), "recipe: a dict is not possible; give a Recipe"),
    ("recipe None", lambda: ensemble(r=None), "recipe: a NoneType is not possible; give a Recipe"),
    ("epochs 0", lambda: Recipe(epochs=0), "epochs: 0 is not possible; input should be greater than or equal to 1"),
    ("epochs str", lambda: Recipe(epochs='2'), "epochs: '2' is not possible; input should be a valid integer"),
    ("lr nan", lambda: Recipe(learning_rate=float('nan')), "learning_rate: nan is not possible; input should be a finite number"),
    ("lr <0", lambda: Recipe(learning_rate=-1), "learning_rate: -1 is not possible; input should be greater than 0"),
    ("opt", lambda: Recipe(optimizer='adagrad'), "optimizer: 'adagrad' is not possible; input should be 'adam', 'adamw'"),
    ("momentum 1", lambda: Recipe(optimizer='sgd', momentum=1.0), "momentum: 1.0 is not possible; input should be less than 1"),
    ("momentum adam", lambda: Recipe(momentum=0.5), "momentum: 0.5 is for sgd; optimizer 'adam' has its own"),
    ("members 0", lambda: ensemble(members=0), "deep_ensemble.members: 0 is not possible; input should be greater than"),
    ("members True", lambda: ensemble(members=True), "deep_ensemble.members: True is not possible; it must be a number"),
    ("members 1e6", lambda: ensemble(members=1000000), "deep_ensemble.members: 1000000 is not possible; input should be less t"),
    ("members 2.5", lambda: ensemble(members=2.5), "deep_ensemble.members: 2.5 is not possible; input should be a valid in"),
    ("checkpoints>epochs", lambda: ensemble(checkpoints=5), "checkpoints: 5 is not possible with 2 epochs"),
    ("vary", lambda: ensemble(vary='seed'), "deep_ensemble.vary: 'seed' is not possible; input should be 'init', 'b"),
    ("seed -1", lambda: ensemble(seed=-1), "deep_ensemble.seed: -1 is not possible; input should be greater than o"),
    ("unknown option", lambda: ensemble(varies='init'), "deep_ensemble has no option 'varies'; it has members, checkpoints, see"),
    ("model unknown", lambda: ensemble('resnet'), "model 'resnet' is not known; choose from bow, cnn2, cnn3, gpt2, logreg"),
    ("model None", lambda: ensemble(None), "model None is not known; choose from bow, cnn2, cnn3, gpt2, logreg, ml"),
    ("model class", lambda: run(posterior=ensemble(nn.Linear)), "the model's function fails: TypeError: empty(): argument 'size' failed"),
    ("model int", lambda: ensemble(3), "model 3 is not known; choose from bow, cnn2, cnn3, gpt2, logreg, mlp,"),
    ("methods empty", lambda: run([]), "methods is empty; choose from ats, gc, gd, if, loo"),
    ("methods unknown", lambda: run('shapley'), "method 'shapley' is not known; choose from ats, gc, gd, if, loo"),
    ("methods twice", lambda: run(['gd', 'gd']), "methods: gd, gd names a method twice; each may stand once"),
    ("methods None", lambda: run(None), "methods: None is not possible; input should be an instance of Sequence"),
    ("methods int", lambda: run(3), "methods: 3 is not possible; input should be an instance of Sequence"),
    ("methods list of int", lambda: run([1]), "methods.0: 1 is not possible; input should be a valid string"),
    ("options other", lambda: run('gd', options={'gc': {}}), "options for 'gc', which is not among the methods gd"),
    ("options key", lambda: run('gd', options={'gd': {'mem': 1}}), "gd has no option 'mem'; it has memory"),
    ("options list", lambda: run('gd', options=[1]), "options: [1] is not possible; input should be a valid dictionary"),
    ("options of str", lambda: run('gd', options={'gd': 3}), "options.gd: 3 is not possible; input should be a valid dictionary"),
    ("workers 0", lambda: run(workers=0), "workers: 0 is not possible; input should be greater than or equal to 1"),
    ("workers str", lambda: run(workers='2'), "workers: '2' is not possible; input should be a valid integer"),
    ("device", lambda: run(device='gpu'), "device: 'gpu' is not possible; input should be 'auto', 'cpu' or 'cuda'"),
    ("cuda", lambda: run(device='cuda'), "device: cuda is not possible, no such GPU is to be had here; choose au"),
    ("scheduler", lambda: run(scheduler='nowhere'), "scheduler: nothing answers at nowhere (invalid literal for int() with"),
    ("scheduler port", lambda: run(scheduler='127.0.0.1:1'), "scheduler: nothing answers at 127.0.0.1:1 ([Errno 111] Connection refu"),
    ("scheduler int", lambda: run(scheduler=3), "scheduler: 3 is not possible; input should be a valid string"),
    ("posterior none", lambda: attribute(None, 'gd'), "posterior: a NoneType is not possible; give what a sampler gives"),
    ("posterior task", lambda: attribute(digits(), 'gd'), "posterior: a Task is not possible; give what a sampler gives"),
    ("removals", lambda: run(removals=3), "removals: 3 is not possible; input should be a valid dictionary"),
    ("removals by", lambda: run(removals={'by': 'colour'}), "removals.by: the points have no label 'colour'; choose from class, ind"),
    ("removals share", lambda: run(removals={'subsets': 2, 'share': 2}), "removals.share: 2 is not possible; input should be less than 1"),
    ("removals out", lambda: run(removals={'points': [99]}), "removals.points: there is no point 99; the train points are 0 to 5"),
    ("removals list", lambda: run(removals=[1, 2]), "removals: [1, 2] is not possible; input should be a valid dictionary"),
    ("removals neg", lambda: run(removals={'points': [-1]}), "removals.points: [-1] is not possible; input should be a valid integer"),
    ("path int", lambda: run(path=3), "path: 3 is not possible; input is not a valid path"),
    ("task none", lambda: deep_ensemble("logreg", None, RECIPE), "task: a NoneType is not possible; give a Task"),
    ("batch order recipe", lambda: Recipe(batch_size=10 ** 9), "batch_size: 1000000000 is not possible; input should be less than or e"),
    ("crossed prime", lambda: samplers.crossed('logreg', digits(), RECIPE, members=3, checkpoints=1), "members: 3 is no grid of 2 inits × batch orders, each 2 or more; set i"),
    ("ckpt single dict", lambda: samplers.from_checkpoints('logreg', digits(), models.get('logreg')(digits(), 0).state_dict()), "checkpoints: one alone is given; give a list of files or state dicts"),
    ("ckpt wrapped", lambda: samplers.from_checkpoints('logreg', digits(), [{'state_dict': models.get('logreg')(digits(), 0).state_dict()}]), "checkpoint 0 is no state dict, but holds dicts; give one of state_dict"),
    ("ckpt none", lambda: samplers.from_checkpoints('logreg', digits(), []), "members: no of 0 checkpoints; each member needs one at least, all equa"),
    ("ckpt path missing", lambda: samplers.from_checkpoints('logreg', digits(), ['x.pt']), "checkpoint x.pt: no file"),
    ("ckpt str", lambda: samplers.from_checkpoints('logreg', digits(), 'x.pt'), "checkpoints: one alone is given; give a list of files or state dicts"),
    ("ckpt int", lambda: samplers.from_checkpoints('logreg', digits(), [3]), "3 is no path; give a string or a pathlib.Path"),
    ("ckpt nan", lambda: run(posterior=samplers.from_checkpoints('logreg', digits(), [{k: v * float('nan') for k, v in models.get('logreg')(digits(), 0).state_dict().items()}])), "the test loss after two steps is not finite; if it diverged, a lower l"),
]
# fmt: on


@rows(PARAMS)
def test_params(call, said):
    assert not refused(call, said)


# fmt: off
YAML = [
    ("empty", '', "the params file is empty or no list of 'key: value' lines; it needs on"),
    ("list", '- a', "the params file is empty or no list of 'key: value' lines; it needs on"),
    ("scalar", '3', "the params file is empty or no list of 'key: value' lines; it needs on"),
    ("dup", 'members: 2\nmembers: 3', "the params file cannot be read as YAML: key 'members' stands twice"),
    ("nested dup", 'method_options: {gd: {memory: 1, memory: 2}}\nmethods: [gd]', "the params file cannot be read as YAML: key 'memory' stands twice"),
    ("tab", 'members:\t[', "the params file cannot be read as YAML: while scanning for the next to"),
    ("unknown", 'memebrs: 3', "unknown key 'memebrs'; allowed are epochs, batch_size, learning_rate,"),
    ("octal", 'members: 010', "members: '010' is not possible; input should be a valid integer"),
    ("octal removals", 'removals: {points: 010}', "removals.points: '010' is not possible; input should be a valid integer"),
    ("minutes", 'epochs: 1:30', "epochs: '1:30' is not possible; input should be a valid integer"),
    ("hexadecimal", 'seed: 0x1F', "seed: '0x1F' is not possible; input should be a valid integer"),
    ("null members", 'members:', "members: None is not possible; input should be a valid integer"),
    ("true members", 'members: true', "members: True is not possible; it must be a number"),
    ("str members", 'members: three', "members: 'three' is not possible; input should be a valid integer"),
    ("float members", 'members: 2.5', "members: 2.5 is not possible; input should be a valid integer"),
    ("methods str", 'methods: gd', "methods: 'gd' is not possible; input should be a valid list"),
    ("methods empty", 'methods: []', "methods: [] is not possible; list should have at least 1 item after va"),
    ("methods unknown", 'methods: [gd, x]', "methods.1: method 'x' is not known; choose from ats, gc, gd, if, loo"),
    ("dataset", 'dataset: nowhere', "dataset: dataset 'nowhere' is not known; choose from cifar10, cifar10_"),
    ("dataset num", 'dataset: 3', "dataset: 3 is not possible; input should be a valid string"),
    ("model", 'model: resnet50', "model: model 'resnet50' is not known; choose from bow, cnn2, cnn3, gpt"),
    ("model opts", 'model_options: {width: 3}', "model_options: cnn2 has no option 'width'; it has none"),
    ("model opts list", 'model_options: [1]', "model_options: [1] is not possible; input should be a valid dictionary"),
    ("sampler", 'sampler: mcmc', "sampler: sampler 'mcmc' is not known; choose from crossed, deep_ensemb"),
    ("sampler opts", 'sampler_options: {vary: x}', "sampler_options: deep_ensemble.vary: 'x' is not possible; input should"),
    ("method opts unknown", 'methods: [gd]\nmethod_options: {gc: {}}', "options for 'gc', which is not among the methods gd"),
    ("1e-3 str", 'learning_rate: 1e-3x', "learning_rate: '1e-3x' is not possible; input should be a valid number"),
    ("date", 'name: 2024-01-01', "name: datetime.date(2024, 1, 1) is not possible; input should be a val"),
    ("slash", 'name: a/b', "name: 'a/b' is not possible; it must be a file name without slashes"),
    ("store", 'store: x.nc', "store: 'x.nc' is not possible; it must end in .zarr"),
    ("scheduler", 'scheduler: here', "scheduler: 'here' is not possible; it must be local or a dask schedule"),
    ("per class", 'train_per_class: 100000', "train_per_class: 100000 is not possible; mnist3 has 1 to 100 per class"),
    ("per class 0", 'test_per_class: 0', "test_per_class: 0 is not possible; input should be greater than or equ"),
    ("epochs", 'epochs: 3\ncheckpoints: 4', "checkpoints: 4 is not possible with 3 epochs"),
    ("anchor", 'a: &a [*a]', "unknown key 'a'; allowed are epochs, batch_size, learning_rate, weight"),
    ("python tag", "name: !!python/object/apply:os.system ['true']", "the params file cannot be read as YAML: could not determine a construc"),
    ("multi doc", 'members: 2\n---\nmembers: 3', "the params file cannot be read as YAML: expected a single document in"),
    ("int key", '1: 2', "unknown key '1'; allowed are epochs, batch_size, learning_rate, weight"),
    ("removals", 'removals: {by: x}', "removals.by: the points have no label 'x'; choose from class, index, l"),
    ("removals str", 'removals: all', "removals: 'all' is not possible; input should be a valid dictionary"),
    ("objective", 'objective: hinge', "objective: objective 'hinge' is not known; choose from cross_entropy,"),
    ("obj targets", 'objective: next_token', "objective 'next_token' needs token ids, whole numbers (points, T), as"),
    ("binary", b'\xff\xfe\x00', "the params file cannot be read as YAML: 'utf-8' codec can't decode byt"),
    ("nan", 'learning_rate: .nan', "learning_rate: nan is not possible; input should be a finite number"),
    ("inf", 'weight_decay: .inf', "weight_decay: inf is not possible; input should be a finite number"),
    ("huge", 'members: 99999999999999999999', "members: 99999999999999999999 is not possible; input should be less th"),
    ("schedule", 'schedule: cosine', "schedule: 'cosine' is not possible; input should be 'constant' or 'lin"),
    ("plan", 'plan_only: 1', "plan_only: 1 is not possible; input should be a valid boolean"),
    ("backbone", 'model: vit_lora\nmodel_options: {backbone: nowhere/at-all}', "backbone 'nowhere/at-all' is no folder or name on the hub of a ViT: Go"),
    ("laplace0", 'sampler: laplace\nweight_decay: 0', "weight_decay: 0 leaves laplace without a prior; it must be above 0"),
    ("dataset opts", 'dataset_options: {size: 3}', "dataset_options: mnist3 has no option 'size'; it has none"),
    ("device", 'device: tpu', "device: 'tpu' is not possible; input should be 'auto', 'cpu' or 'cuda'"),
    ("sotu cnn", 'dataset: sotu3\nmodel: cnn2', "cnn2 needs images (n, channels, height, width); the task has a dict"),
    ("mnist bow", 'model: bow', "bow needs token ids, whole numbers (points, T), as inputs or input_ids"),
]
# fmt: on


@rows(YAML)
def test_yaml(call, said):
    """Here a row holds the text of the file."""
    path = here() / "a.yaml"
    path.write_bytes(call) if isinstance(call, bytes) else path.write_text(call)
    assert not refused(lambda: Params.read(path).experiment().check(), said)


# fmt: off
ARRAYS = [
    ("none x", {'x_train': None}, "x_train has shape (); it needs at least one point and one feature axis"),
    ("none y", {'y_train': None}, "y_train has shape (); it needs one label for each of 4 points"),
    ("str x", {'x_train': 'abc'}, "x_train has shape (); it needs at least one point and one feature axis"),
    ("ragged", {'x_train': [[1, 2], [3], [4, 5], [1]]}, "x_train is no array: setting an array element with a sequence. The req"),
    ("ragged y", {'y_train': [[1], [1, 2], [3], [4]]}, "y_train is no array: setting an array element with a sequence. The req"),
    ("nan", {'x_train': np.full((4, 3), np.nan)}, "x_train[0] has a value that is not finite; every value must be a numbe"),
    ("inf y", {'y_train': [0.0, 1.0, np.inf, 2.0], 'y_test': [0.0, 1.0]}, "y_train has a value that is not finite; every target must be a number"),
    ("short y", {'y_train': [0, 1]}, "y_train has shape (2,); it needs one label for each of 4 points"),
    ("neg label", {'y_train': [0, -1, 0, 1]}, "y_train must hold whole numbers, 0 for the first class, or floats"),
    ("np.zeros((4, 3), 'f4') label", {'y_test': [0, 7]}, "y_test has the label 7; the classes are 0 to 1"),
    ("one class", {'y_train': [0, 0, 0, 0], 'y_test': [0, 0]}, "all points are of one class; a classifier needs two or more"),
    ("gap", {'y_train': [0, 2, 0, 2], 'y_test': [0, 2]}, "class 1 ('1') has no train point; every class needs at least one"),
    ("object", {'x_train': np.array([[None] * 3] * 4)}, "x_train holds object; give uint8 images, floats or integers"),
    ("complex", {'x_train': np.zeros((4, 3), 'f4') + 1j}, "x_train holds complex64; give uint8 images, floats or integers"),
    ("empty", {'x_train': np.zeros((4, 3), 'f4')[:0], 'y_train': []}, "x_train has shape (0, 3); it needs at least one point and one feature"),
    ("1d", {'x_train': np.zeros(4)}, "x_train has shape (4,); it needs at least one point and one feature ax"),
    ("features differ", {'x_test': np.zeros((2, 4), 'f4')}, "points of x_train are float32 of shape (3,), those of x_test are float"),
    ("type differ", {'x_test': np.zeros((2, 3), 'i8')}, "points of x_train are float32 of shape (3,), those of x_test are int64"),
    ("classes few", {'classes': ['a']}, "all points are of one class; a classifier needs two or more"),
    ("classes many", {'classes': ['a', 'b', 'c']}, "class 2 ('c') has no train point; every class needs at least one"),
    ("classes str", {'classes': 'ab'}, "all points are of one class; a classifier needs two or more"),
    ("classes dup", {'classes': ['a', 'a']}, "classes names 'a' twice; each class needs a name of its own"),
    ("index len", {'train_index': [1]}, "train_index has shape (1,); it needs one value for each of 4 points"),
    ("index float", {'train_index': [0.5, 1, 2, 3]}, "train_index must hold one whole number for each of 4 points"),
    ("labels len", {'labels': {'f': ([1], [1])}}, "labels['f'] has shape (1,); it needs one value for each of 4 points"),
    ("labels not tuple", {'labels': {'f': [1, 2, 3, 4]}}, "labels['f'] must be two: values of the train points, and of the test p"),
    ("labels list", {'labels': [1]}, "labels must be a dict: name → (values of the train points, values of t"),
    ("labels reserved", {'labels': {'index': ([1] * 4, [1] * 2)}}, "labels: 'index' is known of each point already; choose another name"),
    ("objective", {'objective': 'mse'}, "objective 'mse' is not known; choose from cross_entropy, next_token, s"),
    ("objective int", {'objective': 3}, "objective 3 is not known; choose from cross_entropy, next_token, squar"),
    ("ce of floats", {'y_train': [0.1, 0.2, 0.3, 0.4], 'y_test': [0.1, 0.2], 'objective': 'cross_entropy'}, "objective 'cross_entropy' needs classes as targets, whole numbers of s"),
    ("se of classes", {'objective': 'squared_error'}, "objective 'squared_error' needs values as targets, floats"),
    ("dict vs array", {'x_train': {'a': np.zeros((4, 3), 'f4')}}, "points of x_train are {'a': 'float32 of shape (3,)'}, those of x_test"),
    ("dict unequal", {'x_train': {'a': np.zeros((4, 3), 'f4'), 'b': np.zeros((4, 3), 'f4')[:3]}, 'x_test': {'a': np.zeros((4, 3), 'f4')[:2], 'b': np.zeros((4, 3), 'f4')[:2]}}, "y_train has shape (4,); it needs one label for each of 3 points"),
    ("dict keys", {'x_train': {'a': np.zeros((4, 3), 'f4')}, 'x_test': {'b': np.zeros((4, 3), 'f4')[:2]}}, "points of x_train are {'a': 'float32 of shape (3,)'}, those of x_test"),
    ("dict empty", {'x_train': {}, 'x_test': {}}, "x_train is a dict without arrays; it needs one at least"),
    ("uint8 flat", {'x_train': np.zeros((4, 3), 'u1'), 'x_test': np.zeros((2, 3), 'u1')}, "x_train: uint8 images need shape (n, height, width) or (n, height, wid"),
    ("uint8 5ch", {'x_train': np.zeros((4, 3, 3, 5), 'u1'), 'x_test': np.zeros((2, 3, 3, 5), 'u1')}, "x_train: uint8 images need shape (n, height, width) or (n, height, wid"),
    ("datetime", {'x_train': np.zeros((4, 3), 'M8[s]')}, "x_train holds datetime64[s]; give uint8 images, floats or integers"),
    ("y strings", {'y_train': list('abab'), 'y_test': list('ab')}, "y_train must hold whole numbers, 0 for the first class, or floats"),
    ("y bool", {'y_train': [True, False, True, False], 'y_test': [True, False]}, "y_train must hold whole numbers, 0 for the first class, or floats"),
    ("y 2d int", {'y_train': [[0], [1], [0], [1]], 'y_test': [[0], [1]]}, "objective 'cross_entropy' needs classes as targets, whole numbers of s"),
    ("float16 nan", {'x_train': np.full((4, 3), np.nan, 'f2')}, "x_train[0] has a value that is not finite; every value must be a numbe"),
    ("y float classes", {'y_train': [0.0, 1.0, 0.0, 1.0], 'y_test': [0, 1]}, "points of y_train are float32 of shape (1,), those of y_test are int64"),
    ("f64 to f32", {'x_train': np.full((4, 3), 1e+39, 'f8').astype('f8')}, "points of x_train are float64 of shape (3,), those of x_test are float"),
]
# fmt: on


@rows(ARRAYS)
def test_arrays(call, said):
    """Here a row holds what differs from arrays that are good."""
    good = {
        "x_train": np.zeros((4, 3), "f4"),
        "y_train": [0, 1, 0, 1],
        "x_test": np.zeros((2, 3), "f4"),
        "y_test": [0, 1],
    }
    refused(lambda: data.from_arrays(**good | call), said)


def npz(**arrays):
    np.savez(here() / "b.npz", **arrays)
    return data.load(str(here() / "b.npz"), train_per_class=1, test_per_class=1)


# fmt: off
READ = [
    ("missing file", lambda: Params.read(here() / 'none.yaml'), "the params file cannot be read as YAML: [Errno 2] No such file or dire"),
    ("folder", lambda: Params.read(here()), "the params file cannot be read as YAML: [Errno 21] Is a directory: '"),
    ("npz missing", lambda: data.load(str(here() / 'a.npz'), train_per_class=1, test_per_class=1), "no .npz file of plain arrays, as np.savez writes, is at"),
    ("npz keys", lambda: npz(x=np.zeros((4, 3), 'f4')), "has no x_test, x_train, y_test, y_train; it needs x_train, y_train, x_"),
    ("npz pickle", lambda: npz(x_train=np.array([None] * 4), y_train=[0, 1, 0, 1], x_test=np.zeros((4, 3), 'f4')[:2], y_test=[0, 1]), "no .npz file of plain arrays, as np.savez writes, is at"),
    ("texts none", lambda: data.from_texts(None, [0, 1], ['a'], [0]), "texts: a NoneType is not possible; give a list of strings"),
    ("texts str", lambda: data.from_texts('ab', [0, 1], ['a'], [0]), "texts: a str is not possible; give a list of strings"),
    ("texts int", lambda: data.from_texts([1, 2], [0, 1], ['a'], [0]), "text 0 of train is 1; every text must be a string that is not empty"),
    ("texts empty str", lambda: data.from_texts(['a', ''], [0, 1], ['a'], [0]), "text 1 of train is ''; every text must be a string that is not empty"),
    ("texts labels short", lambda: data.from_texts(['a', 'b'], [0], ['a'], [0]), "y_train has shape (1,); it needs one label for each of 2 points"),
    ("texts one None", lambda: data.from_texts(['a', 'b'], [0, 1], ['a'], None), "labels and test_labels: one is None; give both, or none for an objecti"),
    ("texts unknown label", lambda: data.from_texts(['a', 'b'], ['x', 'y'], ['a'], ['z']), "label 'z' is none of the classes x, y"),
    ("texts length 0", lambda: data.from_texts(['a', 'b'], [0, 1], ['a'], [0], length=0), "from_texts.length: 0 is not possible; input should be greater than or"),
    ("texts tokenizer", lambda: data.from_texts(['a', 'b'], [0, 1], ['a'], [0], tokenizer='nowhere/x'), "tokenizer 'nowhere/x' is no folder or name on the hub of one: Got: Con"),
    ("texts length str", lambda: data.from_texts(['a', 'b'], [0, 1], ['a'], [0], length='x'), "from_texts.length: 'x' is not possible; input should be a valid intege"),
]
# fmt: on


@rows(READ)
def test_files_and_texts(call, said):
    refused(call, said)


PHOTOS = ["cat/1.png", "cat/2.png", "cat/3.png", "dog/1.png", "dog/2.png", "dog/3.png"]


def photos(names=PHOTOS, spoil=None, **asked):
    """A folder of noise, spoiled, and read."""
    root = here() / "f"
    root.mkdir()
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((12, 12), 50 + k).save(root / name)
    if spoil:
        spoil(root)
    return data.from_folder(root, **{"train_per_class": 2, "test_per_class": 1, "size": 8} | asked)


# fmt: off
FOLDERS = [
    ("missing", lambda: data.from_folder(here() / 'gone', train_per_class=1, test_per_class=1), "it needs a folder of images for each class"),
    ("file", lambda: (Path(a_file()).touch(), data.from_folder(a_file(), train_per_class=1, test_per_class=1)), "it needs a folder of images for each class"),
    ("empty", lambda: photos([]), "has no class folders; it needs a folder of images for each class"),
    ("flat", lambda: photos(['1.png', '2.png']), "has no class folders; it needs a folder of images for each class"),
    ("one class", lambda: photos(['cat/1.png', 'cat/2.png', 'cat/3.png']), "all points are of one class; a classifier needs two or more"),
    ("empty class", lambda: photos(spoil=lambda r: (r / 'bird').mkdir()), "class 0 ('bird') has no train point; every class needs at least one"),
    ("class of txt", lambda: photos(spoil=lambda r: ((r / 'bird').mkdir(), (r / 'bird/a.txt').touch())), "class 0 ('bird') has no train point; every class needs at least one"),
    ("too many", lambda: photos(train_per_class=9), "train_per_class: 9 beside test_per_class: 1 is not possible;"),
    ("size 0", lambda: photos(size=0), "from_folder.size: 0 is not possible; input should be greater than or e"),
    ("size np.zeros((4, 3), 'f4')", lambda: photos(size=100000), "from_folder.size: 100000 is not possible; input should be less than or"),
    ("size str", lambda: photos(size='big'), "from_folder.size: 'big' is not possible; input should be a valid integ"),
    ("resize<size", lambda: photos(resize=4), "size: 8 is not possible; it must be at least 1, and resize no less"),
    ("per class 0", lambda: photos(test_per_class=0), "from_folder.test_per_class: 0 is not possible; input should be greater"),
    ("not image", lambda: photos(spoil=lambda r: (r / 'cat/2.png').write_text('x')), "cannot be read as an image: cannot identify image file '"),
    ("truncated", lambda: photos(spoil=lambda r: (r / 'cat/2.png').write_bytes((r / 'cat/2.png').read_bytes()[:60])), "cannot be read as an image: image file is truncated"),
    ("zero bytes", lambda: photos(spoil=lambda r: (r / 'cat/2.png').write_bytes(b'')), "cannot be read as an image: cannot identify image file '"),
    ("16 bit", lambda: photos(spoil=lambda r: Image.new('I;16', (9, 9)).save(r / 'cat/2.png')), "cannot be read as an image: its pixels are of mode I;16; convert it to"),
    ("float tiff", lambda: photos(spoil=lambda r: Image.new('F', (9, 9)).save(r / 'cat/2.tiff'), train_per_class=2, test_per_class=2), "train_per_class: 2 beside test_per_class: 2 is not possible;"),
    ("no test", lambda: photos(['train/cat/1.png', 'train/dog/1.png']), "is not there; beside train there must be a folder test, of the same cl"),
    ("other classes", lambda: photos(['train/cat/1.png', 'train/dog/1.png', 'test/cat/1.png', 'test/bird/1.png'], train_per_class=1), "train and test must have the same class folders; they differ in bird,"),
    ("Train", lambda: photos(['Train/cat/1.png', 'Test/cat/1.png']), "'Test' is no class; name the folders of the splits train and test"),
    ("unknown opt", lambda: photos(pixels=3), "from_folder has no option 'pixels'; it has train_per_class, test_per_c"),
    ("None", lambda: data.from_folder(None, train_per_class=1, test_per_class=1), "None is no path; give a string or a pathlib.Path"),
    ("int", lambda: data.from_folder(3, train_per_class=1, test_per_class=1), "3 is no path; give a string or a pathlib.Path"),
    ("dangling link", lambda: photos(spoil=lambda r: ((r / 'cat/2.png').unlink(), os.symlink('/nowhere.png', r / 'cat/2.png'))), "cannot be read as an image: [Errno 2] No such file or directory"),
    ("unreadable folder png", lambda: photos(spoil=lambda r: ((r / 'cat/2.png').unlink(), (r / 'cat/2.png').mkdir())), "train_per_class: 2 beside test_per_class: 1 is not possible;"),
    ("bomb", lambda: photos(spoil=lambda r: (r / 'cat/2.png').write_bytes(bytes.fromhex('89504e470d0a1a0a0000000d49484452000186a0000186a00802000000') + b'\x00' * 30)), "cannot be read as an image: cannot identify image file '"),
    ("seed", lambda: photos(seed=-1), "from_folder.seed: -1 is not possible; input should be greater than or"),
    ("seed str", lambda: photos(seed='x'), "from_folder.seed: 'x' is not possible; input should be a valid integer"),
    ("data.load empty name", lambda: data.load('', train_per_class=1, test_per_class=1), "'' is no path; give a string or a pathlib.Path"),
]
# fmt: on


@pytest.mark.filterwarnings("ignore:.*no images by their endings")
@rows(FOLDERS)
def test_folders(call, said):
    refused(call, said)


def flat(*layers):
    return nn.Sequential(nn.Flatten(), *layers)


class Net(nn.Module):
    """A linear network of which something is made."""

    def __init__(self, made):
        super().__init__()
        self.l, self.made = nn.Linear(784, 3), made

    def forward(self, x):
        return self.made(self.l(x.flatten(1)), x)


class Cnt(nn.Module):
    """It counts its passes."""

    def __init__(self):
        super().__init__()
        self.l, self.n = nn.Linear(784, 3), 0

    def forward(self, x):
        self.n += self.training
        return self.l(x.flatten(1)) * (1 + self.n)


class Mask(Net):
    def forward(self, x, mask):
        return self.l(x)


built = [0]


def stateful(task, seed):
    built[0] += 1
    network = flat(nn.Linear(784, 3))
    nn.init.constant_(network[1].bias, built[0])
    return network


def nan_weight(task, seed):
    network = flat(nn.Linear(784, 3))
    nn.init.constant_(network[1].bias, float("nan"))
    return network


def unseeded(task, seed):
    network = flat(nn.Linear(784, 3))
    nn.init.constant_(network[1].bias, float(np.random.default_rng().normal()))
    return network


def from_clock(task, seed):
    network = flat(nn.Linear(784, 3))
    nn.init.constant_(network[1].bias, random.SystemRandom().random())
    return network


# fmt: off
NETWORKS = [
    ("returns None", lambda t, s: None, "the model's function gave a NoneType; it must give an nn.Module"),
    ("returns tuple", lambda t, s: (flat(nn.Linear(784, 3)),), "the model's function gave a tuple; it must give an nn.Module"),
    ("class", lambda t, s: nn.Linear, "the model's function gave a type; it must give an nn.Module"),
    ("no params", lambda t, s: nn.Flatten(), "the model has no parameter that requires a gradient; there is nothing"),
    ("frozen", lambda t, s: flat(nn.Linear(784, 3)).requires_grad_(False), "the model has no parameter that requires a gradient; there is nothing"),
    ("wrong in", lambda t, s: flat(nn.Linear(7, 3)), "the model fails: RuntimeError: mat1 and mat2 shapes cannot be multipli"),
    ("few out", lambda t, s: flat(nn.Linear(784, 2)), "the model has 2 outputs; the 3 classes need one each"),
    ("one logit", lambda t, s: flat(nn.Linear(784, 1)), "the model has 1 outputs; the 3 classes need one each"),
    ("out dict", lambda t, s: Net(lambda o, x: {'logits2': o}), "the model gave a dict; it must give a tensor (points, ...), or an obje"),
    ("out tuple", lambda t, s: Net(lambda o, x: (o, o)), "the model gave a tuple; it must give a tensor (points, ...), or an obj"),
    ("out none", lambda t, s: Net(lambda o, x: None), "the model gave a NoneType; it must give a tensor (points, ...), or an"),
    ("out 3d", lambda t, s: Net(lambda o, x: o[:, None]), "cross_entropy needs outputs (points, classes); the model's are (6, 1,"),
    ("out mean", lambda t, s: Net(lambda o, x: o.mean(0)), "the model gives outputs of shape (3,) for 6 points; give (points, ...)"),
    ("out scalar", lambda t, s: Net(lambda o, x: o.sum()), "the model gives outputs of shape () for 6 points; give (points, ...)"),
    ("out int", lambda t, s: Net(lambda o, x: o.argmax(1)), "the model gives outputs that are int64; they must be floats"),
    ("out detached", lambda t, s: Net(lambda o, x: o.detach()), "the model's outputs have no gradient in its parameters; they must be a"),
    ("out numpy", lambda t, s: Net(lambda o, x: o.detach().numpy()), "the model gave a ndarray; it must give a tensor (points, ...), or an o"),
    ("out nan", lambda t, s: Net(lambda o, x: o / 0 * 0), "the model gives outputs that are NaN; they must be floats"),
    ("out complex", lambda t, s: Net(lambda o, x: o + 1j), "the model gives outputs that are complex64; they must be floats"),
    ("raises", lambda t, s: Net(lambda o, x: 1 / 0), "the model fails: ZeroDivisionError: division by zero"),
    ("raises build", lambda t, s: 1 / 0, "the model's function fails: ZeroDivisionError: division by zero"),
    ("batchnorm", lambda t, s: flat(nn.BatchNorm1d(784), nn.Linear(784, 3)), "batch norm couples the points of a batch; return tdalib.models.with_gr"),
    ("batch mean", lambda t, s: Net(lambda o, x: o - o.mean(0)), "the model gives a point other outputs alone than beside others; each p"),
    ("batch max", lambda t, s: Net(lambda o, x: o / o.abs().max()), "the model gives a point other outputs alone than beside others; each p"),
    ("softmax 0", lambda t, s: Net(lambda o, x: o.softmax(0)), "the model gives a point other outputs alone than beside others; each p"),
    ("mixup", lambda t, s: Net(lambda o, x: o + o.flip(0)), "the model gives a point other outputs alone than beside others; each p"),
    ("squeeze", lambda t, s: Net(lambda o, x: o.squeeze()), "the model gives a point other outputs alone than beside others; each p"),
    ("instance norm", lambda t, s: nn.Sequential(nn.InstanceNorm2d(1, track_running_stats=True), *flat(nn.Linear(784, 3))), "in training the model keeps something of the points in '0.running_mean"),
    ("stateful", stateful, "is not the same; it must take its random numbers from torch, numpy or"),
    ("counter", lambda t, s: Cnt(), "the model keeps something from one pass to the next that is neither pa"),
    ("unseeded", lambda t, s: flat(nn.Linear(784, 3)).load_state_dict({'1.weight': torch.as_tensor(np.random.default_rng().normal(size=(3, 784)), dtype=torch.float32), '1.bias': torch.zeros(3)}) and None, "the model's function gave a NoneType; it must give an nn.Module"),
    ("lazy", lambda t, s: flat(nn.LazyLinear(3)), "the model has parameters without numbers (of lazy layers, or on the me"),
    ("meta", lambda t, s: flat(nn.Linear(784, 3, device='meta')), "the model has parameters without numbers (of lazy layers, or on the me"),
    ("random forward", lambda t, s: Net(lambda o, x: o + torch.randn_like(o)), "the model gives other outputs at each call, in eval mode too; only tra"),
    ("lambda 1 arg", lambda t: flat(nn.Linear(784, 3)), "the model's function fails: TypeError: <lambda>() takes 1 positional a"),
    ("string", lambda t, s: 'cnn2', "the model's function gave a str; it must give an nn.Module"),
    ("jit", lambda t, s: torch.jit.script(flat(nn.Linear(784, 3))), "the model is of TorchScript; give the nn.Module that it was made of"),
    ("quantized ints", lambda t, s: flat(nn.Embedding(784, 3)), "the model fails: RuntimeError: Expected tensor for argument #1 'indice"),
    ("memory", lambda t, s: flat(nn.Linear(784, 10 ** 10)), "the model's function fails: RuntimeError: [enforce fail at alloc_cpu.c"),
    ("needs a second input", lambda t, s: Mask(None), "missing 1 required positional argument: 'mask'"),
    ("a weight that is NaN", nan_weight, "the model gives outputs that are NaN; they must be floats"),
    ("unseeded generator", unseeded, "is not the same; it must take its random numbers from torch, numpy or random"),
    ("the system's randomness", from_clock, "is not the same; it must take its random numbers from torch, numpy or random"),
]
# fmt: on


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's, of its own torch.jit
@rows(NETWORKS)
def test_networks(call, said):
    """Here a row holds the function that makes the network."""
    assert not refused(lambda: run("gd", ensemble(call), path=here() / "a.zarr"), said)


# fmt: off
GIVEN = [
    ("None", lambda d, t: None, "method 'own' gave a NoneType where a tensor (2, 1) is needed"),
    ("float", lambda d, t: 1.0, "method 'own' gave a float where a tensor (2, 1) is needed"),
    ("list", lambda d, t: [[1.0]], "method 'own' gave a list where a tensor (2, 1) is needed"),
    ("numpy", lambda d, t: np.zeros((len(t.train), len(t.test))), "method 'own' gave a ndarray where a tensor (2, 1) is needed"),
    ("transposed", lambda d, t: torch.zeros(len(t.test), len(t.train)), "method 'own' gave τ of shape (1, 2) where (2, 1) is needed"),
    ("1d", lambda d, t: torch.zeros(len(t.train)), "method 'own' gave τ of shape (2,) where (2, 1) is needed"),
    ("extra", lambda d, t: torch.zeros(1, len(t.train), len(t.test)), "method 'own' gave τ of shape (1, 2, 1) where (2, 1) is needed"),
    ("nan", lambda d, t: torch.full((len(t.train), len(t.test)), float('nan')), "what method 'own' gives is not finite; if it diverged, a lower lea"),
    ("inf", lambda d, t: torch.full((len(t.train), len(t.test)), float('inf')), "what method 'own' gives is not finite; if it diverged, a lower lea"),
    ("complex", lambda d, t: torch.zeros(len(t.train), len(t.test), dtype=torch.complex64), "method 'own' gave τ that are complex, sparse or meta; give rea"),
    ("fixed", lambda d, t: torch.zeros(2, 1), "method 'own' gave τ of shape (2, 1) where (6, 6) is needed"),
    ("nan later", lambda d, t: torch.zeros(len(t.train), len(t.test)) + (float('nan') if len(t.train) > 2 else 0), "tau of member 0 by own is not finite; if it diverged, a lowe"),
    ("raises", lambda d, t: 1 / 0, "method 'own' fails: ZeroDivisionError: division by zero"),
    ("raises key", lambda d, t: {}['x'], "method 'own' fails: KeyError: 'x'"),
    ("raises attr", lambda d, t: d.weights, "method 'own' fails: AttributeError: 'Draw' object has no a"),
    ("raises later", lambda d, t: torch.zeros(2, 1) if len(t.train) == 2 else 1 / 0, "method 'own' fails: ZeroDivisionError: division by zero"),
    ("meta", lambda d, t: torch.zeros(len(t.train), len(t.test), device='meta'), "method 'own' gave τ that are complex, sparse or meta; give real,"),
    ("sparse", lambda d, t: torch.zeros(len(t.train), len(t.test)).to_sparse(), "method 'own' gave τ that are complex, sparse or meta; give real"),
    ("string", lambda d, t: 'tau', "method 'own' gave a str where a tensor (2, 1) is needed"),
    ("tuple", lambda d, t: (torch.zeros(len(t.train), len(t.test)),), "method 'own' gave a tuple where a tensor (2, 1) is needed"),
    ("generator", lambda d, t: (x for x in ()), "method 'own' gave a generator where a tensor (2, 1) is neede"),
    ("overflow", lambda d, t: torch.full((len(t.train), len(t.test)), 1e+300, dtype=torch.float64), "tau of member 0 by own is not finite; if it diverged, a lower"),
]
# fmt: on


@rows(GIVEN)
def test_what_attributors_give(call, said):
    """Here a row holds the attributor."""
    attributors.register("own", unit="1", sets="sum")(call)
    refused(lambda: run("own"), said)


def register(name, function, **facts):
    attributors.register(name, **{"unit": "1"} | facts)(function)
    return name


def finished():
    return samplers.from_checkpoints("logreg", digits(), [models.get("logreg")(digits(), 0).state_dict()])


def laplace():
    return samplers.laplace("logreg", digits(), RECIPE, members=1, checkpoints=1)


# fmt: off
ATTRIBUTORS = [
    ("no sets", lambda: run(register("own", lambda d, t: torch.zeros(len(t.train), len(t.test))), removals={"by": "class"}), "method 'own' does not say what a set is to it: register it with sets"),
    ("one argument", lambda: run(register("own", lambda d: torch.zeros(1))), "method 'own' fails: TypeError"),
    ("scope", lambda: register("own", print, scope="all"), "scope: 'all' is not possible; input should be 'draw', 'run', 'posterior' or 'ret"),
    ("sets", lambda: register("own", print, sets="mean"), "sets: 'mean' is not possible; input should be 'sum' or 'own'"),
    ("unit", lambda: register("own", print, unit=3), "unit: 3 is not possible; input should be a valid string"),
    ("no function", lambda: register("own", 3), "method 'own': 3 is no function; register a function by a name"),
    ("no name", lambda: register(3, print), "is no function; register a function by a name"),
    ("a name of tdalib's", lambda: register("gd", lambda d, t: 0), "method 'gd' is tdalib's own; register yours by another name"),
    ("a model of tdalib's", lambda: models.register("cnn2")(lambda t, s: 0), "model 'cnn2' is tdalib's own; register yours by another name"),
    ("shape of retraining", lambda: run(register("own", lambda p, m, w: torch.zeros(1), scope="retrain", sets="own")), "method 'own' gave losses of shape (1,) where"),
    ("two that retrain", lambda: run([register("own", lambda p, m, w: 0, scope="retrain"), "loo"]), "methods: own, loo retrain, and a result holds the losses of one alone"),
    ("shape of a run", lambda: run(register("own", lambda r, t: torch.zeros(2, 2), scope="run", sets="sum")), "method 'own' gave τ of shape (2, 2) where"),
    ("a run of no training", lambda: run(register("own", lambda r, t: 0, scope="run"), laplace()), "a run is a training's, whose epochs sampler 'laplace' does not draw"),
    ("shape of all members", lambda: run(register("own", lambda m, t: torch.zeros(7, 2, 1), scope="posterior", sets="sum")), "method 'own' gave τ of shape (7, 2, 1) where"),
    ("no damping", lambda: run("if", ensemble(r=Recipe(epochs=2, weight_decay=0))), "if: damping 0.0 is not possible; H + λI needs λ > 0"),
    ("a step without a recipe", lambda: run("ats", finished()), "ats: a step needs the training's recipe, which is not known; give it to"),
    ("retraining of checkpoints", lambda: run("loo", finished()), "finished checkpoints cannot be trained again without a point; use a sampler"),
    ("memory", lambda: run(options={"gd": {"memory": 0}}), "gd.memory: 0 is not possible; input should be greater than 0"),
    ("solver", lambda: run("if", options={"if": {"solver": "lu"}}), "if.solver: 'lu' is not possible; input should be 'ggn' or 'cg'"),
    ("protocol of draws", lambda: run("loo", laplace(), options={"loo": {"protocol": "continue"}}), "loo: 'continue' trains on from epochs; 'laplace' draws none; choose retra"),
]
# fmt: on


@rows(ATTRIBUTORS)
def test_attributors(call, said):
    assert not refused(call, said)


def ok():
    """A finished store."""
    if not (here() / "ok.zarr").exists():
        run(["loo", "gd"], path=here() / "ok.zarr")
    return here() / "ok.zarr"


def spoiled(spoil, use=lambda path: store.open_result(path).load()):
    spoil(ok())
    return use(ok())


def flip(path, name, at=20):
    content = bytearray((path / name).read_bytes())
    content[at] ^= 4
    (path / name).write_bytes(content)


HOLD = """
import sys, time
from pathlib import Path
from tdalib import store
with store.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def held():
    path = here() / "h.zarr"
    other = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE)
    other.stdout.readline()
    try:
        run(path=path)
    finally:
        other.kill()
        other.communicate()


# fmt: off
STORES = [
    ("missing", lambda: store.open_result(here() / 'no.zarr'), "make one: python -m tdalib.run params/no.yaml"),
    ("None", lambda: store.open_result(None), "None is no path; give a string or a pathlib.Path"),
    ("int", lambda: store.open_result(3), "3 is no path; give a string or a pathlib.Path"),
    ("file", lambda: store.open_result(a_file()), "make one: python -m tdalib.run params/file.yaml"),
    ("empty folder", lambda: ((here() / 'e.zarr').mkdir(exist_ok=True), store.open_result(here() / 'e.zarr')), "is a folder, but not a tdalib store"),
    ("flip root", lambda: spoiled(lambda c: flip(c, 'zarr.json', 400)), "is damaged; tdalib.store.repair restores it"),
    ("flip array", lambda: spoiled(lambda c: flip(c, 'tau/zarr.json')), "is damaged; tdalib.store.repair restores it"),
    ("flip copy", lambda: spoiled(lambda c: flip(c, '.metadata', 60)), "is damaged; tdalib.store.repair restores it"),
    ("flip chunk", lambda: spoiled(lambda c: flip(c, 'tau/c/0/0/0/0')), "is damaged; tdalib.store.repair removes it, and the run that made the"),
    ("flip coord", lambda: spoiled(lambda c: flip(c, 'member/c/0', 5)), "is damaged; tdalib.store.repair removes it, and the run that made the"),
    ("cut chunk", lambda: spoiled(lambda c: (c / 'tau/c/0/0/0/0').write_bytes(b'')), "is damaged; tdalib.store.repair removes it, and the run that made the"),
    ("cut root", lambda: spoiled(lambda c: (c / 'zarr.json').write_text('{')), "is damaged; tdalib.store.repair restores it"),
    ("no root", lambda: spoiled(lambda c: (c / 'zarr.json').unlink()), "is damaged; tdalib.store.repair restores it"),
    ("coord gone", lambda: spoiled(lambda c: (c / 'member/c/0').unlink()), "lacks its member; the run that made the store writes it again"),
    ("other params", lambda: run(['loo', 'gd'], ensemble(members=2, checkpoints=2), path=ok()), "was made with checkpoints: 1, not 2; choose another store"),
    ("other model", lambda: run(['loo', 'gd'], ensemble('mlp'), path=ok()), "was made with model: logreg, not mlp; choose another store"),
    ("other seed", lambda: run(['loo', 'gd'], ensemble(seed=3), path=ok()), "was made with seeds: [["),
    ("other recipe", lambda: run(['loo', 'gd'], ensemble(r=Recipe(epochs=3)), path=ok()), "was made with epochs: 2, not 3; choose another store"),
    ("other data", lambda: run(['loo', 'gd'], ensemble(t=data.load('mnist3', train_per_class=2, test_per_class=2, seed=4)), path=ok()), "was made with other points or targets; choose another store"),
    ("other removals", lambda: run(['loo', 'gd'], path=ok(), removals={'by': 'class'}), "was made with removals: None, not {'by': 'class'}; choose another stor"),
    ("path is file", lambda: run(path=a_file()), "exists and is not a tdalib store; choose another"),
    ("in file", lambda: run(path=a_file() / 'x.zarr'), "is a file; choose another place"),
    ("foreign zarr", lambda: (zarr.open_group(here() / 'z.zarr', mode='w'), run(path=here() / 'z.zarr')), "exists and is not a tdalib store; choose another"),
    ("foreign open", lambda: (zarr.open_group(here() / 'z2.zarr', mode='w'), store.open_result(here() / 'z2.zarr')), "is a folder, but not a tdalib store"),
    ("proc", lambda: run(path='/proc/x.zarr'), "store /proc/x.zarr: it cannot be written (No such file or directory);"),
    ("dev null", lambda: run(path='/dev/null/x.zarr'), "store /dev/null/x.zarr: /dev/null is a file; choose another place"),
    ("held", lambda: held(), "is being written by another run; wait for it or choose another store"),
    ("merge none", lambda: store.merge([]), "merge: give a list of stores, one at least"),
    ("merge missing", lambda: store.merge([ok(), here() / 'no.zarr']), "make one: python -m tdalib.run params/no.yaml"),
    ("merge str", lambda: store.merge(str(ok())), "merge: give a list of stores, one at least"),
    ("merge other", lambda: (run(['loo', 'gd'], ensemble(r=Recipe(epochs=3)), path=here() / 'o.zarr'), store.merge([ok(), here() / 'o.zarr'])), "it was made with epochs: 3, not 2"),
    ("repair missing", lambda: store.repair(here() / 'no.zarr'), "make one: python -m tdalib.run params/no.yaml"),
    ("repair file", lambda: store.repair(a_file()), "make one: python -m tdalib.run params/file.yaml"),
    ("damaged missing", lambda: store.damaged(here() / 'no.zarr'), "make one: python -m tdalib.run params/no.yaml"),
    ("report missing", lambda: report.write(here() / 'no.zarr'), "make one: python -m tdalib.run params/no.yaml"),
    ("stats of dataset", lambda: stats.per_pair(store.open_result(ok())), "τ must be a DataArray (sample, train, test, method) with 'member', suc"),
    ("stats of loss", lambda: stats.per_pair(store.open_result(ok()).loss), "τ must be a DataArray (sample, train, test, method) with 'member', suc"),
    ("stats of mean", lambda: stats.per_pair(store.open_result(ok()).tau.mean('sample')), "τ must be a DataArray (sample, train, test, method) with 'member', suc"),
    ("stats numpy", lambda: stats.per_pair(np.zeros((2, 3, 4))), "τ must be a DataArray (sample, train, test, method) with 'member', suc"),
    ("unfinished", lambda: spoiled(lambda c: (c / 'tau/c/0/0/0/0').unlink(), lambda c: report.write(c)), "is not finished; the run that made it goes on where it was"),
    ("nul", lambda: run(path='a\x00b.zarr'), "'a\\x00b.zarr' is no path; give a string or a pathlib.Path"),
    ("empty path", lambda: run(path=''), "'' is no path; give a string or a pathlib.Path"),
]
# fmt: on


@rows(STORES)
def test_stores(call, said):
    refused(call, said)


def test_there_are_many_rows_of_each_kind():
    kinds = [PARAMS, YAML, ARRAYS + READ, FOLDERS, NETWORKS, GIVEN + ATTRIBUTORS, STORES]
    assert min(map(len, kinds)) >= 15 and sum(map(len, kinds)) >= 150

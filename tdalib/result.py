"""The labelled result: its dims, coordinates and attributes, and how it lies in chunks."""

import json
import platform
import subprocess
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version

import dask.array
import numpy as np
import torch
import xarray as xr

from tdalib.attributors import Method
from tdalib.behaviour import Behaviour
from tdalib.data import ROOT
from tdalib.networks import fingerprint
from tdalib.removals import Removals
from tdalib.samplers import Posterior

TRAIN_BLOCK = 25  # removals in a chunk: a finished unit of work is that of a member, a block of removals, a method
DIMS = {
    "tau": ("sample", "train", "test", "method"),
    "loss": ("sample", "test"),
    "loss_without": ("sample", "train", "test"),
}
SIGN = "tau > 0: the train point helps; removing it raises the loss at the test point"
PACKAGES = ("tdalib", "torch", "torchvision", "transformers", "peft", "numpy", "scipy", "xarray", "zarr")


def template(
    posterior: Posterior, removals: Removals, methods: dict[str, Method], params: dict, behaviour: Behaviour
) -> xr.Dataset:
    """The labelled, empty result: the one place that owns dims, coordinates and attributes.

    Parameters
    ----------
    params : dict
        What the result depends on; a store made with other params is refused.
    behaviour : dict
        What network and methods give on a few points; a store that was made with others is refused too.

    Returns
    -------
    Dataset with `tau` (sample, train, test, method), `loss` (sample, test) and, with a method that retrains,
    `loss_without` (sample, train, test): float32, NaN, lazy, in chunks of (one member, TRAIN_BLOCK, all, 1). Where
    removals are sets, `removed` (train, point) says which points each leaves out, and `size` (train) how many.
    """
    task, kept, unit = posterior.task, posterior.checkpoints, posterior.task.objective.unit
    coords = provenance(posterior) | _labels("train", removals.labels) | _labels("test", task.test.labels)
    coords["method"] = "method", np.array(list(methods), dtype=object)
    sizes = {"train": len(removals), **xr.Dataset(coords=coords).sizes}
    chunk = {"sample": kept, "train": min(TRAIN_BLOCK, sizes["train"]), "test": sizes["test"], "method": 1}

    def empty(name: str, **attrs: str) -> tuple:
        shape, chunks = ([of[dim] for dim in DIMS[name]] for of in (sizes, chunk))
        return DIMS[name], dask.array.full(shape, np.nan, dtype=np.float32, chunks=chunks), attrs

    units = json.dumps({name: method.unit.replace("{loss}", unit) for name, method in methods.items()})
    variables = {"tau": empty("tau", long_name="attribution", units=units, sign=SIGN)}
    variables["loss"] = empty("loss", long_name="test loss at θ", units=unit)
    if any(method.scope == "retrain" for method in methods.values()):
        without = "test loss at θ without the train point"
        variables["loss_without"] = empty("loss_without", long_name=without, units=unit)
    if not removals.single:
        variables["removed"] = ("train", "point"), removals.removed()
        coords["size"] = ("train", np.array([len(points) for points in removals.sets]))
        coords |= _labels("point", task.train.labels)
    network = posterior.build(task, posterior.members[0].init_seed).state_dict()
    # its instructions decide in which order numbers are summed
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    facts = {
        "sign": SIGN,
        "units": units,
        "params": json.dumps(params, sort_keys=True, default=lambda value: np.asarray(value).tolist()),
        "data_sha256": task.fingerprint(),
        "model_sha256": fingerprint(network),
        "labels_sha256": _digest(coords),
        "removed_sha256": sha256(variables["removed"][1].tobytes()).hexdigest() if "removed" in variables else "",
        "behaviour": json.dumps({name: values.tolist() for name, values in behaviour.items()}),
        "seeds": json.dumps([[m.init_seed, m.batch_seed] for m in posterior.members]),
        "scopes": json.dumps({name: method.scope for name, method in methods.items()}),
        "renormalise": int(removals.renormalise),  # 1: batches are divided by their kept weight
        "versions": json.dumps({name: version(name) for name in PACKAGES} | {"cpu": cpu}),
        "git_revision": _revision(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return xr.Dataset(variables, coords, facts)


def provenance(posterior: Posterior) -> dict:
    """The coordinates of `sample`: where each draw comes from."""
    names = "member", "checkpoint", "init_seed", "batch_seed", "data_id"
    data = int(posterior.task.fingerprint()[:8], 16)  # draws of other data tell themselves apart
    draws = [(m.index, k, m.init_seed, m.batch_seed, data) for m in posterior.members for k in posterior.numbers]
    return {name: ("sample", values) for name, values in zip(names, np.transpose(draws), strict=True)}


def _labels(prefix: str, labels: dict[str, np.ndarray]) -> dict:
    return {f"{prefix}_{name}": (prefix, values) for name, values in labels.items()}


def _digest(coords: dict[str, tuple]) -> str:
    """SHA-256 over what is known of the points: all coordinates but those of draws and methods."""
    of_points = {name: values for name, (dim, values) in coords.items() if dim not in ("sample", "method")}
    said = {name: [str(value) for value in values] for name, values in sorted(of_points.items())}
    return sha256(json.dumps(said).encode()).hexdigest()


def _revision() -> str:
    """The git revision of the source, with '+' when it holds uncommitted changes."""
    try:  # without a checkout ROOT is None, and git fails
        git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty=+"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

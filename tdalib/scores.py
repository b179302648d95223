"""Anyone's finished scores as a result: every statistic and figure works on it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from safetensors.torch import load_file
from torch import Tensor

from tdalib.data import resolve
from tdalib.options import said_as


def from_scores(
    scores: Mapping[int, Any],
    layout: Literal["train,test", "test,train"] = "train,test",
    sign: Literal[1, -1] = 1,
    *,
    unit: str = "",
    labels: Mapping[str, Any] | None = None,
    method: str = "scores",
) -> xr.Dataset:
    """The result of scores that were computed elsewhere: one matrix for each training of the network.

    Parameters
    ----------
    scores : dict, seed → matrix
        An array, a tensor, or the path of a safetensors file, whose tensors (kronfluence's modules) are summed. The
        seed is any integer that tells the trainings apart; retrain for each with another initialisation and batch
        order, else there is nothing to judge.
    layout : "train,test" or "test,train"
        What rows and columns are.
    sign : 1 or -1
        1 where a positive score says that the train point helps: without it the test loss would be higher.
    unit : str
        Of the scores, such as "nats".
    labels : dict, optional
        What is known of the points, under names that begin with `train_` or `test_`: `{"train_class": […]}`.
    method : str
        The name of the method. To compare several of the same seeds: `xr.concat([one, other], "method")`. To put scores
        on the draws of a `result` of tdalib beside it, give them its provenance first:
        `scores.assign_coords({name: c for name, c in result.coords.items() if c.dims == ("sample",)})`.

    What libraries give (September 2026):

    | library | from | layout | sign |
    |---|---|---|---|
    | captum | `TracInCP(…).influence((inputs, targets))` | test,train | 1 |
    | dattri | `attributor.attribute(train_loader, test_loader)` | train,test | 1 |
    | kronfluence | `pairwise_scores.safetensors` | test,train | 1 |
    | traker | `traker.finalize_scores(name)` | train,test | 1 |
    | quanda | `explainer.explain(test_data, targets)` | test,train | 1 |
    | bergson | `load_scores_loss_signed(path)[0]` | train,test | -1 |

    traker averages over all trainings in its `save_dir`: give each seed its own. bergson's -1 holds where its command
    wrote the scores, with a `config.yaml` beside them; where only `score_dataset` ran, the sign is 1.

    A sign is easily checked: a train point with a wrong label harms (τ < 0) the test points that look like it.

    Returns
    -------
    Dataset
        `tau` (sample, train, test, method), float32, a sample for each seed.

    Raises
    ------
    ValueError
        There are fewer than two seeds, the matrices differ in shape, are none, or hold no finite numbers; layout, sign
        or labels are impossible.
    FileNotFoundError
        A file is not there.
    """
    if not isinstance(scores, Mapping):
        raise ValueError(f"scores: a {type(scores).__name__} is not possible; give a dict seed → matrix")
    if len(scores) < 2:
        raise ValueError("scores must be a dict seed → matrix with at least 2 seeds: one training shows no spread")
    if not all(isinstance(seed, int | np.integer) and not isinstance(seed, bool) for seed in scores):
        raise ValueError(f"scores: the keys {str(list(scores))[:60]} are not all integers, the seeds")
    if layout not in ("train,test", "test,train"):
        raise ValueError(f"layout: {layout!r} is not possible; it must be 'train,test' or 'test,train'")
    if sign not in (1, -1):
        raise ValueError(f"sign: {sign!r} is not possible; it must be 1 or -1")
    matrices = {seed: _matrix(seed, given) for seed, given in scores.items()}
    shapes = {matrix.shape for matrix in matrices.values()}
    if len(shapes) > 1:
        raise ValueError(f"scores: the matrices differ in shape, {sorted(shapes)}; they must be of the same points")
    tau = sign * np.stack(list(matrices.values()))  # (seed, …)
    tau = tau if layout == "train,test" else tau.swapaxes(1, 2)
    seeds = list(scores)
    coords: dict[str, Any] = {"member": ("sample", np.arange(len(seeds))), "checkpoint": ("sample", [1] * len(seeds))}
    coords |= {"init_seed": ("sample", seeds), "batch_seed": ("sample", seeds)}
    coords |= {"method": [method]} | _labels(labels or {}, {"train": tau.shape[1], "test": tau.shape[2]})
    if len({matrix.tobytes() for matrix in matrices.values()}) < len(matrices):
        raise ValueError("scores: some matrices are the same; each must come from a training of its own")
    facts = {"units": json.dumps({method: unit}), "sign": "tau > 0: the train point helps"}
    dims = ("sample", "train", "test", "method")
    return xr.Dataset({"tau": (dims, tau[..., None], facts | {"long_name": "attribution"})}, coords, facts)


def _matrix(seed: int, given: Any) -> np.ndarray:
    """The scores of one seed, float32."""
    if isinstance(given, str | Path):
        path = resolve(given)
        if not path.is_file():
            raise FileNotFoundError(f"scores: seed {seed}: there is no file {path}")
        with said_as(f"scores: seed {seed}: {path} is no safetensors file of scores"):
            given = torch.stack(list(load_file(path).values())).double().sum(0)  # of modules of one shape
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = given.double() if given.is_floating_point() else given  # numpy has no bfloat16
    with said_as(f"scores: seed {seed}: a matrix of real numbers is needed"):
        values = np.asarray(given)
    if values.ndim != 2 or 0 in values.shape or values.dtype.kind not in "fiu":
        what = f"shape {values.shape} and type {values.dtype}"
        raise ValueError(f"scores: seed {seed}: a matrix of real numbers is needed, not {what}")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"scores: seed {seed}: {np.sum(~np.isfinite(values))} of {values.size} scores are not finite")
    return values


def _labels(labels: Mapping[str, Any], sizes: dict[str, int]) -> dict[str, tuple[str, np.ndarray]]:
    found = {}
    if not isinstance(labels, Mapping):
        raise ValueError("labels must be a dict of what is known of the points, such as {'train_class': […]}")
    for name, given in labels.items():
        split, values = str(name).partition("_")[0], np.asarray(given)
        if split not in sizes or split == name:
            raise ValueError(f"labels: {name!r} is not possible; a name begins with train_ or test_")
        if values.shape != (sizes[split],):
            raise ValueError(f"labels: {name} has shape {values.shape}; there are {sizes[split]} {split} points")
        found[name] = (split, values)
    return found

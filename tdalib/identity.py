"""What made a store, and whether what is asked for is the same, or the same and more members or methods."""

import json
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from tdalib.behaviour import differs
from tdalib.result import DIMS, unfilled

# params that older stores lack, as they were then
SINCE: dict[str, Any] = {"objective": None, "model_options": {}, "optimizer": "adam", "momentum": 0.0, "removals": None}

GROWING = {"members", "seeds", "methods", "method_options"}  # params in which a store may hold more, or less
READ = ("params", "units", "behaviour", "seeds", "scopes")  # attributes that are JSON

FACTS = {
    "removed_sha256": "other removals",
    "data_sha256": "other points or targets",
    "model_sha256": "another model or backbone",
    "labels_sha256": "other labels of the points",
}

Made = dict[str, Any]


def read(attrs: Mapping[str, Any]) -> Made:
    """The attributes of a result or a store, what is JSON read; older stores lack some."""
    made = dict(attrs) | {key: json.loads(attrs[key]) for key in READ if key in attrs}
    made["params"] = SINCE | made["params"]
    return {"behaviour": {}, "scopes": {}} | made


def difference(made: Made, asked: Made) -> str | None:
    """What a store was made with that is not asked for, in words; None: it may hold what is asked for, or grow."""
    held, wanted = seeds(made), seeds(asked)
    if other := _in_params(made, asked, GROWING):
        return other
    if any(one != other for one, other in zip(held, wanted, strict=False)):
        return f"seeds: {held}, not {wanted}"
    for fact, other in FACTS.items():
        if fact in made and made[fact] != asked[fact]:
            return other
    retraining = [name for name, scope in (made["scopes"] | asked["scopes"]).items() if scope == "retrain"]
    if len(retraining) > 1:
        return f"the losses of {retraining[0]}; {retraining[1]} retrains too"
    if len(wanted) < len(held) and (whole := set(of_all_members(made)) & set(methods(asked))):
        return f"members: {len(held)}, all of which {min(whole)} sees"
    behaviour = {key: np.asarray(values) for key, values in asked["behaviour"].items()}
    if changed := differs(made["behaviour"], behaviour):
        return f"code that gave other {changed} on a few points"
    return None


def other_than_seeds(made: Made, first: Made) -> str | None:
    """What but the seeds of its members tells a store from another, in words; None: they are draws of one posterior."""
    if other := _in_params(made, first, GROWING | {"seed"}):
        return other
    for name in methods(first):
        if name not in methods(made):
            return f"methods: {methods(made)}, without {name}"
        if name in of_all_members(first):
            return f"{name}, which sees all members of a run"
    for fact in ("data_sha256", "labels_sha256", "removed_sha256"):
        if made.get(fact) != first.get(fact):
            return FACTS[fact]
    for role, what in enumerate(("initialisation", "batch order")):
        held, others = ({of_member[role] for of_member in seeds(each)} for each in (made, first))
        is_shared = len(held) < len(seeds(made)) or len(others) < len(seeds(first))
        if is_shared and held != others:
            return f"members that share one {what}, another than those of the first"
    return None


def _in_params(made: Made, asked: Made, beside: set[str]) -> str | None:
    """The first of the params, beside some, that are others."""
    before, now = made["params"], asked["params"]
    for key in sorted((before.keys() | now.keys()) - beside):
        if before.get(key) != now.get(key):
            return f"{key}: {before.get(key)}, not {now.get(key)}"
    for name in set(methods(made)) & set(methods(asked)):
        was, wanted = (params.get("method_options", {}).get(name, {}) for params in (before, now))
        if was != wanted:
            return f"method_options of {name}: {was}, not {wanted}"
    return None


def note_versions(path: Any, made: Made, asked: Made) -> None:
    """Say so where a store goes on with other versions than it was begun with."""
    before, now = json.loads(made["versions"]), json.loads(asked["versions"])
    if other := [
        f"{name} {before.get(name)}, now {now[name]}" for name in now if before.get(name, now[name]) != now[name]
    ]:
        warnings.warn(
            f"store {path} was begun with {'; '.join(other)}: it goes on, with numbers that agree but for rounding",
            stacklevel=2,
        )


def methods(made: Made) -> list[str]:
    """The methods, in the order of their columns."""
    return made["params"]["methods"]


def seeds(made: Made) -> list:
    """The seeds of each member; of older stores they are not known."""
    return made.get("seeds") or made["params"].get("seeds", [])


def of_all_members(made: Made) -> list[str]:
    """The methods whose τ depends on all members."""
    return [name for name, scope in made["scopes"].items() if scope == "posterior"]


def grows(made: Made, asked: Made) -> bool:
    """Whether a store lacks members or methods that are asked for."""
    return len(seeds(asked)) > len(seeds(made)) or bool(set(methods(asked)) - set(methods(made)))


def together(made: Made, empty: xr.Dataset) -> xr.Dataset:
    """The layout that holds what a store was made for and what is asked for, in the order in which it was asked for."""
    asked = read(empty.attrs)
    names = list(dict.fromkeys(methods(made) + methods(asked)))
    longer = max(made, asked, key=lambda each: len(seeds(each)))
    params = asked["params"] | {key: longer["params"][key] for key in ("members", "seeds") if key in longer["params"]}
    options = {key: each["params"].get("method_options", {}) for key, each in (("made", made), ("asked", asked))}
    params |= {"methods": names, "method_options": options["made"] | options["asked"]}
    joined = {key: made[key] | asked[key] for key in ("units", "behaviour", "scopes")}
    joined |= {"params": params, "seeds": seeds(longer)}
    kept = len(empty.sample) // len(seeds(asked))
    attrs = {name: empty[name].attrs for name in DIMS if name in empty}
    attrs["tau"] = attrs["tau"] | {"units": json.dumps(joined["units"])}
    if "retrain" in joined["scopes"].values():
        attrs.setdefault("loss_without", {})
    counts = len(seeds(longer)), kept, empty.sizes["train"], empty.sizes["test"], len(names)
    coords = _draws(empty, seeds(longer), kept) | {"method": ("method", np.array(names, object))}
    coords |= {str(name): c for name, c in empty.coords.items() if "sample" not in c.dims and name != "method"}
    others = {name: empty[name] for name in empty.data_vars if name not in DIMS}
    facts = {key: json.dumps(value, sort_keys=key == "params") for key, value in joined.items()}
    return xr.Dataset(unfilled(attrs, *counts) | others, coords, made | facts)


def _draws(empty: xr.Dataset, of_members: list, kept: int) -> dict[str, tuple]:
    """The coordinates of the draws of all members, by the pattern of those asked for."""
    inits, batches = np.transpose(of_members)
    of_each = {"member": np.arange(len(of_members)), "init_seed": inits, "batch_seed": batches}
    coords = {name: ("sample", np.repeat(values, kept)) for name, values in of_each.items()}
    of_draws = ("checkpoint", "data_id")
    return coords | {k: ("sample", np.tile(empty[k].values[:kept], len(of_members))) for k in of_draws}

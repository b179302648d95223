"""What made a store, and whether what is asked for is the same, or the same and more members or methods."""

import json
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from tdalib.behaviour import differs

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
    """The attributes of a result or a store, what is JSON read."""
    return dict(attrs) | {key: json.loads(attrs[key]) for key in READ if key in attrs}


def difference(made: Made, asked: Made) -> str | None:
    """What a store was made with that is not asked for, in words; None: it may hold what is asked for, or grow."""
    if not made.keys() >= set(READ):
        return "a tdalib of before 0.2, which did not note all that made it; it can be read"
    if other := _in_params(made, asked, GROWING):
        return other
    if any(was != now for was, now in zip(made["seeds"], asked["seeds"], strict=False)):
        return f"seeds: {made['seeds']}, not {asked['seeds']}"
    if other := _in_facts(made, asked):
        return other
    retraining = [name for name, scope in (made["scopes"] | asked["scopes"]).items() if scope == "retrain"]
    if len(retraining) > 1:
        return f"the losses of {retraining[0]}; {retraining[1]} retrains too"
    need_all = set(of_all_members(made)) | set(methods(asked)) - set(methods(made))  # the latter are new
    if members(asked) < members(made) and (whole := need_all & set(methods(asked))):
        return f"members: {members(made)}, and {min(whole)} needs all of them, not {members(asked)}"
    if members(asked) > members(made) and (left := set(of_all_members(made)) - set(methods(asked))):
        return f"{min(left)}, which sees all members: to have more of them, ask for it too"
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
    if other := _in_facts(made, first, beside="model_sha256"):
        return other
    for role, what in enumerate(("initialisation", "batch order")):
        held, others = ({of_member[role] for of_member in each["seeds"]} for each in (made, first))
        is_shared = len(held) < len(made["seeds"]) or len(others) < len(first["seeds"])
        if is_shared and held != others:
            return f"members that share one {what}, another than those of the first"
    return None


def _in_facts(made: Made, asked: Made, beside: str = "") -> str | None:
    """Which fact, but for one, is another; or which code of the same name did otherwise."""
    for fact, other in FACTS.items():
        if fact != beside and made[fact] != asked[fact]:
            return other
    behaviour = {key: np.asarray(values) for key, values in asked["behaviour"].items()}
    changed = differs(made["behaviour"], behaviour)
    return f"code that gave other {changed} on a few points" if changed else None


def _in_params(made: Made, asked: Made, beside: set[str]) -> str | None:
    """The first of the params, beside some, that are others; or what a method of the same name is told or gives."""
    before, now = made["params"], asked["params"]
    for key in sorted((before.keys() | now.keys()) - beside):
        if before.get(key) != now.get(key):
            return f"{key}: {before.get(key)}, not {now.get(key)}"
    for name in set(methods(made)) & set(methods(asked)):
        was, wanted = (_options(each).get(name, {}) for each in (made, asked))
        if was != wanted:
            return f"method_options of {name}: {was}, not {wanted}"
        if made["units"][name] != asked["units"][name]:
            return f"{name} in {made['units'][name]}, not in {asked['units'][name]}"
    return None


def note_versions(path: Any, made: Made, asked: Made) -> None:
    """Say so where a store goes on with other versions than it was begun with."""
    before, now = json.loads(made["versions"]), json.loads(asked["versions"])
    if changed := [name for name in now if before.get(name, now[name]) != now[name]]:
        then = "; ".join(f"{name} {before[name]}, now {now[name]}" for name in changed)
        warnings.warn(f"store {path} was begun with {then}: numbers agree but for rounding", stacklevel=2)


def methods(made: Made) -> list[str]:
    """The methods, in the order of their columns."""
    return made["params"]["methods"]


def members(made: Made) -> int:
    """How many members there are, or are to be."""
    return made["params"]["members"]


def of_all_members(made: Made) -> list[str]:
    """The methods whose τ depends on all members."""
    return [name for name, scope in made["scopes"].items() if scope == "posterior"]


def grows(made: Made, asked: Made) -> bool:
    """Whether a store lacks members or methods that are asked for."""
    return members(asked) > members(made) or bool(set(methods(asked)) - set(methods(made)))


def together(made: Made, empty: xr.Dataset) -> xr.Dataset:
    """The layout of a store with the methods that it holds, and those asked for behind them."""
    asked = read(empty.attrs)
    joined = {key: made[key] | asked[key] for key in ("units", "behaviour", "scopes")}
    names = list(dict.fromkeys(methods(made) + methods(asked)))
    options = {name: of_method for each in (made, asked) for name, of_method in _options(each).items()}
    joined["params"] = asked["params"] | {"methods": names, "method_options": options}
    whole = empty.reindex({"method": np.array(names, object)})
    whole["tau"] = whole.tau.variable.chunk({"method": 1})
    if "retrain" in joined["scopes"].values() and "loss_without" not in whole:
        whole["loss_without"] = whole.tau.isel(method=0, drop=True).assign_attrs(whole.loss.attrs)
    whole.tau.attrs["units"] = json.dumps(joined["units"])
    facts = {key: json.dumps(value, sort_keys=key == "params") for key, value in joined.items()}
    return whole.assign_attrs(made | {"seeds": empty.attrs["seeds"]} | facts)


def _options(made: Made) -> dict[str, dict]:
    return made["params"].get("method_options", {})

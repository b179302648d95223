"""Params: the one list of names that the run notebook, the YAML files and Python share."""

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import xarray as xr
import yaml
from pydantic import AfterValidator, ConfigDict, Field, ValidationError, create_model, field_validator

from tdalib import attributors, data, models, objectives, samplers
from tdalib.data import Task, resolve
from tdalib.experiment import Experiment
from tdalib.options import Count, Members, Natural, Workers, check, options_of, said_as, sentence
from tdalib.samplers import Posterior
from tdalib.training import Recipe
from tdalib.workers import Device

OF_THEIR_OWN = {"train_per_class", "test_per_class", "seed", "objective", "members", "checkpoints"}  # no options


def _must(pattern: str, rule: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.search(pattern, value):
            raise ValueError(f"{value!r} is not possible; it must {rule}")
        return value

    return AfterValidator(check)


def _known(find: Callable) -> AfterValidator:
    """A name that `find` finds."""
    return AfterValidator(lambda name: find(name) and name)


Name = Annotated[str, _known(attributors.get)]

OF_RECIPE: dict[str, Any] = {option.name: (option.type, option.default) for option in fields(Recipe)}
OfRecipe: Any = create_model("OfRecipe", **OF_RECIPE)

FIND: dict[str, Callable] = {"dataset": data.loader, "model": models.get, "sampler": samplers.get}


class Params(OfRecipe):
    """An experiment. `of` and `read` turn unknown keys, wrong types and impossible values into a one-line ValueError.

    The fields and defaults are those of the parameters cell of `notebooks/10_run_experiment.ipynb`, explained there;
    those of training (epochs, batch_size, …) are declared by `Recipe`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, _must(r"^[^/\\]+$", "be a file name without slashes")] = "experiment"
    dataset: Annotated[str, _known(data.loader)] = "mnist3"
    dataset_options: dict[str, Any] = {}
    train_per_class: Count = 10
    test_per_class: Count = 50
    objective: Annotated[str, _known(objectives.get)] | None = None
    model: Annotated[str, _known(models.get)] = "cnn2"
    model_options: dict[str, Any] = {}
    sampler: Annotated[str, _known(samplers.get)] = "deep_ensemble"
    sampler_options: dict[str, Any] = {}
    members: Members = 10
    checkpoints: Count = 5
    methods: Annotated[list[Name], Field(min_length=1)] = ["loo", "ats", "if", "gd", "gc"]
    method_options: dict[str, dict[str, Any]] = {}
    removals: dict[str, Any] | None = None
    seed: Natural = 0
    device: Device = "auto"
    workers: Workers | None = None
    scheduler: Annotated[str, _must(r"^local$|:\d+$", "be local or a dask scheduler, host:port")] | None = None
    store: Annotated[str, _must(r"\.zarr/?$", "end in .zarr")] | None = None
    plan_only: Annotated[bool, Field(strict=True)] = False

    @classmethod
    def of(cls, values: dict) -> "Params":
        """Params from a dict, every key checked.

        Raises
        ------
        ValueError
            One line that names the key and what is allowed.
        """
        try:
            return cls(**{str(key): value for key, value in values.items()})
        except ValidationError as error:
            raise ValueError("; ".join(sentence(e, cls.model_fields) for e in error.errors())) from None

    @classmethod
    def read(cls, path: Path | str) -> "Params":
        """Params from a YAML file, which holds only what differs from the defaults; `name` is the file's by default."""
        with said_as("the params file cannot be read as YAML"):
            values = yaml.load(Path(path).read_text(encoding="utf-8"), _PlainYaml)
        if not isinstance(values, dict) or not values:
            raise ValueError("the params file is empty or no list of 'key: value' lines; it needs one at least")
        return cls.of({"name": Path(path).stem} | values)

    @classmethod
    def of_notebook(cls, variables: dict) -> "Params":
        """Params from the variables of the parameters cell."""
        return cls.of({key: variables[key] for key in cls.model_fields})

    @field_validator("dataset_options", "model_options", "sampler_options", "method_options")
    @classmethod
    def _options_are_known(cls, given: dict[str, Any], info: Any) -> dict[str, Any]:
        kind = info.field_name.removesuffix("_options")
        if kind == "method":
            return {name: _checked(name, attributors.get(name).function, given[name]) for name in given}
        name = info.data.get(kind)  # None where it is wrong itself
        return _checked(name, FIND[kind](name), given) if name else given

    @property
    def recipe(self) -> Recipe:
        """How networks are trained."""
        return Recipe(**self.model_dump(include=set(OF_RECIPE)))

    @property
    def path(self) -> Path:
        """Where the store lies: `store`, or results/NAME.zarr; a relative path starts at the repository root."""
        return resolve(self.store or f"results/{self.name}.zarr")

    @property
    def cell(self) -> dict:
        """Where the experiment stands in the paper's tables: dataset, model, train_per_class, vary."""
        vary = self.sampler_options.get("vary", "both")
        return self.model_dump(include={"dataset", "model", "train_per_class"}) | {"vary": vary}

    def task(self) -> Task:
        """The data set, as asked for."""
        asked = self.model_dump(include={"train_per_class", "test_per_class", "seed", "objective"})
        return data.load(self.dataset, **asked, **self.dataset_options)

    @classmethod
    def task_of(cls, result: xr.Dataset) -> Task:
        """The data set that a result is about, made again from the params it holds.

        Raises
        ------
        ValueError
            They name none, or it has other points by now.
        """
        task = cls.of(json.loads(result.attrs["params"])).task()
        if task.fingerprint() != result.attrs["data_sha256"]:
            raise ValueError(f"{task.name} has other points than those the result is about")
        return task

    def posterior(self, task: Task) -> Posterior:
        """The posterior on a task; nothing is trained yet."""
        model, sampler = models.get(self.model, **self.model_options), samplers.get(self.sampler)
        asked = self.model_dump(include={"members", "checkpoints", "seed"})
        return sampler(model, task, self.recipe, **asked, **self.sampler_options)

    def experiment(self, posterior: Posterior | None = None) -> Experiment:
        """The experiment in its store; `posterior` is that of these params, by default made anew."""
        where = {"device", "workers", "scheduler"}
        return Experiment(
            posterior or self.posterior(self.task()),
            self.methods,
            removals=self.removals and {"seed": self.seed} | self.removals,
            options=self.method_options,
            path=self.path,
            params=self.model_dump(exclude={"name", "store", "plan_only"} | where),  # what the numbers depend on
            **self.model_dump(include=where),
        )


class _PlainYaml(yaml.SafeLoader):
    """YAML's safe loader, in which a key stands once, and 010 and 1:30 are no numbers (they would be 8 and 90)."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """A mapping, if each of its keys stands once."""
        merged = "tag:yaml.org,2002:merge"
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merged]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(problem=f"key {twice[0]!r} stands twice")
        return super().construct_mapping(node, deep)


_DIGITS = "(?:0|[1-9][0-9]*)"
for _kind, _pattern in {
    "int": rf"[-+]?{_DIGITS}$",
    "float": rf"[-+]?(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|[-+]?\.inf$|\.nan$",
}.items():
    _PlainYaml.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), list("-+.0123456789"))


def _checked(name: str, function: Callable, given: dict) -> dict:
    """The options of a function that are no params of their own, checked."""
    types = {key: wanted for key, wanted in options_of(function).items() if key not in OF_THEIR_OWN}
    return check(name, types, given)

"""Params: the one list of names that the run notebook, the YAML files and Python share."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import xarray as xr
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from tdalib import attributors, data, experiment, models, plan, samplers, store
from tdalib.data import Task, resolve
from tdalib.samplers import Posterior
from tdalib.training import Recipe


def _no_bool(value):
    if isinstance(value, bool):
        raise ValueError(f"{value} is not possible; it must be a number")
    return value


def _must(pattern: str, rule: str) -> AfterValidator:
    def check(value):
        if not re.search(pattern, value):
            raise ValueError(f"{value!r} is not possible; it must {rule}")
        return value

    return AfterValidator(check)


Count = Annotated[int, Field(strict=True, ge=1)]
Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]  # YAML 1.1 reads 1e-3 as a string


class Params(BaseModel):
    """An experiment. `of` and `read` turn unknown keys, wrong types and impossible values into a one-line ValueError.

    The fields and defaults are those of the parameters cell of `notebooks/10_run_experiment.ipynb`, explained there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, _must(r"^[^/\\]+$", "be a file name without slashes")] = "experiment"
    dataset: str = "mnist3"
    dataset_options: dict[str, Any] = {}
    train_per_class: Count = 10
    test_per_class: Count = 50
    model: str = "cnn2"
    model_options: dict[str, Any] = {}
    sampler: str = "deep_ensemble"
    sampler_options: dict[str, Any] = {}
    members: Count = 10
    checkpoints: Count = 5
    epochs: Count = 15
    batch_size: Count = 32
    learning_rate: Annotated[Number, Field(gt=0)] = 1e-3
    weight_decay: Annotated[Number, Field(ge=0)] = 5e-3
    schedule: Literal["constant", "linear"] = "constant"
    methods: Annotated[list[str], Field(min_length=1)] = ["loo", "ats", "if", "gd", "gc"]
    method_options: dict[str, dict[str, Any]] = {}
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: Count | None = None
    scheduler: (
        Annotated[str, _must(r"^local$|:\d+$", "be local or the address of a dask scheduler, host:port")] | None
    ) = None
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
            raise ValueError("; ".join(_sentence(e) for e in error.errors())) from None

    @classmethod
    def read(cls, path) -> "Params":
        """Params from a YAML file, which holds only what differs from the defaults; `name` is the file's by default."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"the params file cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict) or not values:
            raise ValueError("the params file is empty or no list of 'key: value' lines; it needs one at least")
        return cls.of({"name": Path(path).stem} | values)

    @classmethod
    def of_notebook(cls, variables: dict) -> "Params":
        """Params from the variables of the parameters cell."""
        return cls.of({key: variables[key] for key in cls.model_fields})

    @field_validator("dataset")
    @classmethod
    def _dataset_is_known(cls, name):
        data.loader(name)
        return name

    @field_validator("model")
    @classmethod
    def _model_is_known(cls, name):
        models.get(name)
        return name

    @field_validator("sampler")
    @classmethod
    def _sampler_is_known(cls, name):
        samplers.get(name)
        return name

    @field_validator("methods")
    @classmethod
    def _methods_are_known(cls, names):
        for name in names:
            attributors.get(name)
        if len(set(names)) < len(names):
            raise ValueError("a method is named twice; each may stand once")
        return names

    @field_validator("dataset_options", "model_options", "sampler_options", "method_options")
    @classmethod
    def _options_are_known(cls, options, info):
        known = info.data
        owner = info.field_name.removesuffix("_options")
        find = {"dataset": data.loader, "model": models.get, "sampler": samplers.get}.get(owner)
        if find and owner in known:
            return _check_options(known[owner], find(known[owner]), options)
        if info.field_name == "method_options" and "methods" in known:
            for name in options:
                if name not in known["methods"]:
                    raise ValueError(f"{name!r} is not among the methods {', '.join(known['methods'])}")
            return {name: _check_options(name, attributors.get(name).function, options[name]) for name in options}
        return options

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.epochs, self.batch_size, self.learning_rate, self.weight_decay, self.schedule)

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
        return data.load(
            self.dataset,
            train_per_class=self.train_per_class,
            test_per_class=self.test_per_class,
            seed=self.seed,
            **self.dataset_options,
        )

    def posterior(self, task: Task) -> Posterior:
        return samplers.get(self.sampler)(
            models.get(self.model, **self.model_options),
            task,
            self.recipe,
            members=self.members,
            checkpoints=self.checkpoints,
            seed=self.seed,
            **self.sampler_options,
        )

    def attribute(self, posterior: Posterior) -> xr.Dataset:
        """The result of the experiment, in its store; what the store already holds is not computed again."""
        return experiment.attribute(posterior, self.methods, **self._work())

    def plan(self, posterior: Posterior) -> pd.DataFrame:
        """What `attribute` will still cost, by method; see `plan.plan`."""
        return plan.plan(posterior, self.methods, **self._work())

    def check(self) -> None:
        """Do everything that can fail on wrong params, and write nothing.

        Raises
        ------
        ValueError
            One line that names what is wrong and what is allowed.
        """
        work = self._work()
        *_, empty = experiment.prepared(
            self.posterior(self.task()), self.methods, work["options"], work["params"], self.device, self.scheduler
        )
        store.check(self.path, empty)

    def _work(self) -> dict:
        return {
            "options": self.method_options,
            "path": self.path,
            "params": self.model_dump(
                exclude={"name", "device", "workers", "scheduler", "store", "plan_only"}
            ),  # what the numbers depend on; the device that "auto" stands for comes later
            "device": self.device,
            "workers": self.workers,
            "scheduler": self.scheduler,
        }


def _check_options(name: str, function: Callable, options: dict) -> dict:
    """The options, as the function's annotations want them.

    Options are a function's parameters with a default, less those that are params of their own.
    """
    own = {"recipe", "members", "checkpoints", "seed"}
    known = {
        key: parameter.annotation
        for key, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty and key not in own
    }
    checked = {}
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"{name} has no option {key!r}; it has {', '.join(known) or 'none'}")
        try:
            wanted = Any if known[key] is inspect.Parameter.empty else known[key]
            checked[key] = TypeAdapter(wanted).validate_python(value)
        except ValidationError as error:
            raise ValueError(f"{name}.{_sentence(error.errors()[0] | {'loc': (key,)})}") from None
        if isinstance(value, bool) and not isinstance(checked[key], bool):
            raise ValueError(f"{name}.{key}: {value} is not possible; it must be a number")
    return checked


def _sentence(error: dict) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}; allowed are {', '.join(Params.model_fields)}"
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}"
    return f"{key}: {error['input']!r} is not possible; {error['msg'][0].lower()}{error['msg'][1:]}"

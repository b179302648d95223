"""Options: declared once, as a keyword with a type, checked in one place, refused in one sentence; and who has them."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from textwrap import shorten
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict


def _number(value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        raise ValueError(f"{value} is not possible; it must be a number")
    return value.item() if isinstance(value, np.generic) else value


Whole = Annotated[int, BeforeValidator(_number), Field(strict=True)]
Count = Annotated[Whole, Field(ge=1, le=1_000_000)]
Workers = Annotated[Whole, Field(ge=1, le=1_024)]
Members = Annotated[Whole, Field(ge=1, le=10_000)]
Natural = Annotated[Whole, Field(ge=0)]  # 0 is possible: seeds, epochs that are let go
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]  # YAML 1.1 reads 1e-3 as a string
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[NonNegative, Field(lt=1)]

OPTIONS = ConfigDict(arbitrary_types_allowed=True, extra="forbid")
OF_TYPES = ("str", "int", "float", "list", "tuple", "dict")  # pydantic names the type in a union so
ARGUMENTS = ("recipe", "removed")  # what the library itself hands to a function; all else with a default is an option


def sentence(error: Mapping[str, Any], keys: Iterable[str], owner: str = "") -> str:
    """One of pydantic's errors in a line that names the key, of the owner's `keys`, and what is allowed."""
    path = [str(part) for part in error["loc"] if str(part) not in OF_TYPES and "[" not in str(part)]
    key = ".".join([owner, *path] if owner else path)
    if error["type"] == "extra_forbidden" and owner:
        return f"{owner} has no option {error['loc'][0]!r}; it has {', '.join(keys) or 'none'}"
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}; allowed are {', '.join(keys)}"
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}"
    given = shorten(repr(error["input"]), 100)
    return f"{key}: {given} is not possible; {error['msg'][0].lower()}{error['msg'][1:]}"


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or repr(error)


@contextmanager
def said_as(beginning: str, most: int | None = None) -> Iterator[None]:
    """Where a library raises what it comes across: it is one sentence that begins so; `most` letters of its own.

    Raises
    ------
    ValueError
        Something went wrong.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{beginning}: {one_line(error)[:most]}") from None


def options_of(function: Callable) -> dict[str, Any]:
    """The options of a function by name, with their types."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    optional = [p for p in parameters if p.kind is p.KEYWORD_ONLY or p.default is not p.empty]
    return {p.name: Any if p.annotation is p.empty else p.annotation for p in optional if p.name not in ARGUMENTS}


def check(owner: str, types: dict[str, Any], given: dict) -> dict:
    """The given options as their types want them.

    Raises
    ------
    ValueError
        One line that names the owner, the option and what is allowed.
    """
    wanted = with_config(OPTIONS)(TypedDict("Options", types, total=False))  # type: ignore[operator]
    try:
        found = TypeAdapter(wanted).validate_python(given)
    except ValidationError as error:
        raise ValueError(sentence(error.errors()[0], types, owner)) from None
    for key, value in given.items():
        if isinstance(value, bool) and not isinstance(found[key], bool):
            raise ValueError(f"{owner}.{key}: {value} is not possible; it must be a number")
    return found


def checked(function: Callable, owner: str) -> Callable:
    """A function whose options are checked whenever it is called; `owner` is what the sentence calls it."""
    types, parameters = options_of(function), inspect.signature(function).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    @wraps(function)
    def called(*arguments: Any, **given: Any) -> Any:
        beside = {key: given.pop(key) for key in [*given] if key not in types and (free or key in parameters)}
        return function(*arguments, **beside, **check(owner, types, given))

    return called


def check_fields(instance: Any) -> None:
    """Check the annotated fields of a frozen dataclass, and set them as their types want them."""
    for key, value in check("", type(instance).__annotations__, vars(instance)).items():
        object.__setattr__(instance, key, value)


class Registry(dict[str, Any]):
    """Name → what is registered. `make` turns a function and the facts given with it into that."""

    def __init__(self, kind: str, make: Callable = lambda name, function: function):
        self.kind, self.make = kind, make
        self.ours: set[str] = set()

    def register(self, name: str, **facts: Any) -> Callable[[Callable], Callable]:
        """Decorator: make a function known as `name`; its options are checked from then on.

        Raises
        ------
        ValueError
            It is no function, or the name is one of tdalib's own.
        """

        def decorate(function: Callable) -> Callable:
            if not isinstance(name, str) or not callable(function):
                raise ValueError(f"{self.kind} {name!r}: {function!r} is no function; register a function by a name")
            is_ours = str(getattr(function, "__module__", "")).startswith("tdalib.")
            if name in self.ours and not is_ours:
                raise ValueError(f"{self.kind} {name!r} is tdalib's own; register yours by another name")
            self.ours |= {name} if is_ours else set()
            function = checked(function, name)
            self[name] = self.make(name, function, **facts)
            return function

        return decorate

    def find(self, name: str) -> Any:
        """What is registered as `name`.

        Raises
        ------
        ValueError
            Nothing is; the sentence lists what there is.
        """
        if not isinstance(name, str) or name not in self:
            raise ValueError(f"{self.kind} {name!r} is not known; choose from {', '.join(sorted(self))}")
        return self[name]

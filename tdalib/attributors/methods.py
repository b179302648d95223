"""The methods by name, with the unit of their τ."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """An attributor: its function, the unit of its τ, and whether it retrains (the ground truth) or estimates."""

    function: Callable
    unit: str
    retrains: bool = False


METHODS: dict[str, Method] = {}


def register(name: str, *, unit: str, retrains: bool = False):
    """Decorator: make an attributor known as `name`."""

    def decorate(function):
        METHODS[name] = Method(function, unit, retrains)
        return function

    return decorate


def get(name: str) -> Method:
    """The method called `name`."""
    if name not in METHODS:
        raise ValueError(f"method {name!r} is not known; choose from {', '.join(sorted(METHODS))}")
    return METHODS[name]

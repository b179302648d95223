"""What is known by name: models, samplers, methods, objectives and data sets, each kind in a registry of its own."""

from collections.abc import Callable
from typing import Any

from tdalib import options


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
            function = options.checked(function, name)
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

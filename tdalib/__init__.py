"""tdalib: training data attribution as a random variable.

Flow: `data` → `samplers` → `attribute` → `store` → `stats` → `plots`. Modules load when first used, so that
`import tdalib` is quick and figures cost nothing until one is drawn.
"""

from importlib import import_module

__version__ = "0.1.0"

_MODULES = (
    "data",
    "objectives",
    "models",
    "training",
    "samplers",
    "attributors",
    "removals",
    "result",
    "units",
    "experiment",
    "store",
    "workers",
    "stats",
    "plots",
    "params",
)
_NAMES = {
    "attribute": "experiment",
    "Experiment": "experiment",
    "deep_ensemble": "samplers",
    "from_checkpoints": "samplers",
    "Recipe": "training",
    "Params": "params",
}

__all__ = [*_MODULES, *_NAMES]


def __getattr__(name):
    if name in _MODULES:
        return import_module(f"tdalib.{name}")
    if name in _NAMES:
        return getattr(import_module(f"tdalib.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'tdalib' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__():
    return sorted(__all__)

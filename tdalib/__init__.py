"""tdalib: training data attribution as a random variable.

Flow: `data` → `samplers` → `attribute` → `store` → `stats` → `plots`. Modules load when first used, so that
`import tdalib` is quick and figures cost nothing until one is drawn.
"""

from pkgutil import iter_modules

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[module.name for module in iter_modules(__path__)],
    submod_attrs={
        "examples": ["example"],
        "experiment": ["Experiment", "attribute"],
        "params": ["Params"],
        "scores": ["from_scores"],
        "samplers": ["deep_ensemble", "from_checkpoints"],
        "training": ["Recipe"],
        "verdicts": ["verdict"],
    },
)

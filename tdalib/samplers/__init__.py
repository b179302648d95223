"""Samplers: ways to draw θ ~ p(θ|D), and to draw again with one point left out.

A sampler is one file with two functions: one that describes the posterior and names every random number of it
(→ `Posterior`), and one that runs a member, `(posterior, member, without, **options) → iterator of list[Draw]`, one
list for each entry of `without`: a train point that weighs nothing, or None. One that cannot leave a point out raises
ValueError for it. `Posterior.kind` says what the draws of a member are. A sampler that starts at trained modes takes
them from `modes`, and its own random numbers from a stream seeded by the member's `batch_seed`, anew for each entry.
"""

from tdalib.samplers.crossed import crossed
from tdalib.samplers.deep_ensemble import deep_ensemble, modes
from tdalib.samplers.laplace import laplace
from tdalib.samplers.mc_dropout import mc_dropout
from tdalib.samplers.posterior import SAMPLERS, Draw, Member, Posterior, derive_seed, get, register
from tdalib.samplers.sghmc import sghmc
from tdalib.samplers.sgld import sgld
from tdalib.samplers.swag import swag

__all__ = [
    "SAMPLERS",
    "Draw",
    "Member",
    "Posterior",
    "crossed",
    "deep_ensemble",
    "derive_seed",
    "get",
    "laplace",
    "mc_dropout",
    "modes",
    "register",
    "sghmc",
    "sgld",
    "swag",
]

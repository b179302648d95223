"""Samplers: ways to draw θ ~ p(θ|D), and to draw again with one point left out.

A sampler is one file with two functions: one that describes the posterior and names every random number of it
(→ `Posterior`), and one that runs a member, `(posterior, member, without) → iterator of list[Draw]`, one
list for each entry of `without`: a train point that weighs nothing, or None.
"""

from tdalib.samplers.deep_ensemble import deep_ensemble
from tdalib.samplers.posterior import SAMPLERS, Draw, Member, Posterior, derive_seed, get, register

__all__ = ["SAMPLERS", "Draw", "Member", "Posterior", "deep_ensemble", "derive_seed", "get", "register"]

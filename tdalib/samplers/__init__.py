"""Samplers: ways to draw θ ~ p(θ|D), and to draw again under other weights of the train points.

A sampler is one file with two functions: one that describes the posterior and names every random number of it
(→ `Posterior`), and one that runs a member, `(posterior, member, weights, **options) → iterator of list[Draw]`, one
list for each row of `weights` (removal, point). One that cannot weigh points raises ValueError for what is not all 1.
`Posterior.kind` says what the draws of a member are. A sampler that starts at trained modes takes them from
`Posterior.modes`, and its own random numbers from a stream seeded by the member's `batch_seed`, anew for each row.
"""

from tdalib.samplers.chains import sghmc, sgld
from tdalib.samplers.draw import Draw
from tdalib.samplers.dropout_masks import mc_dropout
from tdalib.samplers.ensemble import crossed, deep_ensemble
from tdalib.samplers.finished import from_checkpoints
from tdalib.samplers.gaussians import laplace, swag
from tdalib.samplers.posterior import SAMPLERS, Member, Posterior, Run, Step, derive_seed, get, register

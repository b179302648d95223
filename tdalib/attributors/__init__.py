"""Attributors: τ(z_j, z), positive where z_j helps. One method a file.

An estimate is a function (draw, task, **options) → (train, test). The ground truth retrains whole members, so it is
a function (posterior, member, points, **options) → test losses without each point, (checkpoint, points, test); a
point may be None, for nothing left out.
"""

from tdalib.attributors.ats import one_more_step
from tdalib.attributors.grad_cos import grad_cos
from tdalib.attributors.grad_dot import grad_dot
from tdalib.attributors.influence import influence
from tdalib.attributors.loo import leave_one_out
from tdalib.attributors.methods import METHODS, Method, get, register

__all__ = [
    "METHODS",
    "Method",
    "get",
    "grad_cos",
    "grad_dot",
    "influence",
    "leave_one_out",
    "one_more_step",
    "register",
]

"""Attributors: τ(z_j, z), positive where z_j helps. One method a file.

A method has a scope, what it sees: a draw, the run of a member, all members of the posterior, or it retrains (see
`Method`). The engine asks it about removals of the train points, by default every point.
"""

from tdalib.attributors.ats import one_more_step
from tdalib.attributors.gc import grad_cos
from tdalib.attributors.gd import grad_dot
from tdalib.attributors.influence_function import influence
from tdalib.attributors.loo import leave_one_out
from tdalib.attributors.methods import METHODS, Method, get, register

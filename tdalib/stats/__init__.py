"""What a distribution of τ says: pure functions on labelled arrays, which return labelled tables."""

from tdalib.stats.agreement import agreement, distances, noise_ceiling
from tdalib.stats.components import variance_components
from tdalib.stats.convergence import convergence, convergence_warning
from tdalib.stats.draws import by_member, uncoupled
from tdalib.stats.pairs import extremes, per_pair, summary, trustworthy
from tdalib.stats.power import members_needed, power, smallest_snr, t_power
from tdalib.stats.proponents import proponents, top_k_stability

__all__ = [
    # draws
    "by_member",
    "uncoupled",
    # pairs
    "per_pair",
    "summary",
    "trustworthy",
    "extremes",
    # how many members
    "power",
    "t_power",
    "smallest_snr",
    "members_needed",
    # do methods, and members, agree
    "agreement",
    "noise_ceiling",
    "distances",
    "proponents",
    "top_k_stability",
    # sources of variance, and chains
    "variance_components",
    "convergence",
    "convergence_warning",
]

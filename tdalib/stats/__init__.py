"""What a distribution of τ says: pure functions on labelled arrays, which return labelled tables."""

from tdalib.stats.agreement import agreement, distances, noise_ceiling
from tdalib.stats.components import variance_components
from tdalib.stats.convergence import convergence, convergence_warning
from tdalib.stats.pairs import by_member, extremes, per_pair, summary, trustworthy, uncoupled
from tdalib.stats.power import members_needed, power, smallest_snr, t_power
from tdalib.stats.proponents import proponents, top_k_stability

__all__ = [
    "by_member",
    "uncoupled",
    "per_pair",
    "summary",
    "trustworthy",
    "extremes",
    "power",
    "t_power",
    "smallest_snr",
    "members_needed",
    "variance_components",
    "convergence",
    "convergence_warning",
    "proponents",
    "top_k_stability",
    "agreement",
    "noise_ceiling",
    "distances",
]

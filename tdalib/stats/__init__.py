"""What a distribution of τ says: pure functions on labelled arrays, which return labelled tables."""

from tdalib.stats.between_methods import agreement, distances, noise_ceiling
from tdalib.stats.chains import convergence, convergence_warning
from tdalib.stats.components import variance_components
from tdalib.stats.draws import by_member, counted, uncoupled
from tdalib.stats.pairs import extremes, per_pair, summary, trustworthy
from tdalib.stats.sample_size import members_needed, power, smallest_snr, t_power
from tdalib.stats.top_lists import proponents, top_k_stability

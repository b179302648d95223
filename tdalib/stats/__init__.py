"""What a distribution of τ says: pure functions on labelled arrays, which return labelled tables."""

from tdalib.stats.between_methods import agreement, distances, noise_ceiling
from tdalib.stats.components import variance_components
from tdalib.stats.distributional import distributional_influence
from tdalib.stats.draws import by_member, convergence, convergence_warning, counted, scaled, uncoupled, with_methods
from tdalib.stats.pairs import extremes, moderated_snr, per_pair
from tdalib.stats.sample_size import members_needed, power, smallest_snr, t_power
from tdalib.stats.shares import half_width, jackknife, noise_by_size, summary
from tdalib.stats.top_lists import proponents, top_k_stability, top_k_survival
from tdalib.stats.trust import trustworthy

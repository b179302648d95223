"""Models: functions from (task, seed) to an nn.Module, found by name."""

from tdalib.models.cnn import cnn2, cnn3
from tdalib.models.dense import logreg, mlp
from tdalib.models.network_functions import MODELS, get, parameter_count, register, with_group_norm
from tdalib.models.pretrained import vit_lora
from tdalib.models.text import bow, gpt2, text_lora

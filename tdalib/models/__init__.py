"""Models: functions from (task, seed) to an nn.Module, found by name."""

from tdalib.models.cnn import cnn2, cnn3
from tdalib.models.mlp import logreg, mlp
from tdalib.models.registry import MODELS, get, parameter_count, register
from tdalib.models.vit_lora import vit_lora

__all__ = ["MODELS", "cnn2", "cnn3", "get", "logreg", "mlp", "parameter_count", "register", "vit_lora"]

"""Training: the recipe, and two trainers with one interface, one network after another or a stack at once."""

from tdalib.training.one_by_one import Training, follow, train
from tdalib.training.recipe import Recipe, batch_order
from tdalib.training.stacked import train_stack

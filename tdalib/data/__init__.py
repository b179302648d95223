"""Data: a task of train and test points, from wherever it comes."""

from tdalib.data.points import Inputs, Points, chosen, of_each
from tdalib.data.sources import (
    DATASETS,
    ROOT,
    SHIPPED,
    TORCHVISION,
    from_file,
    from_folder,
    from_paper,
    from_torchvision,
    load,
    loader,
    register,
    resolve,
)
from tdalib.data.task import Task, from_arrays

"""Data: a task of train and test points, from wherever it comes."""

from tdalib.data.sources import (
    ROOT,
    SHIPPED,
    TORCHVISION,
    from_file,
    from_folder,
    from_torchvision,
    load,
    loader,
    resolve,
)
from tdalib.data.task import Task, from_arrays

__all__ = [
    "ROOT",
    "SHIPPED",
    "TORCHVISION",
    "Task",
    "from_arrays",
    "from_file",
    "from_folder",
    "from_torchvision",
    "load",
    "loader",
    "resolve",
]

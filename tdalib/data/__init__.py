"""Data: a task of train and test points, from wherever it comes."""

from tdalib.data.folders import from_folder
from tdalib.data.places import NOTEBOOKS, PACKAGE, ROOT, fetched, had, resolve
from tdalib.data.points import Inputs, Points, chosen, of_each
from tdalib.data.sources import SHIPPED, from_torchvision, load, loader, register
from tdalib.data.task import Task, from_arrays, under
from tdalib.data.texts import from_texts

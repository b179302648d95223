"""Data: a task of train and test points, from wherever it comes."""

from tdalib.data.points import Inputs, Points, chosen, of_each
from tdalib.data.sources import ROOT, SHIPPED, fetched, from_folder, from_torchvision, load, loader, register, resolve
from tdalib.data.task import Task, from_arrays, under
from tdalib.data.texts import from_texts

"""Data sets: known ones by name, any others from arrays, and what training does to them."""

from .dataset import SCALINGS, Dataset, Scaling, batches, shift, stratified
from .fetch import fetch, folder
from .loading import NAMES, digits, load

__all__ = [
    "NAMES",
    "SCALINGS",
    "Dataset",
    "Scaling",
    "batches",
    "digits",
    "fetch",
    "folder",
    "load",
    "shift",
    "stratified",
]

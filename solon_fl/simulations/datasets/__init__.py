"""Data sets for the simulations: images and texts, embedded in the package or read from the user's files."""

from solon_fl.simulations.datasets.dataset import Dataset
from solon_fl.simulations.datasets.loading import DATASETS, load_dataset

__all__ = ["DATASETS", "Dataset", "load_dataset"]

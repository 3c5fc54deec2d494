"""Images and texts, embedded in the package or read from the user's files, and the networks that learn them."""

from solon_fl.simulations.datasets.dataset import Dataset
from solon_fl.simulations.datasets.loading import DATASETS, load_dataset
from solon_fl.simulations.datasets.models import MODELS, build_model

__all__ = ["DATASETS", "MODELS", "Dataset", "build_model", "load_dataset"]

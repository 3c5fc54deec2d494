"""Data sets of images and texts (built in, from files, or user-defined), and the networks that learn them."""

from solon_fl.simulations.datasets.dataset import Dataset
from solon_fl.simulations.datasets.loading import DATASETS, check_dataset_name, load_dataset
from solon_fl.simulations.datasets.models import MODELS, build_model, check_model_name

__all__ = ["DATASETS", "MODELS", "Dataset", "build_model", "check_dataset_name", "check_model_name", "load_dataset"]

"""Settings for all tests."""

import torch
from hypothesis import settings

torch.set_num_threads(1)  # tests run in several processes, and threads that wait for each other cost more

settings.register_profile("solon", deadline=None, max_examples=60, print_blob=True)
settings.load_profile("solon")

"""One thread: the models are small, and threads that spin for each other on busy cores cost more than they bring."""

import torch

torch.set_num_threads(1)

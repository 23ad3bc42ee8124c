"""Which torch the tests run with, for what differs between the supported ones."""

import torch

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))

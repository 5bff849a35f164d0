"""Settings for all tests: one thread, no network home of anything, a private cache, and nothing inherited."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("DLOPT_RESULTS", "DLOPT_CHECKPOINT_SECONDS"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)

"""Settings for all tests: one thread, no network home of anything, a private cache, and nothing inherited."""

import contextlib
import os
import warnings

import pytest

# torch.compile imports it, and it complains where another package imported distutils before
with contextlib.suppress(ImportError), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import setuptools  # noqa: F401

os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("DLOPT_RESULTS", "DLOPT_CHECKPOINT_SECONDS"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smollm2():
    """(model, tokenizer) of the pretrained model that tests marked `llm` share; fetched once into the user's cache.

    Its weights are everybody's: a test that trains takes a copy.
    """
    from dlopt.tasks.models import pretrained

    pretrained.get("smollm2-135m-instruct-q4_1")
    return pretrained.load("smollm2-135m-instruct-q4_1")

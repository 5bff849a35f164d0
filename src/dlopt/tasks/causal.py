"""Fine-tuning of a pretrained causal language model on instructions: the loss is on the tokens of the answer alone.

A text is the prompt, as the model's own chat template writes it up to where the assistant speaks, then the answer, then
the token that ends it. Losses are means over all answer tokens, in nats; perplexity is their exponential. The set is
split once, the same way for every seed: a tenth validates, a tenth tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlopt.tasks import data
from dlopt.tasks.data.batches import generator
from dlopt.tasks.data.files import locate
from dlopt.tasks.data.instructions import Instruction
from dlopt.tasks.models import pretrained
from dlopt.tasks.modes import evaluating
from dlopt.tasks.packing import PackedBatches, check_model, chunks, pack, packed_logits

PLAIN = "Instruction: {asked}\n\nAnswer:"


@dataclass(frozen=True)
class InstructionTuning:
    """data: instructions in `tasks.data`. target: validation loss whose first crossing is reported. template: "chat",
    the model's own, or "plain", for models without one. max_tokens: of prompt and answer; longer answers lose their
    end, and examples whose prompt alone is as long are left out; both are counted. model: name, folder, OWNER/NAME."""

    name: str
    data: str
    target: float
    template: str = "chat"
    max_tokens: int = 256
    model: str = "smollm2-135m-instruct-q4_1"

    def __post_init__(self) -> None:
        if self.template not in ("chat", "plain"):
            raise ValueError(f"template takes chat or plain, not {self.template!r}")
        if self.max_tokens < 2:
            raise ValueError(f"max_tokens must be at least 2, got {self.max_tokens}")

    def identity(self) -> dict[str, str]:
        """sha256 of the data and of the model's files."""
        return data.identity(self.data) | pretrained.identity(self.model)

    def ready(self) -> None:
        """Raise `DataUnavailable` if data or model is not on this machine."""
        spec = data.find(self.data)
        locate(spec.name, spec.files, spec.help)
        pretrained.locate(self.model)

    def build(
        self,
        seed: int,
        batch_size: int,
        device: str = "cpu",
        model: tuple[nn.Module, Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tuning:
        """Model and batches of one seed: the seed draws the order of the examples. model: one that is loaded already,
        with its tokenizer, in place of `self.model`; then dtype is its own."""
        network, tokenizer = model or pretrained.load(self.model, dtype)
        return Tuning(self, network.to(device), tokenizer, seed, batch_size, device)


class Tuning:
    """One built task. model, tokenizer. batches: endless (tokens, lengths, answer lengths), packed. sizes: (train,
    validation, test) examples. truncated, left_out: examples whose answer lost its end, or that have no place."""

    def __init__(
        self, task: InstructionTuning, model: nn.Module, tokenizer: Any, seed: int, batch_size: int, device: str
    ):
        check_model(model)
        if task.template == "chat" and not tokenizer.chat_template:
            raise ValueError(f"{task.name} asks for the model's chat template, and it has none; use template='plain'")
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer for {task.name} has no token that ends an answer")
        self.task, self.model, self.tokenizer, self.device = task, model, tokenizer, device
        self.truncated = self.left_out = 0
        rows = data.get(task.data)
        order = torch.randperm(len(rows), generator=generator(0, "split", 0)).tolist()
        held = len(rows) // 10
        parts = [order[2 * held :], order[:held], order[held : 2 * held]]
        examples = [[found for row in part if (found := self._encode(rows[row])) is not None] for part in parts]
        train, self._validation, self._test = examples
        texts, answers = _columns(train)
        self.batches = PackedBatches(texts, torch.tensor(answers), batch_size, seed)
        self.sizes = tuple(len(part) for part in examples)

    def prompt(self, row: Instruction) -> str:
        """What the model reads before it answers."""
        asked = row.instruction + ("\n\n" + row.input if row.input else "")
        if self.task.template == "plain":
            return PLAIN.format(asked=asked)
        said = [{"role": "user", "content": asked}]
        return self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Logits (answer tokens of the batch, vocabulary), float32: each from the token before."""
        tokens, lengths, answers = batch
        return packed_logits(model, tokens, lengths, _places(lengths, answers) - 1, self.device)

    def criterion(self, logits: Tensor, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy over the answer tokens of a batch, in nats."""
        return F.cross_entropy(logits, self._targets(batch).to(logits.device))

    def consumed(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, int]:
        """What a batch counts for: tokens are those read, prompts included."""
        return {"examples": len(batch[1]), "tokens": len(batch[0])}

    def evaluate(self) -> dict[str, float]:
        """Validation loss in nats per answer token."""
        return {"val_loss": self._measure(self._validation)[0]}

    def test(self) -> dict[str, Any]:
        """Test loss in nats per answer token, perplexity, and how many tokens these are means of."""
        loss, count = self._measure(self._test)
        return {"test_loss": loss, "test_perplexity": math.exp(min(loss, 700.0)), "test_tokens": count}

    @staticmethod
    def _targets(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        tokens, lengths, answers = batch
        return tokens[_places(lengths, answers)]

    @torch.no_grad()
    def _measure(self, examples: Sequence[tuple[Tensor, int]]) -> tuple[float, int]:
        ordered = sorted(examples, key=lambda example: len(example[0]))
        total, count = 0.0, 0
        with evaluating(self.model):
            for group in chunks([text for text, _ in ordered]):
                texts, answers = _columns([ordered[row] for row in group])
                batch = (*pack(texts), torch.tensor(answers))
                logits = self.forward(self.model, batch)
                total += float(F.cross_entropy(logits, self._targets(batch).to(logits.device), reduction="sum"))
                count += len(logits)
        return total / count, count

    def _encode(self, row: Instruction) -> tuple[Tensor, int] | None:
        """(tokens, how many of them are the answer's), or None where the prompt leaves no room."""
        space = " " if self.task.template == "plain" else ""
        # the template has put what begins a text; prompt and answer apart, as they are when the model answers
        chat = self.task.template == "chat"
        before = self.tokenizer(self.prompt(row), add_special_tokens=not chat, verbose=False)["input_ids"]
        after = self.tokenizer(space + row.output, add_special_tokens=False, verbose=False)["input_ids"]
        after.append(self.tokenizer.eos_token_id)
        room = self.task.max_tokens - len(before)
        if room < 1:
            self.left_out += 1
            return None
        self.truncated += len(after) > room
        return torch.tensor(before + after[:room]), min(len(after), room)


def _columns(examples: Sequence[tuple[Tensor, int]]) -> tuple[list[Tensor], list[int]]:
    return [text for text, _ in examples], [answer for _, answer in examples]


def _places(lengths: Tensor, answers: Tensor) -> Tensor:
    """Where the answers' tokens lie in a packed row."""
    ends = torch.cumsum(lengths, 0)
    offset = torch.arange(int(answers.sum())) - torch.repeat_interleave(torch.cumsum(answers, 0) - answers, answers)
    return torch.repeat_interleave(ends - answers, answers) + offset


TASKS = {
    task.name: task
    for task in (
        InstructionTuning("alpaca-en", "alpaca-en", target=1.6),
        InstructionTuning("alpaca-zh", "alpaca-zh", target=1.7),
        InstructionTuning("code-alpaca", "code-alpaca", target=0.75),
    )
}

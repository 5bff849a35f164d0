"""The baseline from before Transformers: an LSTM encoder-decoder with attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlopt.catalog import method


@method(
    "lstm",
    topic="transformer",
    kind="module",
    cite="bahdanau2015attention",
    summary="LSTM encoder-decoder with dot-product attention: what Transformers replaced",
)
class AttentiveLSTM(nn.Module):
    """Source (b, s) and target (b, t), int64, to logits (b, t, vocabulary), as `Seq2Seq` gives them.

    A bidirectional LSTM reads the source; the decoder starts from its last states and, at each step, attends to it:
    a = softmax(s H^T / sqrt(hidden)), out = tanh([s, a H] W) (Bahdanau et al. 2015, arXiv:1409.0473, with the dot
    product instead of their small network). One table embeds source and target and gives the logits.

    vocabulary: tokens. width: of the embeddings. hidden: of the states, even. layers: of encoder and decoder alike.
    dropout: on embeddings and before the output. pad: token that is ignored in sources, which are padded on the right.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 256,
        hidden: int = 256,
        layers: int = 2,
        dropout: float = 0.0,
        pad: int = 0,
    ) -> None:
        super().__init__()
        if min(vocabulary, width, layers) < 1 or hidden < 2 or hidden % 2:
            raise ValueError(
                f"vocabulary, width and layers must be at least 1 and hidden even and at least 2, got {vocabulary}, "
                f"{width}, {layers} and {hidden}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        self.dropout, self.pad = dropout, pad
        self.tokens = nn.Embedding(vocabulary, width)
        self.encoder = nn.LSTM(width, hidden // 2, layers, batch_first=True, bidirectional=True)
        self.decoder = nn.LSTM(width, hidden, layers, batch_first=True)
        self.join = nn.Linear(2 * hidden, width, bias=False)
        nn.init.normal_(self.tokens.weight, std=width**-0.5)

    def forward(self, source_bs: Tensor, target_bt: Tensor) -> Tensor:
        """Logits (b, t, vocabulary) of the target token after each."""
        real = source_bs != self.pad
        lengths = real.sum(1)
        if not lengths.all():
            raise ValueError("a source row holds nothing but padding")
        packed = nn.utils.rnn.pack_padded_sequence(
            self._embed(source_bs), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, (h, c) = self.encoder(packed)
        memory, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=source_bs.shape[1])
        out, _ = self.decoder(self._embed(target_bt), (_joined(h), _joined(c)))
        scores = (out @ memory.mT / math.sqrt(out.shape[-1])).masked_fill(~real[:, None], -math.inf)
        both = torch.tanh(self.join(torch.cat((out, scores.softmax(-1) @ memory), dim=-1)))
        return F.linear(F.dropout(both, self.dropout, self.training) * math.sqrt(both.shape[-1]), self.tokens.weight)

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) * math.sqrt(self.tokens.embedding_dim)
        return F.dropout(x, self.dropout, self.training)


def _joined(states: Tensor) -> Tensor:
    """(2 layers, b, h/2), both directions of each layer, to (layers, b, h)."""
    return torch.cat((states[0::2], states[1::2]), dim=-1).contiguous()

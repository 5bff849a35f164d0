"""The whole model once more, one position at a time, from the formulas of the papers. Slow and meant to be read."""

import math

import torch

ACTIVATIONS = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "swish": lambda x: x / (1 + (-x).exp()),
    "glu": lambda x: 1 / (1 + (-x).exp()),
    "bilinear": lambda x: x,
}
ACTIVATIONS |= {"reglu": ACTIVATIONS["relu"], "geglu": ACTIVATIONS["gelu"], "swiglu": ACTIVATIONS["swish"]}


def sees(config, layer, head, i, j):
    """Whether position i sees position j, straight from section 4 of Child et al. and the issue's definitions."""
    if j > i:
        return False
    name, stride = config.attention, config.stride
    if name == "full":
        return True
    if name == "local":
        return j in range(i - config.window + 1, i + 1)
    first = head < config.heads // 2 if config.mixing == "heads" else layer % 2 == 0
    if name == "strided":
        if first:
            window = config.window or stride + 1  # the paper: {t, ..., i} with t = max(0, i - stride)
            return j in range(i - window + 1, i + 1)
        return (i - j) % stride == 0
    if first:
        return j // stride == i // stride
    if i < stride - config.summary:  # nothing to see: itself
        return i == j
    return j % stride in range(stride - config.summary, stride)


def alibi_slope(heads, head):
    if heads & (heads - 1) == 0:
        return 2 ** (-8 * (head + 1) / heads)
    below = 1 << (heads.bit_length() - 1)
    if head < below:
        return alibi_slope(below, head)
    return alibi_slope(2 * below, 2 * (head - below))


class Reference:
    """One sequence at a time, from a model's state dict."""

    def __init__(self, model):
        self.config = model.config
        self.w = {k: v.detach() for k, v in model.state_dict().items()}

    def decoder(self, tokens):
        x = self.embed("embed", tokens)
        return self.head(self.stack("decoder", x, causal=True))

    def seq2seq(self, source, target):
        memory = self.stack(
            "encoder", self.embed("embed" if self.config.tied else "source_embed", source), causal=False
        )
        return self.head(self.stack("decoder", self.embed("embed", target), causal=True, memory=memory))

    def head(self, x):
        return x @ self.w["embed.tokens.weight" if self.config.tied else "lm_head.weight"].T

    def embed(self, name, tokens):
        config, rows = self.config, []
        for p, token in enumerate(tokens):
            row = self.w[f"{name}.tokens.weight"][token]
            if config.positions == "learned":
                row = row + self.w[f"{name}.positions.weight"][p]
            row = row * math.sqrt(config.width)
            if config.positions == "sinusoid":
                wave = [
                    (math.sin if c % 2 == 0 else math.cos)(p / 10_000 ** ((c - c % 2) / config.width))
                    for c in range(config.width)
                ]
                row = row + torch.tensor(wave, dtype=row.dtype)
            rows.append(row)
        return torch.stack(rows)

    def linear(self, name, x):
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if self.config.bias else y

    def norm(self, name, x):
        config = self.config
        if config.norm == "layer":
            x = x - x.mean(-1, keepdim=True)
        y = x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * self.w[f"{name}.weight"]
        return y + self.w[f"{name}.bias"] if config.norm == "layer" and config.bias else y

    def residual(self, name, x, f):
        if self.config.norm_position == "post":
            return self.norm(f"{name}.norm", x + f(x))
        y = f(self.norm(f"{name}.norm", x))
        return x + (self.norm(f"{name}.after", y) if self.config.norm_position == "sandwich" else y)

    def stack(self, name, x, causal, memory=None):
        count = self.config.encoder_layers if name == "encoder" and self.config.encoder_layers else self.config.layers
        for i in range(count):
            layer = f"{name}.layers.{i}"
            x = self.residual(f"{layer}.self_attn_residual", x, self.attention(f"{layer}.self_attn", i, causal, None))
            if memory is not None:
                cross = self.attention(f"{layer}.cross_attn", i, False, memory)
                x = self.residual(f"{layer}.cross_attn_residual", x, cross)
            x = self.residual(f"{layer}.mlp_residual", x, self.feed_forward(f"{layer}.mlp"))
        return x if self.config.norm_position == "post" else self.norm(f"{name}.norm", x)

    def feed_forward(self, name):
        f = ACTIVATIONS[self.config.feedforward]

        def apply(x):
            up = self.linear(f"{name}.up_proj", x)
            gated = f"{name}.gate_proj.weight" in self.w
            return self.linear(f"{name}.down_proj", f(self.linear(f"{name}.gate_proj", x)) * up if gated else f(up))

        return apply

    def attention(self, name, layer, causal, memory):
        config, d = self.config, self.config.head_width
        positions = config.positions if memory is None else "none"

        def turn(row, p):
            out = row.clone()
            for c in range(d // 2):
                angle = p * config.rope_base ** (-2 * c / d)
                out[c] = row[c] * math.cos(angle) - row[c + d // 2] * math.sin(angle)
                out[c + d // 2] = row[c + d // 2] * math.cos(angle) + row[c] * math.sin(angle)
            return out

        def apply(x):
            y = x if memory is None else memory
            q, k, v = (
                self.linear(f"{name}.q_proj", x),
                self.linear(f"{name}.k_proj", y),
                self.linear(f"{name}.v_proj", y),
            )
            heads = []
            for h in range(config.heads):
                g = h // (config.heads // config.groups)
                rows = []
                for i in range(len(x)):
                    scores, values = [], []
                    for j in range(len(y)):
                        if causal and not sees(config, layer, h, i, j):
                            continue
                        qi, kj, vj = q[i, h * d : h * d + d], k[j, g * d : g * d + d], v[j, g * d : g * d + d]
                        if positions == "rope":
                            qi, kj = turn(qi, i), turn(kj, j)
                        if positions == "shaw":
                            r = min(max(j - i, -config.shaw_clip), config.shaw_clip) + config.shaw_clip
                            kj, vj = kj + self.w[f"{name}.shaw.keys"][r], vj + self.w[f"{name}.shaw.values"][r]
                        bias = -alibi_slope(config.heads, h) * abs(i - j) if positions == "alibi" else 0
                        scores.append(qi @ kj / math.sqrt(d) + bias)
                        values.append(vj)
                    share = torch.stack(scores).exp()
                    rows.append((share / share.sum()) @ torch.stack(values))
                heads.append(torch.stack(rows))
            return self.linear(f"{name}.o_proj", torch.cat(heads, dim=-1))

        return apply

"""Tiny models with random weights, and drafters made for tests."""

import functools

import numpy as np
import torch

from dlopt.speculative import Draft, generate

PROMPT = [1, 2, 3, 4, 1, 2]
PROMPTS = [PROMPT, [5, 6, 7], [3, 3, 3, 3, 9, 8, 7, 1, 3]]


@functools.cache
def model(family="llama", vocabulary=24, seed=0, attention="sdpa", layers=2):
    """A model in float64; one object for equal arguments, which no test may change."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
    )

    torch.manual_seed(seed)
    common = {"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
              "initializer_range": 0.4, "attn_implementation": attention}  # fmt: skip
    if family == "gpt2":
        made = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=layers, n_head=2, n_positions=64, **common))
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4,
                 "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
        if family == "mistral":
            made = MistralForCausalLM(MistralConfig(sliding_window=8, **sizes, **common))
        else:
            made = LlamaForCausalLM(LlamaConfig(**sizes, **common))
    return made.double().eval()


class Scripted:
    """A drafter that asks a function: script(text so far, limit) -> Draft."""

    def __init__(self, script, **attributes):
        self.script, self.attributes = script, attributes

    def begin(self, prompt, sampling):
        return ScriptedSession(self.script, list(prompt), self.attributes)


class ScriptedSession:
    def __init__(self, script, text, attributes):
        self.script, self.text = script, text
        vars(self).update(attributes)

    def propose(self, limit):
        return self.script(self.text, limit)

    def observe(self, tokens):
        self.text = self.text + tokens


def oracle(texts, length, shift=0, vocabulary=24):
    """Drafts what the texts say comes next, or that + shift: always right, or always wrong."""

    def script(text, limit):
        whole = next(t for t in texts if t[: len(text)] == text)
        return Draft([(t + shift) % vocabulary for t in whole[len(text) :][: min(length, limit)]])

    return Scripted(script)


def tree(texts, length, vocabulary=24):
    """A tree: at each depth a wrong token, the right one, and under the wrong one the right next one as a decoy."""

    def script(text, limit):
        right = next(t for t in texts if t[: len(text)] == text)[len(text) :][: min(length, limit)]
        tokens, parents, above = [], [], -1
        for depth, token in enumerate(right):
            tokens += [(token + 1) % vocabulary, token]
            parents += [above, above]
            wrong, above = len(tokens) - 2, len(tokens) - 1
            if depth + 1 < len(right):
                tokens.append(right[depth + 1])
                parents.append(wrong)
        return Draft(tokens, parents)

    return Scripted(script)


def random_tree(seed, length, vocabulary=24):
    """A tree of drawn tokens with the laws that they were drawn from: two siblings at each depth, under the first."""
    rng = np.random.default_rng(seed)

    def script(text, limit):
        tokens, parents, laws, above = [], [], [], -1
        for _ in range(min(length, limit)):
            law = rng.dirichlet(np.ones(vocabulary))
            tokens += rng.choice(vocabulary, size=2, p=law).tolist()
            parents += [above, above]
            laws += [law, law]
            above = len(tokens) - 2
        return Draft(tokens, parents, laws)

    return Scripted(script, stochastic=True)


def texts(target, prompts=PROMPTS, count=24, **options):
    """Prompts and what plain decoding makes of them."""
    options = {"max_new_tokens": count, "eos": None, **options}
    return [p + new for p, new in zip(prompts, generate(target, prompts, **options).tokens)]

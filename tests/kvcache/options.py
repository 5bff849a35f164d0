"""How the common matrix uses each cache: options that act on a dozen tokens, and options that change nothing."""

from contextlib import AbstractContextManager, nullcontext

# evict, quantize or both within 12 tokens of a head of size 8
OPTIONS = {
    "full": "full",
    "window": "window:window=6",
    "sinks": "sinks:sinks=2,window=5",
    "quant": "quant:code=int8",
    "kivi": "kivi:bits=2,group=4,residual=8",
    "h2o": "h2o:budget=6,recent=3",
    "snapkv": "snapkv:budget=6,window=3,kernel=3",
    "pyramid": "pyramid:budget=6,window=2,kernel=3,beta=4",
    "tova": "tova:budget=6",
    "knorm": "knorm:budget=6,recent=2",
}

# must equal DynamicCache to the bit on 40 tokens
IDENTITY = {
    "full": "full",
    "window": "window:window=64",
    "sinks": "sinks:sinks=4,window=60",
    "quant": "quant:code=identity",
    "kivi": "kivi:bits=16",
    "h2o": "h2o:budget=64,recent=32",
    "snapkv": "snapkv:budget=64,window=16",
    "pyramid": "pyramid:budget=64,window=16,beta=2",
    "tova": "tova:budget=64",
    "knorm": "knorm:budget=64",
}

# other options that go through the same matrix, by method
MORE = {
    "sinks": ["sinks:sinks=2,window=5,positions=original"],
    "quant": ["quant:code=int4", "quant:code=fp8"],
    "kivi": [
        "kivi:bits=4,group=4,residual=4,flush=block",
        "kivi:bits=8,group=4,residual=4,key_axis=token,value_axis=channel",
    ],
    "snapkv": ["snapkv:budget=6,window=2,kernel=3,pool=max,evict=blocks"],
}

# {method: context(model)}: what must be open while a model runs with the cache, where `past_key_values=` is not enough
CONTEXTS = {}


def serving(name: str, model) -> AbstractContextManager:
    """The context in which a cache of this method is served."""
    return CONTEXTS[name](model) if name in CONTEXTS else nullcontext()


def for_family(spec: str, family: str) -> str:
    """The spec for a family of models: without rotary positions there is nothing to turn."""
    if family == "gpt2" and spec.startswith("sinks") and "positions" not in spec:
        return f"{spec},positions=original"
    return spec

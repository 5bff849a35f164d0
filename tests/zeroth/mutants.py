"""Mutants of topic zeroth: see `tests.mutants`."""

# ruff: noqa: E501 (lines stand here as they stand in the source)

from tests.mutants import Mutant

DEEPZERO = "tests/zeroth/test_deepzero.py"
ESTIMATORS = "tests/zeroth/test_estimators.py"
MEZO = "tests/zeroth/test_mezo.py"

MUTANTS = [
    Mutant(
        "mezo: drift on restore (hooks)",
        "zeroth/perturb.py",
        "            t.tensor.data = self.originals[t.index]\n",
        "            t.tensor.sub_(t.tensor - self.originals[t.index])\n",
        MEZO,
    ),
    Mutant(
        "mezo: drift on restore (held copy)",
        "zeroth/perturb.py",
        "        for t, copy in zip(self.trained, self.copies, strict=True):\n            t.tensor.copy_(copy)",
        "        for t, copy in zip(self.trained, self.copies, strict=True):\n            t.tensor.sub_(t.tensor - copy)",
        MEZO,
    ),
    Mutant(
        "mezo: one-sided difference divided by 2 eps",
        "zeroth/mezo.py",
        "[(up - losses[0]) / self.eps for",
        "[(up - losses[0]) / (2 * self.eps) for",
        "tests/zeroth/test_mezo_options.py",
        "one_sided",
    ),
    Mutant(
        "directions: every piece the same",
        "zeroth/directions.py",
        "_fill(direction, z, scale, generator.manual_seed(mix(seed, number)))",
        "_fill(direction, z, scale, generator.manual_seed(mix(seed)))",
        "tests/zeroth/test_mezo_options.py",
        "independent",
    ),
    Mutant(
        "directions: minus a sign is that sign",
        "zeroth/directions.py",
        "    if scale < 0:\n",
        "    if False:\n",
        "tests/zeroth/test_mezo_options.py",
        "opposite",
    ),
    Mutant(
        "mezo-svrg: aliased anchor",
        "zeroth/mezo_svrg.py",
        'self.state[t.tensor]["anchor"] = t.tensor.detach().clone()',
        'self.state[t.tensor]["anchor"] = t.tensor.detach()',
        "tests/zeroth/test_mezo_svrg.py",
        "anchor_is_a_copy",
    ),
    Mutant(
        "mezo-svrg: different directions under shared_z",
        "zeroth/mezo_svrg.py",
        "directions.shift(k, eps, index, w, part, start, size)",
        "directions.shift(k, eps, index + 10**6, w, part, start, size)",
        "tests/zeroth/test_mezo_svrg.py",
        "stored_gradient",
    ),
    Mutant(
        "lozo: the update skips the draw of a new V",
        "zeroth/_lowrank.py",
        "add(w, u, self.v(index, w), alpha",
        "add(w, u, self.v(index, w, max(0, self.step - 1) // self.interval), alpha",
        "tests/zeroth/test_lozo.py",
        "measured",
    ),
    Mutant(
        "lozo: 1/r dropped",
        "zeroth/_lowrank.py",
        "alpha = -lr * c if self.official else -lr * c / self.rank",
        "alpha = -lr * c",
        "tests/zeroth/test_lozo.py",
        "expectation",
    ),
    Mutant(
        "lozo: momentum not carried over a change of V",
        "zeroth/_lowrank.py",
        'if state["period"] != self.period:',
        "if False:",
        "tests/zeroth/test_lozo.py",
        "projects",
    ),
    Mutant(
        "deepzero: the mask is never refreshed",
        "zeroth/deepzero.py",
        "MASKS, step // self.refresh, place",
        "MASKS, 0, place",
        DEEPZERO,
        "masks_change",
    ),
    Mutant(
        "deepzero: a coordinate is not put back",
        "zeroth/estimators.py",
        "    finally:\n        p[place] = old\n",
        "    finally:\n        pass\n",
        ESTIMATORS,
        "bit_for_bit",
    ),
    Mutant(
        "deepzero: reuse restarts one call too late",
        "zeroth/_reuse.py",
        "return [node for node in self.nodes if node in found]",
        "return [node for node in self.nodes if node in found and node not in sources]",
        DEEPZERO,
        "equal_plain_passes",
    ),
    Mutant(
        "deepzero: the baseline loss is not subtracted",
        "zeroth/_queries.py",
        "to(steps.device) - plain.base) / steps",
        "to(steps.device)) / steps",
        DEEPZERO,
        "plain_twin",
    ),
    Mutant(
        "deepzero: sign of the GraSP score",
        "zeroth/_grasp.py",
        "return [-(w * hg) for",
        "return [w * hg for",
        DEEPZERO,
        "scores_are or pruning_keeps",
    ),
    Mutant(
        "deepzero: a stack moves the channel beside",
        "zeroth/_stack.py",
        "    into = into + out //",
        "    into = into.roll(1) + out //",
        DEEPZERO,
        "equal_plain_passes",
    ),
    Mutant(
        "deepzero: buffers keep a skipped batch",
        "zeroth/_queries.py",
        "self.after if self.counted else self.before",
        "self.after",
        DEEPZERO,
        "running_statistics",
    ),
    Mutant(
        "deepzero: loading casts momentum to the weights' precision",
        "zeroth/deepzero.py",
        "noise_dtype(p.dtype), copy=True)",
        "p.dtype, copy=True)",
        DEEPZERO,
        "resume_is_exact_at",
    ),
]

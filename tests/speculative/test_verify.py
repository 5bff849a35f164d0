"""The one verifier has the target's law: in closed form, by counting, and where official rules have not."""

import numpy as np
import pytest
import torch
from scipy import stats

from dlopt.speculative import Draft, Sampling
from dlopt.speculative.sampling import generator
from dlopt.speculative.verify import acceptance, residual, step_law, verify

V = 5
SETTINGS = {"temperature": {"temperature": 0.7}, "top_k": {"temperature": 1.0, "top_k": 3},
            "top_p": {"temperature": 1.3, "top_p": 0.8}}  # fmt: skip


def tables(seed, options):
    """Logits and laws of a target and a drafter for two steps: first (V,), then by the first token (V, V)."""
    rng = np.random.default_rng(seed)
    sampling, made = Sampling(**options), []
    for _ in range(2):
        logits = [torch.from_numpy(rng.normal(size=V) * 1.5), torch.from_numpy(rng.normal(size=(V, V)) * 1.5)]
        made.append((logits, [sampling.law(logits[0]), np.stack([sampling.law(row) for row in logits[1]])]))
    return made


def joint(laws):
    return laws[0][:, None] * laws[1]


def draft_chain(laws, rng):
    a = rng.choice(V, p=laws[0])
    return Draft([a, rng.choice(V, p=laws[1][a])], None, [laws[0], laws[1][a]])


def draft_tree(laws, rng):
    """Two drawn siblings; the first has two drawn children, the second one that is certain."""
    a, b = rng.choice(V, size=2, p=laws[0])
    c, d = rng.choice(V, size=2, p=laws[1][a])
    return Draft([a, b, c, d, 0], [-1, -1, 0, 0, 1], [laws[0], laws[0], laws[1][a], laws[1][a], None])


def draft_fixed(laws, rng):
    return Draft([1, 2, 3, 0], [-1, -1, 0, 0])


def draft_once_each(laws, rng):
    """Siblings drawn without replacement: the second from what the first left."""
    a = rng.choice(V, p=laws[0])
    left = np.where(np.arange(V) == a, 0, laws[0])
    if not left.sum():
        return Draft([a], None, [laws[0]])
    left = left / left.sum()
    return Draft([a, rng.choice(V, p=left)], [-1, -1], [laws[0], left])


DRAFTS = {"chain": draft_chain, "tree": draft_tree, "fixed": draft_fixed, "without replacement": draft_once_each}


def two_tokens(draft, logits, sampling):
    """The first two tokens of a text whose first round verifies the draft."""
    parents = range(-1, len(draft.tokens) - 1) if draft.parents is None else draft.parents
    rows = [logits[0]]
    for token, parent in zip(draft.tokens, parents):
        rows.append(logits[1][token] if parent == -1 else torch.zeros(V, dtype=torch.float64))
    tokens = verify(draft, torch.stack(rows), sampling, 3).tokens
    if len(tokens) == 1:
        tokens += verify(Draft(), logits[1][tokens[0]][None], sampling, 4).tokens
    return tokens[:2]


def counted(draw, count):
    found = np.zeros((V, V))
    for i in range(count):
        found[tuple(draw(i))] += 1
    return found


def fits(found, law):
    """(p of the chi-square test, total variation), rare cells together."""
    found, wanted = found.ravel(), law.ravel() * found.sum()
    assert found[wanted == 0].sum() == 0, "a token that cannot be drawn was drawn"
    often = wanted >= 5
    observed = np.append(found[often], found[~often].sum())
    expected = np.append(wanted[often], wanted[~often].sum())
    keep = expected > 0
    return stats.chisquare(observed[keep], expected[keep]).pvalue, np.abs(found - wanted).sum() / 2 / found.sum()


def check_law(make, options, count):
    (logits, laws), (_, guesses) = tables(7, options)
    rng = np.random.default_rng(1)

    def draw(seed):
        return two_tokens(make(guesses, rng), logits, Sampling(**options, seed=seed))

    p, variation = fits(counted(draw, count), joint(laws))
    assert p > 1e-3
    assert variation < np.sqrt(V * V / count)


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("make", DRAFTS.values(), ids=DRAFTS)
def test_two_tokens_have_the_law_of_the_target(make, options):
    check_law(make, options, 600)


@pytest.mark.slow
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("make", DRAFTS.values(), ids=DRAFTS)
def test_two_tokens_have_the_law_of_the_target_in_many_draws(make, options):
    check_law(make, options, 20_000)


# ---------------------------------------------------------------- closed form


@pytest.mark.parametrize("count", [1, 2, 4])
def test_one_step_is_the_target_in_closed_form(count):
    rng = np.random.default_rng(count)
    for _ in range(50):
        p, *laws = rng.dirichlet(np.full(7, 0.5), size=count + 1)
        laws[0] = np.where(np.arange(7) == rng.integers(7), 0, laws[0])  # the drafter may rule out a token
        laws[0] /= laws[0].sum()
        np.testing.assert_allclose(step_law(p, laws), p, rtol=0, atol=1e-12)
    np.testing.assert_allclose(step_law(p, [np.eye(7)[2], np.eye(7)[5]]), p, rtol=0, atol=1e-12)
    np.testing.assert_allclose(step_law(p, [p, p]), p, rtol=0, atol=1e-12)


def test_the_closed_form_is_what_the_verifier_does():
    """The verifier's numbers, integrated: the share of uniforms that accept, and what a rejection draws from."""
    rng = np.random.default_rng(3)
    p, q = rng.dirichlet(np.ones(V), size=2)
    law = np.zeros(V)
    for x in range(V):
        kept, emitted = 0, np.zeros(V)
        for seed in range(300):
            token = verify(Draft([x], None, [q]), torch.from_numpy(np.log([p, p])), Sampling(1.0, seed=seed), 0).tokens[
                0
            ]
            kept += Sampling(seed=seed).uniform(0, 0) < acceptance(p[x], q[x])
            emitted[token] += 1
        assert emitted[x] >= kept
        assert np.isclose(kept / 300, min(1, p[x] / q[x]), atol=0.09)
        if kept < 300:  # what was corrected can only be what the residual holds
            others = np.delete(emitted, x)
            assert (others[np.delete(residual(p, q), x) == 0] == 0).all()
        law += q[x] * emitted / 300
    np.testing.assert_allclose(law, p, atol=0.04)


def test_a_second_rejection_takes_away_from_what_the_first_one_left():
    p, q = np.array([0.4, 0.4, 0.1, 0.1]), np.array([0.05, 0.35, 0.3, 0.3])
    once = residual(p, q)
    np.testing.assert_allclose(once, [0.875, 0.125, 0, 0])
    np.testing.assert_allclose(residual(once, q), [1, 0, 0, 0])
    draft, logits = Draft([2, 3], [-1, -1], [q, q]), torch.from_numpy(np.log([p, p, p]))
    found = [verify(draft, logits, Sampling(1.0, seed=seed), 0) for seed in range(200)]
    assert {(v.tokens[0], *v.path) for v in found} == {(2, 0), (0,)}  # 3 is never accepted, 1 never drawn


# ---------------------------------------------------------------- official rules that are not lossless

P, Q = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.2, 0.6, 0.1, 0.1])


def rest_rule(p, candidate, rng):
    """REST, nucleus sampling: a draw that differs from the candidate is thrown away, and another one is made."""
    token = rng.choice(len(p), p=p)
    return token if token == candidate else rng.choice(len(p), p=p)


def draft_and_verify_rule(p, q, rng):
    """Draft & Verify, sampling: the drafter's likeliest token is judged as if it had been drawn from its softmax."""
    token = int(q.argmax())
    if rng.random() < min(1, p[token] / q[token]):
        return token
    left = np.maximum(p - q, 0)
    return rng.choice(len(p), p=left / left.sum())


def control(rule, law, count):
    rng = np.random.default_rng(0)
    found = np.bincount([rule(rng) for _ in range(count)], minlength=len(law))
    return fits(found.astype(float), law)


def test_the_rule_of_rest_fails():
    p, variation = control(lambda rng: rest_rule(P, 1, rng), P, 2000)
    assert p < 1e-3
    assert variation > 0.15
    seen = P + (1 - P[1]) * P * (np.arange(4) == 1) - P[1] * P * (np.arange(4) != 1)
    np.testing.assert_allclose(seen, [0.35, 0.51, 0.105, 0.035])
    assert control(lambda rng: rest_rule(P, 1, rng), seen, 2000)[0] > 1e-3


def test_the_rule_of_draft_and_verify_fails():
    p, variation = control(lambda rng: draft_and_verify_rule(P, Q, rng), P, 2000)
    assert p < 1e-3
    assert variation > 0.15


def test_ours_passes_where_they_fail():
    logits = torch.from_numpy(np.log(np.stack([P, P])))
    draws = {
        "fixed": lambda seed: verify(Draft([1]), logits, Sampling(1.0, seed=seed), 0),
        "drawn": lambda seed: verify(
            Draft([generator(seed, 0, 9).choice(4, p=Q)], None, [Q]), logits, Sampling(1.0, seed=seed), 0
        ),
    }
    for draw in draws.values():
        found = np.bincount([draw(seed).tokens[0] for seed in range(1000)], minlength=4)
        assert fits(found.astype(float), P)[0] > 1e-3


def test_drafted_argmax_with_softmax_probabilities_fails_here_too():
    """A drafter that lies about its law is not lossless: the harness must see it."""
    logits = torch.from_numpy(np.log(np.stack([P, P])))
    found = [verify(Draft([1], None, [Q]), logits, Sampling(1.0, seed=seed), 0).tokens[0] for seed in range(1000)]
    assert fits(np.bincount(found, minlength=4).astype(float), P)[0] < 1e-3


# ---------------------------------------------------------------- greedy, processors, forms


def test_greedy_walks_down_the_tree():
    logits = torch.zeros(6, 8)
    logits[0, 3] = logits[2, 5] = logits[4, 7] = 1.0  # after the text 3; after token 1 of the draft 5; after token 3, 7
    draft = Draft([2, 3, 5, 5, 6], [-1, -1, 0, 1, 1])
    assert verify(draft, logits, Sampling(), 4) == ([3, 5, 7], [1, 3])
    assert verify(draft._replace(probs=[np.full(8, 1 / 8)] * 5), logits, Sampling(), 4) == ([3, 5, 7], [1, 3])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_token_sees_the_processors_and_the_text_before_it(temperature):
    seen = []

    def never_again(ids, scores):
        seen.append(ids[0].tolist())
        return scores.index_fill(1, ids[0], -float("inf"))

    logits = torch.zeros(4, 6, dtype=torch.float64)
    logits[:, 5] = 50.0  # forbidden, since it is in the text already
    logits[0, 1] = logits[1, 2] = logits[2, 3] = logits[3, 1] = 40.0
    sampling = Sampling(temperature, processors=(never_again,), seed=4)
    tokens, path = verify(Draft([1, 2, 3]), logits, sampling, 2, torch.tensor([5, 5]))
    assert tokens[:3] == [1, 2, 3]
    assert tokens[3] in (0, 4)  # the bonus token too: 1, 2, 3 and 5 are forbidden by now
    assert seen == [[5, 5], [5, 5, 1], [5, 5, 1, 2], [5, 5, 1, 2, 3]]


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(ValueError, match="every token is forbidden"):
        Sampling(1.0).law(torch.full((3,), -torch.inf))
    with pytest.raises(ValueError, match="the logits are not finite"):
        Sampling(1.0).law(torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match="a draft of 1 tokens needs 2 rows of logits"):
        verify(Draft([1]), torch.zeros(1, 3), Sampling(), 0)
    with pytest.raises(ValueError, match="processors need the tokens so far"):
        verify(Draft(), torch.zeros(1, 3), Sampling(processors=(lambda ids, scores: scores,)), 0)


# ---------------------------------------------------------------- laws and draws


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("size", [7, 6000])
def test_laws_are_those_of_transformers(options, size):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.from_numpy(np.random.default_rng(0).normal(size=size) * 3)
    scores = TemperatureLogitsWarper(options["temperature"])(None, logits[None])
    if "top_k" in options:
        scores = TopKLogitsWarper(options["top_k"])(None, scores)
    if "top_p" in options:
        scores = TopPLogitsWarper(options["top_p"])(None, scores)
    np.testing.assert_allclose(Sampling(**options).law(logits), scores[0].softmax(-1).numpy(), atol=1e-14)


def test_draws_follow_their_weights_and_their_keys():
    law = np.array([0.1, 0.0, 0.6, 0.3])
    drawn = [Sampling(1.0, seed=seed).draw(3 * law, 5) for seed in range(2000)]
    assert fits(np.bincount(drawn, minlength=4).astype(float), law)[0] > 1e-3
    one = Sampling(1.0, seed=8)
    assert [one.draw(law, i) for i in range(20)] == [one.draw(law, i) for i in range(20)]
    assert len({tuple(one.draw(law, i, stream, n) for i in range(40)) for stream in range(4) for n in range(3)}) == 12


def test_equal_clocks_agree_as_often_as_theory_says():
    rng = np.random.default_rng(5)
    p, q = rng.dirichlet(np.ones(6), size=2)
    agree = np.mean([Sampling(1.0, seed=s).draw(p, 0) == Sampling(1.0, seed=s).draw(q, 0) for s in range(3000)])
    # both pick x with probability 1 / sum over y of max(p_y / p_x, q_y / q_x)
    exact = sum(1 / np.maximum(p / p[x], q / q[x]).sum() for x in range(6))
    variation = np.abs(p - q).sum() / 2
    assert abs(agree - exact) < 4 * np.sqrt(0.25 / 3000)
    assert exact >= (1 - variation) / (1 + variation)

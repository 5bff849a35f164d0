"""Suffix decoding against a twin that reads the whole text for every draft."""

import random
from threading import Thread

import pytest

from dlopt.speculative import Sampling, SuffixDrafter, generate
from dlopt.speculative.automaton import SuffixAutomaton
from dlopt.speculative.draft import checked
from dlopt.speculative.suffix import SuffixHistory
from tests.speculative.tiny import PROMPT, model


def occurrences(texts, string):
    n = len(string)
    return sum(text[i : i + n] == string for text in texts for i in range(len(text) - n + 1))


def continuations(texts, string):
    """{token: how often it follows the string}."""
    n, found = len(string), {}
    for text in texts:
        for i in range(len(text) - n):
            if text[i : i + n] == string:
                found[text[i + n]] = found.get(text[i + n], 0) + 1
    return found


def twin_tree(texts, end, budget, limit, least):
    """[(path, probability)], the most probable first, from all paths."""
    nodes = []

    def visit(path, chance):
        if len(path) == limit:
            return
        shares = continuations(texts, end + path)
        for token, count in shares.items():
            reached = chance * (count / sum(shares.values()))
            if reached >= least:
                nodes.append((-reached, len(path) + 1, [*path, token]))
                visit([*path, token], reached)

    visit([], 1.0)
    return [(path, -chance) for chance, _, path in sorted(nodes)[:budget]]


def twin_path(texts, end, budget, limit, least):
    path, chance, found = [], 1.0, []
    while len(path) < min(budget, limit):
        shares = continuations(texts, end + path)
        if not shares:
            break
        token = min(shares, key=lambda t: (-shares[t], t))
        chance = chance * (shares[token] / sum(shares.values()))
        if chance < least:
            break
        path = [*path, token]
        found.append((path, chance))
    return found


def twin(text, earlier, drafter, limit):
    """(paths, length of the match) of the best draft: every source, every length of the end."""
    best, score, level = [], 0.0, 0
    grow = twin_tree if drafter.tree else twin_path
    for texts in ([text], earlier):
        for p in range(min(drafter.depth, len(text)), 0, -1):
            nodes = grow(texts, text[-p:], int(drafter.max_spec_factor * p + 1e-9), limit, drafter.min_token_prob)
            total = 0.0
            for _, chance in nodes:
                total += chance
            if total > score:
                best, score, level = [path for path, _ in nodes], total, p
    return best, level


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tree": False},
        {"depth": 3, "max_spec_factor": 2.0, "min_token_prob": 0.2},
        {"depth": 4, "max_spec_factor": 0.5, "min_token_prob": 0.01},
    ],
    ids=["default", "path", "short and wide", "half"],
)
def test_drafts_equal_a_twin_that_reads_everything(options):
    rng = random.Random(1)
    drafted = 0
    for run in range(6):
        # few tokens and copied pieces: matches of every length, ties, splits
        earlier = [[rng.randrange(3) for _ in range(rng.randrange(1, 25))] for _ in range(run)]
        history = SuffixHistory() if run else None
        for text in earlier:
            history.add(text)
        drafter = SuffixDrafter(history, **options)
        text = [rng.randrange(3) for _ in range(rng.randrange(1, 10))]
        session = drafter.begin(text, Sampling())
        for _ in range(14):
            limit = rng.randrange(1, 7)
            draft = checked(session.propose(limit), limit, 3, session)
            paths, level = twin(text, earlier, drafter, limit)
            full = []
            parents = range(-1, len(draft.tokens) - 1) if draft.parents is None else draft.parents
            for token, parent in zip(draft.tokens, parents):
                full.append([*(full[parent] if parent >= 0 else []), token])
            assert full == paths
            assert draft.level == min(level, 16)
            drafted += len(paths)
            new = [rng.randrange(3)] if rng.random() < 0.4 else text[:3] or [1]
            session.observe(new)
            text = text + new
    assert drafted > 100


def test_an_automaton_counts_every_substring():
    """Whether added at once (counted in one sweep) or bit by bit (counted along the links)."""
    rng = random.Random(2)
    for run in range(20):
        text = [rng.randrange(2 + run % 3) for _ in range(rng.randrange(1, 40))]
        index = SuffixAutomaton()
        cut = rng.randrange(len(text) + 1)
        index.extend(text[:cut])
        for token in text[cut:]:
            index.extend([token])
        assert len(index.link) <= 2 * len(text) + 1
        for _ in range(30):
            i = rng.randrange(len(text))
            string = text[i : i + rng.randrange(1, 8)]
            state, matched = index.match(string)
            assert matched == len(string)
            assert index.length[index.link[state]] < len(string) <= index.length[state]
            assert index.count[state] == occurrences([text], string)
            after = {token: index.count[s] for token, s in index.follow[state].items()}
            assert after == continuations([text], string)
            wanted = [rng.randrange(4) for _ in range(6)]
            longest = max(n for n in range(7) if n == 0 or occurrences([text], wanted[-n:]))
            assert index.match(wanted)[1] == longest


def test_one_token_over_and_over_is_no_trap():
    text = [5] * 3000
    session = SuffixDrafter().begin(text, Sampling())
    draft = session.propose(100)
    assert draft.tokens == [5] * 64  # as long as the longest match that counts
    session.observe([5, 5])
    assert session.propose(10).tokens == [5] * 10
    assert session.own.count[session.own.match([5])[0]] == 3002


def test_a_history_keeps_the_newest_texts():
    history = SuffixHistory(most=100)
    texts = [[number % 7, number % 5, number % 3] * 4 for number in range(40)]
    for number, text in enumerate(texts):
        history.add(text)
        assert history.tokens == sum(map(len, history.texts)) <= 100
        assert list(history.texts) == texts[number + 1 - len(history.texts) : number + 1]
    fresh = SuffixHistory(most=100)
    for text in history.texts:
        fresh.add(text)
    for text in history.texts:
        for i in range(len(text)):
            string = text[i : i + 3]
            counts = [h.index.count[h.index.match(string)[0]] for h in (history, fresh)]
            assert counts[0] == counts[1] == occurrences(history.texts, string)
    large = list(range(100))
    history.add(large)
    assert list(history.texts) == [large]


def test_an_earlier_output_is_drafted_and_not_over_its_border():
    history = SuffixHistory()
    history.add([1, 2, 3, 4, 5])
    history.add([7, 8])
    session = SuffixDrafter(history, max_spec_factor=4.0).begin([9, 1, 2], Sampling())
    assert session.propose(9).tokens == [3, 4, 5]
    assert session.propose(2).tokens == [3, 4]
    session.observe([3, 4, 5])
    assert not session.propose(9).tokens
    later = SuffixDrafter(history).begin([6], Sampling())
    assert not later.propose(9).tokens
    history.add([6, 7])  # while a request is running
    assert later.propose(9).tokens == [7]


def test_threads_may_share_a_history():
    history = SuffixHistory(most=400)
    drafter, wrong = SuffixDrafter(history), []

    def work(seed):
        rng = random.Random(seed)
        try:
            session = drafter.begin([1, 2, 3], Sampling())
            for _ in range(40):
                limit = rng.randrange(1, 5)
                checked(session.propose(limit), limit, 6, session)
                session.observe([rng.randrange(6)])
                history.add([rng.randrange(6) for _ in range(9)])
        except Exception as error:
            wrong.append(error)

    threads = [Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert history.tokens <= 400


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SuffixDrafter(depth=0), "depth must be at least 1, got 0"),
        (lambda: SuffixDrafter(max_spec_factor=0), "max_spec_factor must be above 0, got 0"),
        (lambda: SuffixDrafter(max_spec_factor=float("nan")), "max_spec_factor must be above 0, got nan"),
        (lambda: SuffixDrafter(min_token_prob=0), "min_token_prob must be above 0 and at most 1, got 0"),
        (lambda: SuffixDrafter(min_token_prob=1.1), "min_token_prob must be above 0 and at most 1, got 1.1"),
        (lambda: SuffixHistory(0), "most must be at least 1, got 0"),
        (lambda: SuffixHistory(3).add([]), "has 1 to 3 tokens, got 0"),
        (lambda: SuffixHistory(3).add([1] * 4), "has 1 to 3 tokens, got 4"),
        (lambda: SuffixHistory().add([-1]), "token ids are at least 0, got -1"),
    ],
)
def test_wrong_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_history_of_another_vocabulary_is_refused():
    history = SuffixHistory()
    history.add([24])
    with pytest.raises(ValueError, match="the history has token 24, the target a vocabulary of 24"):
        generate(model(), [PROMPT], SuffixDrafter(history))

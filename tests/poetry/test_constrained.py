"""Decoding under the rules: whatever a model prefers, the second checker finds nothing wrong."""

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlopt.poetry import ProsodyConstraint, Request, Vocabulary, acrostic, continuation
from dlopt.poetry.patterns import FORMS
from dlopt.poetry.rhymebook import find_group, members, rhymes
from dlopt.poetry.tables import Tables
from dlopt.transformer.decoding import beam_search, generate
from tests.poetry import second_checker as second

# some of every group, more of the level ones: about 900 characters. 囍 is in no group
SOME = "".join(chars[: 14 if "平" in group else 6] for group, chars in members().items())
VOCABULARY = Vocabulary(["，", "。", *dict.fromkeys("春風月白日依山盡" + SOME), "囍", "~"])
TABLES = Tables(VOCABULARY)


def write(constraint, seed=0, sharpness=3.0, rows=None, favour=None):
    """Tokens (b, t) of a model that draws its logits at random, and these logits (b, t - 1, V)."""
    generator = torch.Generator().manual_seed(seed)
    rows = rows or len(constraint.requests)
    tokens = torch.full((rows, constraint.start), VOCABULARY.bos)
    kept = []
    for _ in range(constraint.length):
        logits = sharpness * torch.randn(rows, len(constraint.vocabulary), generator=generator)
        if favour is not None:
            logits = logits + favour
        kept.append(logits)
        p = constraint(logits, tokens).softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(p, 1, generator=generator)], 1)
    return tokens, torch.stack(kept, 1)


def lines_of(constraint, tokens):
    return [constraint.lines(row, tokens[row].tolist()) for row in range(len(tokens))]


def without_repeats(request, lines):
    given = request.characters
    free = [c for c, g in zip("".join(lines), given) if g == "□"]
    return len(set(free)) == len(free) and not set(free) & (set(given) - {"□"})


def requests_at_random(count, seed):
    draw = random.Random(seed)
    known = [c for c in VOCABULARY.chars if c in second.table()]
    level = [g[-1] for g in members() if "平" in g]
    found = []
    for number in range(count):
        mode = draw.choice(["lenient", "strict"])
        options = {"mode": mode, "first_rhymes": draw.choice([None, True, False]), "reduplication": draw.random() < 0.2}
        if draw.random() < 0.4:
            options["rhyme"] = draw.choice(level)
        kind = number % 4
        if kind == 0:
            found.append(Request(draw.choice(list(FORMS)), **options))
        elif kind == 1:
            found.append(acrostic("".join(draw.sample(known, draw.choice([4, 8]))), draw.choice([5, 7]), **options))
        elif kind == 2:
            found.append(continuation("".join(draw.sample(known, draw.choice([5, 7]))), mode=mode))
        else:  # characters here and there, some of which no pattern may fit
            form = draw.choice(list(FORMS.values()))
            lines = [["□"] * form.length for _ in range(form.lines)]
            for _ in range(draw.randrange(1, 4)):
                lines[draw.randrange(form.lines)][draw.randrange(form.length - 1)] = draw.choice(known)
            found.append(Request(form.name, tuple("".join(line) for line in lines), **options))
    return found


def fits(request):
    """Whether a plan can be made; where it cannot, the second checker finds no way either (no line of its kinds)."""
    try:
        ProsodyConstraint(VOCABULARY, request, tables=TABLES)
    except ValueError:
        return False
    return True


def test_a_thousand_random_prompts_are_all_regular():
    asked, judged = requests_at_random(1_200, seed=1), 0
    possible = [request for request in asked if fits(request)]
    assert len(possible) >= 1_000
    for begin in range(0, 1_000, 100):
        some = possible[begin : begin + 100]
        constraint = ProsodyConstraint(VOCABULARY, some, tables=TABLES)
        tokens, _ = write(constraint, seed=begin)
        for request, lines in zip(some, lines_of(constraint, tokens), strict=True):
            form = FORMS[request.form]
            assert [len(line) for line in lines] == [form.length] * form.lines
            assert all(g in (c, "□") for c, g in zip("".join(lines), request.characters, strict=True))
            if request.judge_given:
                assert second.right(lines, request.mode, request.first_rhymes), (request, lines)
            else:
                assert second.answers(*lines, request.mode), (request, lines)
            if request.rhyme:
                assert find_group(request.rhyme) in second.level(lines[1][-1])
            if not request.reduplication:
                assert without_repeats(request, lines)
            judged += 1
    assert judged == 1_000


def test_no_pattern_is_refused_only_where_there_is_none():
    """Requests with given characters: refused exactly where the tones fit no arrangement of the second checker."""
    seen = [0, 0]
    for request in requests_at_random(2_000, seed=2):
        if not request.given or not request.judge_given or request.rhyme:
            continue
        length = FORMS[request.form].length
        lines = [request.characters[i : i + length] for i in range(0, len(request.characters), length)]
        kinds = [k for k in second.KINDS[len(lines)] if request.first_rhymes in (None, k[0] in "AB")]
        possible = any(second.tones_hold(lines, request.mode, k) for k in kinds)  # a free place reads as either tone
        assert fits(request) == possible, request
        seen[possible] += 1
    assert min(seen) > 20


def test_the_model_is_still_sampled_from():
    """What is allowed keeps its proportions; the mask only takes the rest away."""
    constraint = ProsodyConstraint(VOCABULARY, Request("五绝"), tables=TABLES)
    tokens, logits = write(constraint, seed=3)
    for i in (0, 4, 9, 11):
        before, free = tokens[:, : 1 + i], logits[:, i]
        masked = constraint(free, before)
        allowed = masked > -torch.inf
        assert torch.equal(masked[allowed], free[allowed])
        assert torch.equal(allowed, constraint.allowed(before))
        assert 1 <= allowed.sum() < len(VOCABULARY)


def test_the_cost_is_the_mass_that_was_shut_out():
    constraint = ProsodyConstraint(VOCABULARY, [Request("五绝"), Request("五言联")], tables=TABLES)
    tokens, logits = write(constraint, seed=4, sharpness=1.0)
    cost = constraint.cost(logits, tokens)
    free, masked = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for row, layout in enumerate(constraint.layouts):
        for i in range(len(layout)):
            p = logits[row, i].double().softmax(-1)
            allowed = constraint.allowed(tokens[:, : 1 + i])[row]
            token = tokens[row, 1 + i]
            free[row] += p[token].log()
            masked[row] += (p[token] / p[allowed].sum()).log()
    torch.testing.assert_close(cost.free, free, rtol=0, atol=1e-10)
    torch.testing.assert_close(cost.masked, masked, rtol=0, atol=1e-10)
    assert (cost.masked > cost.free).all()


@pytest.mark.parametrize("first_rhymes", [True, False])
def test_a_group_with_just_enough_characters_is_kept_for_the_rhymes(first_rhymes):
    """A model that wants nothing but the few characters of the rhyme group still finishes."""
    few = "".join(c for c in members()["上平聲三江"] if len(rhymes(c)) == 1)[: 4 + first_rhymes]
    rest = [c for c in VOCABULARY.chars if c not in members()["上平聲三江"]]
    vocabulary = Vocabulary([*rest, *few])
    favour = torch.zeros(len(vocabulary))
    favour[vocabulary.encode(few)] = 50.0
    request = Request("七律", rhyme="江", first_rhymes=first_rhymes)
    constraint = ProsodyConstraint(vocabulary, [request] * 4)
    tokens, _ = write(constraint, seed=5, favour=favour)
    for lines in lines_of(constraint, tokens):
        ends = [line[-1] for i, line in enumerate(lines) if i % 2 or (i == 0 and first_rhymes)]
        assert sorted(ends) == sorted(few)
        assert second.right(lines, first=first_rhymes)
    short = Vocabulary([*rest, *few[1:]])
    with pytest.raises(ValueError, match="no rhyme group but '江'"):
        ProsodyConstraint(short, request)
    open_choice = ProsodyConstraint(short, [Request("七律", first_rhymes=first_rhymes)] * 2)
    favour = torch.zeros(len(short))
    favour[short.encode(few[1:])] = 50.0
    tokens, _ = write(open_choice, seed=6, favour=favour)
    assert all(second.right(lines) for lines in lines_of(open_choice, tokens))


def test_repeats_come_only_where_they_are_allowed():
    favour = torch.zeros(len(VOCABULARY))
    favour[VOCABULARY.encode("人春新月日雪")] = 30.0
    for options in ({}, {"reduplication": True}, {"forbid_repeats": False}):
        constraint = ProsodyConstraint(VOCABULARY, [Request("七绝", **options)] * 8, tables=TABLES)
        tokens, _ = write(constraint, seed=7, favour=favour)
        repeated = doubled = 0
        for lines in lines_of(constraint, tokens):
            text = "".join(lines)
            repeated += len(set(text)) < len(text)
            pairs = sum(a == b for line in lines for a, b in pairwise(line))
            doubled += pairs
            assert second.right(lines)  # also: no rhyme twice
            if "reduplication" in options:
                assert len(text) - len(set(text)) == pairs
                assert not any(a == b == c for line in lines for a, b, c in zip(line, line[1:], line[2:]))
        assert (repeated > 0) == bool(options)
        assert (doubled > 0) == bool(options)


def test_special_tokens_punctuation_and_unknown_characters_are_never_written():
    constraint = ProsodyConstraint(VOCABULARY, Request("五绝"), tables=TABLES)
    favour = torch.zeros(len(VOCABULARY))
    favour[[*range(11), *VOCABULARY.encode("，。囍~")]] = 90.0
    tokens, _ = write(constraint, seed=8, favour=favour)
    text = VOCABULARY.decode(tokens[0].tolist())
    assert [text[i] for i in (5, 11, 17, 23)] == ["，", "。", "，", "。"]
    assert not set(text[:5]) & set("，。囍~□")
    assert tokens[0, -1] == VOCABULARY.eos
    assert len(tokens[0]) == 1 + 24 + 1
    assert constraint.allowed(tokens).nonzero()[:, 1].tolist() == [VOCABULARY.pad]


def test_rows_may_change_places():
    """As in beam search: the mask depends on the tokens alone."""
    constraint = ProsodyConstraint(VOCABULARY, Request("七绝"), tables=TABLES)
    tokens, _ = write(constraint, seed=9, rows=3)
    for t in (5, 12, 20):
        here = constraint.allowed(tokens[:, :t])
        assert torch.equal(constraint.allowed(tokens[[2, 0, 1], :t]), here[[2, 0, 1]])


def test_the_second_line_alone_is_written_where_the_first_is_elsewhere():
    constraint = ProsodyConstraint(
        VOCABULARY, continuation("白日依山盡"), skip_lines=1, punctuation=False, tables=TABLES
    )
    assert constraint.length == 6
    tokens, _ = write(constraint, seed=10, rows=20)
    for lines in lines_of(constraint, tokens):
        assert lines[0] == "白日依山盡"
        assert second.right(lines)
    assert (tokens[:, -1] == VOCABULARY.eos).all()


def test_it_serves_generate():
    heads = "春風月白"
    constraint = ProsodyConstraint(VOCABULARY, [acrostic(heads), acrostic(heads, rhyme="東")], start=2, tables=TABLES)
    weights = torch.randn(len(VOCABULARY), len(VOCABULARY), generator=torch.Generator().manual_seed(0))
    prompt = torch.tensor([[VOCABULARY.bos, VOCABULARY.id("<五绝>")]] * 2)
    done = generate(
        lambda tokens: 3 * weights[tokens[:, -1]],
        prompt,
        constraint.length,
        top_p=0.9,
        processors=[constraint],
        generator=torch.Generator().manual_seed(1),
        eos=VOCABULARY.eos,
        pad=VOCABULARY.pad,
    )
    for row, lines in enumerate(lines_of(constraint, torch.cat([prompt, done.tokens], 1))):
        assert second.right(lines), row
        assert "".join(line[0] for line in lines) == heads
    assert find_group("東") in second.level(lines[3][-1])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Request("六律"), "no form"),
        (lambda: Request("五绝", mode="free"), "mode must be"),
        (lambda: Request("五绝", rhyme="月"), "no level rhyme group"),
        (lambda: Request("五绝", "春風月白"), "a sequence of lines"),
        (lambda: Request("五绝", ("春",) * 5), "has 4 lines"),
        (lambda: Request("五绝", ("春風月白日雪",)), "has 6 characters"),
        (lambda: Request("五绝", ("春a",)), "'a', which is no Chinese"),
        (lambda: Request("五绝", ("春🌄",)), "no Chinese character"),
        (lambda: acrostic("春風月"), "heads must be"),
        (lambda: acrostic("春" * 10_000), "heads must be"),
        (lambda: continuation("白日依山"), "must be 5 or 7"),
        (lambda: continuation(""), "must be 5 or 7"),
        (lambda: continuation("白日依山□"), "all of them given"),
        (lambda: ProsodyConstraint(VOCABULARY, continuation("白日依山龘")), "is not in the vocabulary"),
        (lambda: ProsodyConstraint(VOCABULARY, continuation("白日依山囍"), tables=TABLES), "not in the table"),
        (lambda: ProsodyConstraint(VOCABULARY, []), "no request"),
        (lambda: ProsodyConstraint(VOCABULARY, Request("五绝"), start=-1, tables=TABLES), "start must be"),
        (lambda: ProsodyConstraint(VOCABULARY, Request("五绝"), skip_lines=1, tables=TABLES), "given whole"),
        (lambda: ProsodyConstraint(VOCABULARY, Request("五绝", ("月月月月天",)), tables=TABLES), "no pattern"),
        (lambda: ProsodyConstraint(Vocabulary("，。東月"), Request("五绝")), "needs 24 of each"),
        (lambda: ProsodyConstraint(VOCABULARY, Request("五绝", ("", "□□□□東") * 2), tables=TABLES), "rhyme group"),
        (lambda: ProsodyConstraint(VOCABULARY, Request("五绝", ("", "□□□□東"), rhyme="先"), tables=TABLES), "but '先'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_a_sentence(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_wrong_calls_are_refused():
    constraint = ProsodyConstraint(VOCABULARY, [Request("五绝"), Request("七绝")], tables=TABLES)
    start = torch.full((2, 1), VOCABULARY.bos)
    with pytest.raises(ValueError, match="3 rows for 2 requests"):
        constraint.allowed(torch.full((3, 1), VOCABULARY.bos))
    with pytest.raises(ValueError, match="logits must be"):
        constraint(torch.zeros(2, 5), start)
    with pytest.raises(ValueError, match="before top-k"):
        constraint(torch.full((2, len(VOCABULARY)), -torch.inf), start)
    with pytest.raises(ValueError, match="not allowed in place 1 of line 1"):
        constraint.allowed(torch.tensor([[1, VOCABULARY.id("，")]] * 2))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=9), st.sampled_from(["五绝", "七律", "五言联"]), st.text(max_size=3))
def test_any_request_is_served_or_refused_with_a_sentence(line, form, rhyme):
    try:
        constraint = ProsodyConstraint(VOCABULARY, Request(form, (line,), rhyme=rhyme or None), tables=TABLES)
    except ValueError as error:
        said = str(error)
    else:
        said = "no sentence, but a constraint"
        assert constraint.allowed(torch.tensor([[VOCABULARY.bos]])).any()
    assert len(said) > 20


def test_a_regular_first_line_is_taken_for_its_own_kind():
    """庭 can be oblique, but only as a level character does it make 漢庭卿相皆知己 regular: so it counts as that."""
    vocabulary = Vocabulary(dict.fromkeys([*VOCABULARY.chars, *"漢庭卿相皆知己"]))
    assert second.letter("庭") == "X"
    constraint = ProsodyConstraint(vocabulary, [continuation("漢庭卿相皆知己", first_rhymes=False)] * 30)
    tokens, _ = write(constraint, seed=11)
    for lines in lines_of(constraint, tokens):
        assert second.right(lines, first=False)
    # a line out of all rules (level in 2 and 4) is still answered in its even places
    odd = ProsodyConstraint(VOCABULARY, [continuation("春風風春月")] * 30, tables=TABLES)
    tokens, _ = write(odd, seed=12)
    assert all(
        second.answers(*lines, "lenient") and second.letter(lines[1][1]) != "P" for lines in lines_of(odd, tokens)
    )


@pytest.mark.parametrize("beams", [1, 3])
def test_it_serves_beam_search(beams):
    """A line that is given leaves fewer texts than beams; each request has its own rows."""
    asked = [Request("五绝", ("白日依山盡",)), Request("五绝", rhyme="東")]
    constraint = ProsodyConstraint(VOCABULARY, asked, start=2, tables=TABLES)
    weights = torch.randn(len(VOCABULARY), len(VOCABULARY), generator=torch.Generator().manual_seed(0))

    class Step:
        def __call__(self, tokens):
            return 3 * weights[tokens[:, -1]]

        def reorder(self, rows):
            pass

    prompt = torch.tensor([[VOCABULARY.bos, VOCABULARY.id("<五绝>")]] * 2)
    found = beam_search(Step(), prompt, constraint.length, beams, processors=[constraint], eos=VOCABULARY.eos)
    for beam in range(beams):
        given, rhymed = lines_of(constraint, torch.cat([prompt, found.tokens[:, beam]], 1))
        assert given[0] == "白日依山盡"
        assert second.right(given)
        assert second.right(rhymed)
        assert find_group("東") in second.level(rhymed[3][-1])
    with pytest.raises(ValueError, match="3 rows for 2 requests"):
        constraint.allowed(prompt[[0, 0, 1]])

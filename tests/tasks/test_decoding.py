import os

import pytest

from dlopt.tasks import data
from dlopt.tasks.decoding import CATEGORIES, identity, misspelt, prompts, shortened

needs_data = pytest.mark.skipif("DLOPT_DATA" not in os.environ, reason="needs the prompts that DLOPT_DATA names")


@needs_data
@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_has_fifty_different_prompts_with_what_they_refer_to(category):
    found = prompts(category, 50)
    assert len({prompt.text for prompt in found}) == 50
    assert all(reference in prompt.text for prompt in found for reference in prompt.references)
    assert all(len(reference) <= 1500 for prompt in found for reference in prompt.references)
    assert bool(found[0].references) == (category in ("summaries", "retrieval", "articles", "rewriting", "code"))
    assert prompts(category, 2, first=3) == found[3:5]
    assert len(identity(category)) == 1


@needs_data
def test_the_question_of_a_retrieval_prompt_stays_whole():
    assert prompts("retrieval", 2, longest=300)[1].text.endswith("\nWho sings got my mind set on you?")


@needs_data
def test_the_data_sets_are_whole():
    questions, articles = data.get("spec-bench"), data.get("llma-cnndm")
    assert len(questions) == 480
    assert len(questions[0].turns) == 2
    assert len(articles) == 100
    assert articles[0].summary.startswith("Marseille prosecutor")
    assert articles[0].text.startswith("Marseille, France")


def test_sentences_stay_whole():
    assert shortened('He came. "She left!" They said so', 25) == 'He came. "She left!"'
    assert shortened("no end", 3) == "no "
    assert shortened("short.", 100) == "short."


def test_misspellings_keep_the_letters():
    text = "several elephants wandered towards another village yesterday without fearing anything " * 5
    wrong = misspelt(text, 3)
    changed = [(a, b) for a, b in zip(text.split(), wrong.split()) if a != b]
    assert 2 <= len(changed) <= 15
    assert all(sorted(a) == sorted(b) and a[0] == b[0] for a, b in changed)
    assert misspelt(text, 3) == wrong != misspelt(text, 4)


@pytest.mark.parametrize(
    ("asked", "told"), [(("chats", 1), "did you mean chat"), (("chat", 0), "at least 1"), (("qa", 500), "not 500")]
)
def test_bad_input_is_told(asked, told):
    if asked[1] == 500 and "DLOPT_DATA" not in os.environ:
        pytest.skip("needs the prompts that DLOPT_DATA names")
    with pytest.raises(ValueError, match=told):
        prompts(*asked)

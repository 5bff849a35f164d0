"""What the server answers about decoding with drafts: events as they happen, sentences for what it cannot do."""

import json
from types import SimpleNamespace

import httpx
import pytest

from dlopt import catalog
from dlopt.apps import decoder as work
from dlopt.apps import server
from dlopt.apps.decode import EXAMPLES, LENGTH, TOKENS
from dlopt.apps.decoder import OFFERED, Ask, Cancelled, Decoder, Text
from dlopt.experiments._tiny import ByteTokenizer
from dlopt.poetry.wish import Refused
from dlopt.speculative import generate
from dlopt.speculative.engine import Round
from dlopt.tasks.data.files import DataUnavailable
from dlopt.tasks.models import pretrained
from tests.apps.conftest import Running
from tests.apps.drafting import ASK, PROMPT, serve
from tests.apps.test_server import wait_for
from tests.poetry.test_wish import HAN


@pytest.fixture(scope="module")
def running(held):
    yield from serve(held)


def events(lines):
    """The events of an answer, as they come."""
    kind = None
    for line in lines:
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line:
            assert line.startswith("data: ")
            yield {**json.loads(line.removeprefix("data: ")), "type": kind}


def asked(client, **change):
    answer = client.post("/api/decode/run", json={**ASK, **change})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return list(events(answer.text.splitlines()))


def text(told, pane):
    pieces = [piece for e in told if e["type"] == pane for piece, _ in e["tokens"]]
    return "".join(pieces) + next(e["rest"] for e in told if e["type"] == "done" and e["pane"] == pane)


def test_plain_tokens_and_drafted_rounds_come_in_order(client, held):
    told = asked(client)
    plain, drafted = ([e for e in told if e["type"] == pane] for pane in ("plain", "drafted"))
    order = ["queued", "start", "costs", *["plain"] * 48, "done", *["drafted"] * len(drafted), "done", "end"]
    assert [e["type"] for e in told] == order
    start, costs, end = told[1], told[2], told[-1]
    assert (start["prompt_tokens"], start["tokens"]) == (len(PROMPT.encode()), 48)
    assert start["parameters"] == held.model.num_parameters()
    assert costs["lengths"][0] == 1
    assert all(s > 0 for s in costs["seconds"])

    # the text is that of the model
    expected = generate(held.model, [list(PROMPT.encode())], max_new_tokens=48).tokens[0]
    assert text(told, "plain") == text(told, "drafted") == ByteTokenizer().decode(expected)
    assert (end["identical"], end["differs"]) == (True, None)

    # colours: of a chain, all accepted and one more is a bonus, fewer and one more a correction
    for e in drafted:
        own = [kind for _, kind in e["tokens"][e["accepted"] :]]
        assert [kind for _, kind in e["tokens"][: e["accepted"]]] == ["accepted"] * e["accepted"]
        if e is not drafted[-1]:
            assert own == ["plain" if not e["drafted"] else "bonus" if e["accepted"] == e["drafted"] else "corrected"]
    assert {kind for e in drafted for _, kind in e["tokens"]} == {"plain", "accepted", "corrected", "bonus"}
    assert {kind for e in plain for _, kind in e["tokens"]} == {"plain"}

    # figures
    assert [e["round"] for e in drafted] == list(range(end["drafted"]["rounds"] + 1))
    assert (end["plain"]["rounds"], end["plain"]["tokens"], end["drafted"]["tokens"]) == (47, 48, 48)
    assert end["drafted"]["rounds"] < 47
    for name in ("drafted", "accepted"):
        assert end["drafted"][name] == sum(e[name] for e in drafted)
    assert end["drafted"]["tokens_per_round"] == pytest.approx(47 / end["drafted"]["rounds"])
    assert end["speedup"] == pytest.approx(end["plain"]["seconds"] / end["drafted"]["seconds"])
    assert end["predicted"] > 0
    for pane in (plain, drafted):
        seconds = [e["seconds"] for e in pane]
        assert seconds[0] == 0
        assert seconds == sorted(seconds)


def test_the_seed_decides_and_drafts_change_nothing(client):
    one, two, other = (asked(client, temperature=1.2, top_p=0.9, seed=s, tokens=12) for s in (5, 5, 6))
    assert one[-1]["identical"]
    assert text(one, "drafted") == text(two, "drafted") != text(other, "drafted")
    assert one[1]["seed"] == 5


@pytest.mark.parametrize("name", OFFERED)
def test_every_drafter_writes_the_text_of_plain_decoding(held, name):
    told = []
    ask = Ask(**{**ASK, "drafter": name, "length": 3, "tokens": 24})
    held.decoder.run(ask, told.append, lambda: False)
    assert told[-1]["identical"]
    most = max(e["drafted"] for e in told if e["type"] == "drafted")
    assert most <= 3
    assert most > 0 or name == "llma", "which has a test of its own"


def test_a_reference_is_searched(held):
    ids = list(PROMPT.encode())
    answer = ByteTokenizer().decode(generate(held.model, [ids], max_new_tokens=20).tokens[0])
    told = {}
    for reference in (answer, "~"):
        found = []
        ask = Ask(**{**ASK, "drafter": "llma", "reference": reference, "tokens": 20})
        held.decoder.run(ask, found.append, lambda: False)
        told[reference] = found[-1]["drafted"]["drafted"]
    assert told[answer] > told["~"] == 0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"prompt": ""}, "提示"), ({"prompt": " \n"}, "提示"), ({"prompt": "a" * 8_001}, "太长"),
        ({"prompt": 5}, "prompt"), ({"temperature": -0.1}, "temperature"), ({"temperature": 1.6}, "temperature"),
        ({"top_p": 0}, "top_p"), ({"drafter": "rest"}, "prompt-lookup"), ({"drafter": "x" * 50}, "drafter"),
        ({"tokens": TOKENS[1] + 1}, "tokens"), ({"tokens": 1}, "tokens"), ({"length": LENGTH[1] + 1}, "length"),
        ({"seed": -1}, "seed"), ({"nothing": 1}, "多余"), ({"gate": "perhaps"}, "gate"),
        ({"reference": None}, "reference"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_asked_gets_a_sentence(client, change, word):
    answer = client.post("/api/decode/run", json={**ASK, **change})
    assert answer.status_code == 422
    assert HAN.search(answer.json()["error"])
    assert word in answer.json()["error"]


def test_bodies_are_bounded_and_must_be_json(client):
    headers = {"content-type": "application/json"}
    for content, status in ((b'{"prompt": "' + b"a" * 70_000 + b'"}', 413), (b"{", 422), (b'{"top_p": NaN}', 422)):
        answer = client.post("/api/decode/run", content=content, headers=headers)
        assert (answer.status_code, bool(HAN.search(answer.json()["error"]))) == (status, True)
    assert client.get("/api/decode/run").status_code == 405


def test_a_prompt_that_passes_the_context_is_refused_in_words(client):
    told = asked(client, prompt="a" * 353)
    assert [e["type"] for e in told] == ["queued", "error"]
    assert "353个词元" in told[1]["error"]
    assert "400" in told[1]["error"]
    assert asked(client, prompt="a" * 352)[-1]["type"] == "end", "what just fits is written"


def test_what_goes_wrong_in_the_middle_is_said(running, held, monkeypatch):
    def wrong(ask, tell, stopped):
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(held.decoder, "run", wrong)
    with httpx.stream("POST", f"{running.url}/api/decode/run", json=ASK, timeout=60, trust_env=False) as answer:
        told = events(answer.iter_lines())
        assert next(told)["type"] == "queued"
        assert "ZeroDivisionError" in next(told)["error"]


def test_nothing_is_told_after_it_was_cancelled(held):
    heard = []
    with pytest.raises(Cancelled):
        held.decoder.run(Ask(**ASK), heard.append, lambda: len(heard) >= 7)
    assert [e["type"] for e in heard] == ["start", "costs", *["plain"] * 5]
    before, heard = held.passes, []
    with pytest.raises(Cancelled):
        held.decoder.run(Ask(**ASK), heard.append, lambda: True)
    assert (heard, held.passes) == ([], before)


def test_it_streams_and_a_reader_who_leaves_ends_the_work(running, client, held, monkeypatch):
    stopped, whole = [], held.decoder.run

    def run(ask, tell, cancelled):
        stopped.append(cancelled)
        whole(ask, tell, cancelled)

    monkeypatch.setattr(held.decoder, "run", run)
    held.hold(12)
    try:
        with httpx.stream("POST", f"{running.url}/api/decode/run", json=ASK, timeout=60, trust_env=False) as answer:
            told = events(answer.iter_lines())
            while next(told)["type"] != "plain":
                pass
            assert not stopped[0]()
            assert not held.gate.is_set(), "tokens come before the end"
        wait_for(stopped[0])
        before = held.passes
    finally:
        held.free()
    assert asked(client, tokens=2)[-1]["type"] == "end"
    assert held.passes - before < 12, "the text that nobody reads was not written"


def test_without_a_model_there_is_a_sentence_and_the_rest_works(monkeypatch):
    empty = Running(server.create(None, missing="还没有写诗的模型", decoder=Decoder()))
    name = Decoder().name
    try:
        with httpx.Client(base_url=empty.url, timeout=60, trust_env=False) as client:
            for state, word in (("missing", "还没有模型"), ("broken", "不全")):
                monkeypatch.setattr(pretrained, "state", lambda name, state=state: state)
                about = client.get("/api/decode/about").json()
                assert word in about["missing"]
                assert f"dlopt model get {name}" in about["missing"]
                answer = client.post("/api/decode/run", json=ASK)
                assert (answer.status_code, answer.json()["error"]) == (503, about["missing"])
            assert client.get("/decode").status_code == client.get("/poem").status_code == 200
            monkeypatch.setattr(catalog.Method, "missing", lambda method: ("transformers",))
            said = client.get("/api/decode/about").json()["missing"]
            assert "需要 transformers" in said
            assert "dlopt[llm]" in said
    finally:
        empty.stop()


def test_the_model_is_read_once_at_the_first_request(held, monkeypatch):
    read = []

    def load(name):
        read.append(name)
        return held.model, ByteTokenizer()

    monkeypatch.setattr(pretrained, "load", load)
    one = Decoder()
    assert one.card()["parameters"] is None
    assert "135M" in one.card()["summary"]
    told = []
    for _ in range(2):
        one.run(Ask(**{**ASK, "tokens": 2}), told.append, lambda: False)
    assert [e["type"] for e in told if e["type"] in ("loading", "start", "end")] == [
        "loading", "start", "end", "start", "end"
    ]  # fmt: skip
    assert read == [one.name]
    assert (one.card()["parameters"], one.missing()) == (held.model.num_parameters(), "")

    def broken(name):
        raise DataUnavailable("a weight is lacking")

    monkeypatch.setattr(pretrained, "load", broken)
    monkeypatch.setattr(pretrained, "state", lambda name: "here")
    with pytest.raises(Refused, match="读不出来：a weight is lacking"):
        Decoder().run(Ask(**ASK), told.append, lambda: False)


def test_the_page_asks_no_other_host_for_anything(client):
    about = client.get("/api/decode/about").json()
    assert [d["name"] for d in about["drafters"]] == list(OFFERED)
    assert about["drafters"][0]["class"] == "PromptLookup"
    assert all(HAN.search(d["title"]) and HAN.search(d["about"]) for d in about["drafters"])
    assert about["examples"] == EXAMPLES
    assert (about["model"]["name"], about["missing"]) == ("tiny", "")
    page = client.get("/decode")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert 'href="/decode"' in client.get("/").text


@pytest.mark.parametrize("whole", ["春眠", "a😀b", "é", "plain"])
def test_a_character_comes_with_the_token_that_completes_it(whole):
    shown = Text(ByteTokenizer())
    pieces = [shown.add(byte) for byte in whole.encode()]
    assert pieces == [piece for c in whole for piece in ([""] * (len(c.encode()) - 1) + [c])]
    assert shown.rest() == ""


def test_bytes_that_are_no_text_are_told_as_the_tokenizer_tells_them():
    for tokens in (
        [0xE6, 0x98],
        [0xFF, 0xE6, 0x41, 0xF0, 0x9F, 0x98],
        [0xE6, 256],
        [256, 0x80, 0x80, 0x80, 0x80, 0x80],
    ):
        shown = Text(ByteTokenizer())
        pieces = [shown.add(token) for token in tokens]
        assert "".join(pieces) + shown.rest() == ByteTokenizer().decode(tokens)


def test_the_seconds_of_the_page_itself_are_not_decoding(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(work, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    told = []
    watch = work._Watch("plain", ByteTokenizer(), told.append, lambda: None)
    for _ in range(4):
        watch(Round(0, [65], 0, 0, "plain"))
    # one second from each call to the next, and one within
    assert [e["seconds"] for e in told] == [0, 1, 2, 3]
    assert watch.aside == 3

"""What the server answers: poems as they are written, sentences for what it cannot serve, and a bound on the line."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from dlopt.apps import server
from dlopt.apps.worker import Busy, Stopped, Worker
from tests.apps.conftest import Running
from tests.poetry.test_wish import BAD, HAN

WISH = {"text": "春眠不觉晓", "kind": "绝句"}


def write(client, **body):
    answer = client.post("/api/poem/write", json=body)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_poem_comes_character_by_character(client):
    events = write(client, **WISH, seed=1, count=2)
    assert [e["type"] for e in events] == ["start", *["stroke"] * 40, "poem", "poem", "end"]
    assert (events[0]["form"], events[0]["lines"], events[0]["length"], events[0]["seed"]) == ("五绝", 4, 5, 1)
    for number, poem in enumerate(e for e in events if e["type"] == "poem"):
        strokes = [e for e in events if e["type"] == "stroke" and e["poem"] == number]
        assert "".join(s["char"] for s in strokes) == "".join(poem["lines"])
        assert poem["faults"] == []
        assert {"lines", "form", "rhyme", "faults", "logprob", "free_logprob", "tones", "given", "source"} <= set(poem)


def test_it_streams_before_it_is_done(running, assistant):
    with httpx.stream("POST", f"{running.url}/api/poem/write", json=WISH, timeout=60, trust_env=False) as answer:
        assistant.gate.clear()
        try:
            lines = answer.iter_lines()
            assert json.loads(next(lines))["type"] == "start"
        finally:
            assistant.gate.set()
        assert json.loads(list(lines)[-1])["type"] == "end"


def test_the_seed_decides(client):
    one, two = (write(client, **WISH, seed=7)[:-1] for _ in range(2))
    assert one == two
    other = write(client, **WISH, seed=8)
    assert [e for e in one if e["type"] == "poem"] != [e for e in other if e["type"] == "poem"]


def test_alternatives_judgement_and_attention(client):
    poem = write(client, **WISH, seed=1)[-2]
    source = "".join(poem["source"])
    found = client.post("/api/poem/alternatives", json={**WISH, "written": source[:7]}).json()["alternatives"]
    assert 1 < len(found) <= 12
    assert {"char", "probability", "mark", "source"} == set(found[0])
    again = write(client, **WISH, seed=1, written=source[:7] + found[1]["source"])[-2]
    assert "".join(again["source"]).startswith(source[:7] + found[1]["source"])
    judged = client.post("/api/poem/judge", json={**WISH, "source": poem["source"]}).json()
    assert (judged["faults"], judged["logprob"]) == ([], None)
    seen = client.post("/api/poem/attention", json={**WISH, "source": poem["source"]}).json()
    assert (seen["layers"], seen["heads"], len(seen["tokens"])) == (2, 2, 3 + 24)


def test_pages_ask_no_other_host_for_anything(client):
    about = client.get("/api/poem/about").json()
    assert len(about["rhymes"]) == 30
    for path in ("/", "/poem"):
        page = client.get(path)
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "http://" not in page.text
        assert "https://" not in page.text
    assert 'href="/poem"' in client.get("/").text


SENDABLE = {name: wish for name, wish in BAD.items() if name != "half a surrogate"}


@pytest.mark.parametrize("name", SENDABLE)
def test_a_prompt_that_cannot_be_satisfied_gets_a_sentence(client, name):
    wish = SENDABLE[name]
    answer = client.post("/api/poem/write", json=dict(vars(wish)))
    assert 400 <= answer.status_code < 500
    assert HAN.search(answer.json()["error"])
    assert client.get("/api/poem/about").status_code == 200


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422), (b"{", 422), (b"[" * 20_000, 400), (b"null", 422), (b"[1]", 422), (b"\xff\xfe", 400),
        (b'{"text": 5}', 422), (b'{"text": ["a"]}', 422), (b'{"nothing": 1}', 422), (b'{"count": 7}', 422),
        (b'{"temperature": NaN}', 422), (b'{"seed": -1}', 422), (b'{"text": "\\ud83d"}', 422),
        (b'{"kind": "\\ud83d"}', 422), (b'{"text": "' + b"a" * 70_000 + b'"}', 413),
        (b'{"written": "' + b"a" * 200 + b'"}', 422),
    ],
)  # fmt: skip
def test_a_malformed_request_gets_a_sentence(client, content, status):
    answer = client.post("/api/poem/write", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (status, 422)
    assert HAN.search(answer.json()["error"])
    assert client.get("/api/poem/about").status_code == 200


HALF = "春眠不觉\\ud83d"


@pytest.mark.parametrize("path", ["judge", "attention"])
@pytest.mark.parametrize(
    "source", [f'["{HALF}"]', '["' + "春" * 21 + '"]', '["春"' + ', "春"' * 8 + "]", "[5]", "5", "[]"]
)
def test_malformed_lines_get_a_sentence(client, path, source):
    body = f'{{"text": "春眠不觉晓", "source": {source}}}'.encode()
    answer = client.post(f"/api/poem/{path}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert HAN.search(answer.json()["error"])


def test_a_body_without_a_stated_length_is_bounded_too(client):
    def endless():
        for _ in range(200):
            yield b"a" * 1000

    answer = client.post("/api/poem/write", content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_unknown_addresses_and_hosts(client):
    answer = client.get("/api/poem/nothing")
    assert (answer.status_code, answer.json()) == (404, {"error": "没有这个页面"})
    assert client.get("/api/poem/write").status_code == 405
    foreign = client.get("/", headers={"host": "evil.example"})
    assert (foreign.status_code, foreign.headers["x-frame-options"]) == (400, "DENY")


def test_fifty_requests_at_once_are_all_served(client, running):
    texts = ("春眠不觉晓", "海上生明月", "朝辞白帝彩云间", "abc", "")

    def one(number):
        with httpx.Client(base_url=running.url, timeout=240, trust_env=False) as own:
            body = {"text": texts[number % 5], "seed": number // 5}
            return number, own.post("/api/poem/write", json=body)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(one, range(50)))
    for number, answer in answers:
        if number % 5 > 2:
            assert answer.status_code == 422
        else:
            events = [json.loads(line) for line in answer.text.splitlines()]
            assert events[-1]["type"] == "end", "it was served whole"
            assert events[-2]["faults"] == []
    alone = write(client, text=texts[0], seed=3)
    mine = next(a for n, a in answers if n == 15)
    assert json.loads(mine.text.splitlines()[-2]) == alone[-2], "what others ask changes nothing"


def test_the_line_has_an_end(assistant):
    """One at work, two waiting; who comes then is told so, and is served once there is room."""
    small = Running(server.create(assistant, waiting=2))
    try:
        assistant.gate.clear()
        with httpx.Client(base_url=small.url, timeout=60, trust_env=False) as client, ThreadPoolExecutor(3) as pool:
            earlier = assistant.stopped
            first = pool.submit(client.post, "/api/poem/write", json=WISH)
            wait_for(lambda: assistant.stopped is not earlier)  # the first is at work
            others = [pool.submit(client.post, "/api/poem/write", json=WISH) for _ in range(2)]
            wait_for(lambda: small.app.state.worker.ahead == 2)
            refused = client.post("/api/poem/write", json=WISH)
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert "排队" in refused.json()["error"]
            assert client.get("/poem").status_code == 200, "pages need no place in the line"
            assistant.gate.set()
            for answer in (first, *others):
                assert json.loads(answer.result().text.splitlines()[-1])["type"] == "end"
            assert client.post("/api/poem/write", json=WISH).status_code == 200
    finally:
        assistant.gate.set()
        small.stop()


def test_a_reader_who_leaves_frees_the_worker(running, client, assistant):
    write(client, **WISH)
    before, earlier = assistant.finished, assistant.stopped
    assistant.gate.clear()
    try:
        with httpx.stream("POST", f"{running.url}/api/poem/write", json=WISH, timeout=60, trust_env=False) as answer:
            lines = answer.iter_lines()  # held: the answer is closed with it
            next(lines)
            wait_for(lambda: assistant.stopped is not earlier)
            assert not assistant.stopped()
        wait_for(lambda: assistant.stopped())
    finally:
        assistant.gate.set()
    assert write(client, **WISH)[-1]["type"] == "end"
    assert assistant.finished == before + 1, "the poem that nobody reads was not written"


def wait_for(what, most=60):
    end = time.monotonic() + most
    while not what():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def test_without_a_model_pages_say_how_to_get_one():
    empty = Running(server.create(None, missing="还没有写诗的模型：请先运行 dlopt model train poetry"))
    try:
        with httpx.Client(base_url=empty.url, timeout=60, trust_env=False) as client:
            assert client.get("/poem").status_code == 200
            assert "model train" in client.get("/api/poem/about").json()["missing"]
            answer = client.post("/api/poem/write", json=WISH)
            assert (answer.status_code, "model train" in answer.json()["error"]) == (503, True)
    finally:
        empty.stop()


def test_the_thread_outlives_what_a_job_raises():
    import asyncio

    async def use():
        worker = Worker(4)

        def wrong():
            raise ZeroDivisionError("on purpose")

        with pytest.raises(ZeroDivisionError):
            await worker.ask(wrong)
        assert await worker.ask(lambda: 5) == 5
        await asyncio.to_thread(worker.close)
        return worker

    worker = asyncio.run(use())
    assert not worker._thread.is_alive()
    assert worker._thread not in threading.enumerate()
    with pytest.raises(ValueError, match="waiting"):
        Worker(0)


def test_who_left_takes_no_place_in_the_line_and_who_waits_at_the_end_is_told():
    import asyncio

    async def use():
        worker, gate = Worker(2), threading.Event()
        held = worker.submit(lambda job: gate.wait(60) and job.tell("done"))
        await asyncio.to_thread(wait_for, lambda: worker.ahead == 0)
        gone = [worker.submit(lambda job: job.tell("late")) for _ in range(2)]
        with pytest.raises(Busy, match="2 requests wait"):
            worker.submit(lambda job: None)
        for job in gone:
            job.cancelled.set()
        assert worker.ahead == 0
        waiting = [asyncio.create_task(worker.ask(lambda: 5)) for _ in range(2)]
        await asyncio.sleep(0)
        assert worker.ahead == 2
        closing = asyncio.create_task(asyncio.to_thread(worker.close))
        for task in waiting:
            with pytest.raises(Stopped, match="ended"):
                await task
        with pytest.raises(Stopped, match="ended"):
            await worker.ask(lambda: 5)
        gate.set()
        await closing
        assert [event async for event in held.results()] == ["done"], "the job at work is finished"
        assert [event async for event in gone[0].results()] == []

    asyncio.run(asyncio.wait_for(use(), 60))

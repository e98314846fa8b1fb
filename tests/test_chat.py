"""rlgen.chat and rlgen.backends: one call for three answerers, through every fault of a network, without paying twice.

The server is a stub with OpenAI's shapes; each request takes the next behaviour of a script. `transformers serve` is asked too where its packages are.
"""
import importlib.util
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from helpers import line_of
from rlgen.backends import Fault, Request, one_line
from rlgen.chat import Decoding, Endpoint, Local, Oracle, Reply, Stopped, cache_file, complete, keep_replies, make_requests, plain_prompt, read_replies, spent
from rlgen.core import settings

SECRET = "sk-planted-0123456789abcdef"
QUICK = dict(backoff=0.001)
WORDS = [f"word{i} and more" for i in range(12)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args): pass

    def do_POST(self):
        stub, raw = self.server, self.rfile.read(int(self.headers["content-length"]))
        asked = json.loads(raw)
        with stub.lock:
            stub.asked.append((time.monotonic(), self.path, asked, self.headers.get("authorization")))
            fault = stub.script.pop(0) if stub.script else stub.always
            stub.now, stub.most = stub.now + 1, max(stub.most, stub.now + 1)
        time.sleep(stub.latency)
        try: self.answer(fault, asked, raw)
        finally:
            with stub.lock: stub.now -= 1

    def answer(self, fault, asked, raw):
        if callable(fault): fault = fault(asked)
        body, status, more, kind = self.server.body(self.path, asked, raw), 200, {}, "application/json"
        if fault == "slow": time.sleep(0.6)
        if fault == "drop": return self.connection.shutdown(socket.SHUT_RDWR)
        if fault == "half": body = body[: len(body) // 2]  # a whole HTTP answer around half a JSON
        if fault == "short": more, body = {"content-length": str(len(body))}, body[: len(body) // 2]  # the line drops in the middle
        if fault == "empty": body = b""
        if fault == "html": body, kind = b"<html>\n<h1>Bad gateway</h1>\n</html>", "text/html"
        if fault == "list": body = b"[1, 2]"
        if fault == "none": body = b'{"object": "chat.completion", "choices": null, "error": {"message": "upstream"}}'
        if fault == "echo": status, body = 500, json.dumps(dict(error=dict(message=f"you sent {self.headers['authorization']}\nto me"))).encode()
        if isinstance(fault, int): status, body = fault, json.dumps(dict(error=dict(message="a bad day", code="some_code"))).encode()
        if isinstance(fault, tuple): status, more, body = (*fault, b"{}")[:3]
        self.send_response(status)
        for k, v in (dict(**{"content-type": kind, "content-length": str(len(body))}) | more).items(): self.send_header(k, v)
        self.end_headers()
        self.wfile.write(body)
        if fault == "short": self.connection.shutdown(socket.SHUT_RDWR)


def shout(path, asked, raw) -> bytes:
    "OpenAI's answer: the prompt in capitals; tokens are words."
    text = asked["prompt"] if "prompt" in asked else asked["messages"][-1]["content"]
    usage = dict(prompt_tokens=len(text.split()), completion_tokens=len(text.split()), total_tokens=2 * len(text.split()))
    finish = "length" if asked["max_tokens"] == 1 else "stop"
    if "prompt" in asked: choice = dict(index=0, text=text.upper(), finish_reason=finish, logprobs=dict(top_logprobs=[{" A": -0.1, " B": -2.5}]) if asked.get("logprobs") else None)
    else: choice = dict(index=0, message=dict(role="assistant", content=text.upper()), finish_reason=finish)
    if "messages" in asked and asked.get("logprobs"):
        top = [dict(token=t, logprob=p, bytes=None) for t, p in (("A", -0.1), ("B", -2.5))]
        choice["logprobs"] = dict(content=[dict(token="A", logprob=-0.1, bytes=None, top_logprobs=top)])
    return json.dumps(dict(id="x", object="chat.completion", created=0, model=asked["model"], choices=[choice], usage=usage)).encode()


class Stub(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 64

    def __init__(self, script=(), always=None, latency=0.0, body=shout):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.always, self.latency, self.body = list(script), always, latency, body
        self.asked, self.lock, self.now, self.most = [], threading.Lock(), 0, 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        threading.Thread(target=self.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True).start()

    def handle_error(self, *args): pass

    def __exit__(self, *args):
        self.shutdown()
        super().__exit__(*args)


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for k in list(os.environ):
        if "proxy" in k.lower() or k in ("RLGEN_CHAT_KEY", "OPENAI_API_KEY"): monkeypatch.delenv(k)


def ask(stub, prompts=WORDS, concurrency=4, timeout=5.0, **more) -> list[Reply]:
    "complete() at a stub, with lines collected instead of printed."
    return complete(prompts, Endpoint("m", stub.url, timeout=timeout), concurrency=concurrency, **QUICK | dict(tell=lambda line: None) | more)


def texts(replies): return [r.text for r in replies]


SHOUTED = [w.upper() for w in WORDS]

# ---------------------------------------------------------------- records and keys


def test_importing_is_light():
    code = "import sys, rlgen.chat; print([m for m in ('torch', 'transformers', 'openai', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def keys(prompts, backend=None, **more): return [r.key for r in make_requests(prompts, Decoding(**more), backend or dict(name="a"))]


def test_everything_that_changes_an_answer_changes_its_key():
    talk = [dict(role="user", content="a")]
    all_keys = [keys(["a"]), keys(["b"]), keys([talk]), keys(["a"], dict(name="b")), *(keys(["a"], **m) for m in (
        dict(temperature=0.5), dict(top_p=0.5), dict(max_tokens=3), dict(stop=["x"]), dict(seed=1), dict(logprobs=2)))]  # fmt: skip
    assert len({k for ks in all_keys for k in ks}) == 10
    assert keys(["a", "b", "a"])[0] == keys(["a"])[0] and len(set(keys(["a"] * 5))) == 5 and len(set(keys(["a"] * 5, temperature=0.0))) == 1
    assert keys(["x", "a"])[1] == keys(["a"])[0], "the other prompts don't matter"


def test_a_lists_equal_prompts_have_their_own_noise_and_at_zero_are_asked_once():
    with Stub() as stub:
        hot = ask(stub, ["a"] * 3)
        assert len({r[2]["seed"] for r in stub.asked}) == 3 and spent(hot)["requests"] == 3
        cold = ask(stub, ["a"] * 3, temperature=0)
        assert len(stub.asked) == 4 and texts(cold) == ["A"] * 3 and spent(cold)["requests"] == 1 and spent(cold)["cached"] == 2


@pytest.mark.parametrize("prompts, word", [("one text", "list"), ([3], "prompt 0"), (["a", []], "prompt 1"), ([[dict(role="user")]], "prompt 0"), ([[dict(role="user", content=1)]], "prompt 0"), (["\ud83d"], "UTF-8")])
def test_what_is_no_prompt_is_named(prompts, word): assert word in line_of(complete, prompts, Oracle(str))


@pytest.mark.parametrize("options, word", [
    (dict(temprature=1), "did you mean 'temperature'"), (dict(concurency=1), "did you mean 'concurrency'"), (dict(temperature=-1), "at least 0"),
    (dict(top_p=0), "top_p"), (dict(max_tokens=0), "max_tokens"), (dict(rate=-1), "rate"), (dict(logprobs=99), "at most 20"), (dict(retries="x"), "whole number")])  # fmt: skip
def test_options_are_checked(options, word): assert word in line_of(complete, ["a"], Oracle(str), **options)


def test_no_prompts_no_replies(tmp_path): assert complete([], Oracle(str), cache=tmp_path, preview=3) == []


# ---------------------------------------------------------------- the oracle and the local model


def test_oracle_errs_at_its_rate_the_same_way_twice():
    prompts = [f"q{i}" for i in range(1000)]
    wrong = lambda p, rng: f"no {rng.random()}"  # noqa: E731
    runs = [complete(prompts, Oracle(str.upper, rate, wrong), seed=seed) for rate, seed in ((0.2, 0), (0.2, 0), (0.2, 1), (0.4, 0))]
    slips = [{i for i, r in enumerate(run) if r.text.startswith("no ")} for run in runs]
    assert texts(runs[0]) == texts(runs[1]) and 150 < len(slips[0]) < 250 and slips[0] != slips[2] and slips[0] < slips[3]
    assert texts(complete(prompts[::-1], Oracle(str.upper, 0.2, wrong))) == texts(runs[0])[::-1]
    assert runs[0][0].prompt_tokens == 1 and complete(["a b"], Oracle(lambda p: "x y z END w"), stop=("END",))[0].text == "x y z "
    assert "wrong=" in line_of(Oracle, str, 0.1) and "between" in line_of(Oracle, str, 1.5)


@pytest.fixture
def local(folders, double): return Local(str(folders("llama")), batch_size=3)


def test_local_is_the_same_in_any_batch_and_like_generate(local, tmp_path):
    from rlgen.lm import encode_prompt
    from rlgen.sampling import generate, sampler
    prompts = ["the cat", "a dog ran over the hill", "she writes", "the cat", "what did you eat today ?"]
    replies = complete(prompts, local, max_tokens=6, temperature=0.8, top_p=0.9, cache=tmp_path)
    alone = complete(prompts[:1], Local(local.lm, batch_size=1), max_tokens=6, temperature=0.8, top_p=0.9)
    assert replies[0] == alone[0] and replies[0].text != replies[3].text, "samples of one prompt differ"
    requests = make_requests(prompts, Decoding(max_tokens=6, temperature=0.8, top_p=0.9), local.identity())
    expected = generate(local.lm, [encode_prompt(local.lm, p) for p in prompts], sampler([r.seed for r in requests], 0.8, top_p=0.9), 6)
    assert texts(replies) == [x.text(local.lm.tokenizer) for x in expected]
    assert all(r.completion_tokens == 6 if r.finish == "length" else r.finish == "stop" for r in replies)
    again = complete(prompts, local, max_tokens=6, temperature=0.8, top_p=0.9, cache=tmp_path)
    assert all(r.cached for r in again) and texts(again) == texts(replies)


def test_local_other_weights_are_another_model(local, tmp_path):
    import torch
    complete(["the cat"], local, max_tokens=2, cache=tmp_path)
    with torch.no_grad(): next(local.lm.model.parameters()).view(-1)[0] += 1
    assert not complete(["the cat"], local, max_tokens=2, cache=tmp_path)[0].cached


def test_local_logprobs_stop_and_what_does_not_fit(local):
    first = complete(["the cat"], local, temperature=0, max_tokens=6, logprobs=3)[0]
    assert len(first.logprobs) == 4 and all(1 <= len(t) <= 3 and max(t.values()) < 0 for t in first.logprobs)
    import torch
    from rlgen.lm import encode_prompt
    exact = local.lm.model(torch.tensor([encode_prompt(local.lm, "the cat")])).logits[0, -1].log_softmax(-1)
    assert max(first.logprobs[0].values()) == pytest.approx(exact.max().item(), abs=1e-3)
    cut = complete(["the cat"], local, temperature=0, max_tokens=6, stop=(first.text[2],))[0]
    assert cut.text == first.text[:2].split(first.text[2])[0] and cut.finish == "stop"
    mixed = complete(["the cat", "word " * 300], local, temperature=0, max_tokens=6, tell=lambda line: None)
    assert mixed[0].text == first.text and mixed[1].finish == "error" and "tokens" in mixed[1].error


def test_local_uses_a_chat_template_where_there_is_one(local):
    talk = [dict(role="system", content="be kind"), dict(role="user", content="the cat")]
    assert plain_prompt(talk) == "system: be kind\nuser: the cat\nassistant:"
    plain = complete([talk, plain_prompt(talk)], local, temperature=0, max_tokens=3)
    assert plain[0] == plain[1]
    tokenizer = local.load().tokenizer
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    long, short = complete([talk, "the cat"], local, temperature=0, max_tokens=3)
    said = complete([[dict(role="user", content="the cat")]], local, temperature=0, max_tokens=3)[0]
    assert short == said and short.prompt_tokens != plain[0].prompt_tokens and long.prompt_tokens > short.prompt_tokens


# ---------------------------------------------------------------- the endpoint


def test_chat_and_plain_completions_send_what_they_should():
    with Stub() as stub:
        talk = [dict(role="system", content="s"), dict(role="user", content="one two END three")]
        replies = complete(["hello", talk], Endpoint("m", stub.url + "/"), max_tokens=9, stop=("END",), temperature=0.5, top_p=0.9, seed=3, logprobs=2, concurrency=1)
        assert texts(replies) == ["HELLO", "ONE TWO "] and replies[1].finish == "stop" and replies[0].logprobs == [{"A": -0.1, "B": -2.5}]
        _, path, body, auth = stub.asked[0]
        assert path == "/v1/chat/completions" and auth == "Bearer none" and body["messages"] == [dict(role="user", content="hello")]
        assert {k: body[k] for k in ("model", "max_tokens", "stop", "temperature", "top_p", "logprobs", "top_logprobs")} == dict(model="m", max_tokens=9, stop=["END"], temperature=0.5, top_p=0.9, logprobs=True, top_logprobs=2)
        old = complete(["hello", talk], Endpoint("m", stub.url, chat=False), max_tokens=1, logprobs=2, concurrency=1)
        assert stub.asked[2][1] == "/v1/completions" and stub.asked[3][2]["prompt"] == plain_prompt(talk) and old[0] == Reply("HELLO", "length", 1, 1, logprobs=[{" A": -0.1, " B": -2.5}])
        complete(["hello"], Endpoint("m", stub.url, extra=dict(top_p=None, min_p=0.1)))
        assert "top_p" not in stub.asked[-1][2] and stub.asked[-1][2]["min_p"] == 0.1 and "stop" not in stub.asked[-1][2]


def test_concurrency_keeps_order_and_is_five_times_as_fast():
    with Stub(latency=0.1) as stub:
        stub.always = lambda asked: time.sleep(random.random() / 100)
        prompts = [f"p{i}" for i in range(80)]
        ask(stub, prompts[:2])  # warm: the client's import
        start = time.monotonic()
        for p in prompts[:8]: ask(stub, [p], concurrency=1)
        alone, start = 8 / (time.monotonic() - start), time.monotonic()
        stub.most = 0
        replies = ask(stub, prompts, concurrency=8)
        together = 80 / (time.monotonic() - start)
        assert texts(replies) == [p.upper() for p in prompts] and stub.most == 8
        assert together >= 5 * alone, (together, alone)


def test_rate_is_kept():
    with Stub() as stub:
        backend = Endpoint("m", stub.url)
        complete(WORDS[:1], backend)
        complete(WORDS[:6], backend, rate=25)
        at = [t for t, *_ in stub.asked[1:]]
        assert at[-1] - at[0] >= 5 / 25 - 0.02


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("fault", [429, 500, 503, 408, "drop", "half", "short", "empty", "html", "list", "none", "echo", "slow"])
def test_each_fault_is_tried_again(fault):
    with Stub([None, fault, fault]) as stub:
        assert texts(ask(stub, WORDS[:3], concurrency=1, timeout=0.3)) == SHOUTED[:3]
        assert len(stub.asked) == 5


def test_all_faults_at_once_and_a_resumption(tmp_path):
    "Half of all requests meet a fault, two prompts never get an answer; the second run asks only those."
    faults = [429, 500, "drop", "half", "short", "empty", "html", "none"]
    bad = lambda asked: 500 if asked["messages"][0]["content"] in WORDS[4:6] else None  # noqa: E731
    with Stub([f for x in faults for f in (bad, x)], always=bad) as stub:
        told = []
        replies = ask(stub, cache=tmp_path, retries=10, tell=told.append)
        assert texts(replies) == [*SHOUTED[:4], "", "", *SHOUTED[6:]] and replies[4].finish == "error" and "500" in replies[4].error
        assert told == ["2 of 12 prompts have no reply, the last: status 500 - a bad day; run again to ask only these"] and spent(replies)["errors"] == 2
        stub.script, stub.always, stub.asked = [], None, []
        assert texts(ask(stub, cache=tmp_path)) == SHOUTED and len(stub.asked) == 2


def test_retry_after_holds_for_everybody():
    with Stub([(429, {"retry-after": "0.6"})], always=lambda asked: time.sleep(0.15)) as stub:
        assert texts(ask(stub, WORDS[:5], concurrency=2)) == SHOUTED[:5]
        assert all(t - stub.asked[0][0] >= 0.5 for t, *_ in stub.asked[2:]), "the second was on its way already"
    with Stub([(503, {"retry-after": "3600"})], always=lambda asked: time.sleep(0.3)) as stub: assert "3600 s" in line_of(ask, stub) and len(stub.asked) <= 8, "four at once; a busy machine may let each start one more"


def test_backoff_grows_and_differs_between_prompts():
    with Stub(always=500) as stub:
        ask(stub, WORDS[:1], concurrency=1, retries=3, backoff=0.08)
        at = [t for t, *_ in stub.asked]
        gaps = [b - a for a, b in zip(at, at[1:])]
        assert len(at) == 4 and all(g >= 0.75 * 0.08 * 2**i for i, g in enumerate(gaps))


@pytest.mark.parametrize("status, word", [(401, "RLGEN_CHAT_KEY"), (403, "key"), (404, "model's name")])
def test_what_never_helps_stops_at_once(status, word):
    with Stub(always=status) as stub:
        text = line_of(ask, stub, concurrency=2)
        assert word in text and "0 of 12" in text and len(stub.asked) <= 2


def test_used_up_quota_stops_at_once():
    with Stub(always=(429, {}, b'{"error": {"message": "you are out of it", "code": "insufficient_quota"}}')) as stub:
        assert "out of it" in line_of(ask, stub, concurrency=1) and len(stub.asked) == 1


def test_nobody_there():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{s.getsockname()[1]}/v1"
    start = time.monotonic()
    assert "nobody answers" in line_of(complete, WORDS, Endpoint("m", url), tell=lambda line: None) and time.monotonic() - start < 3


def test_the_url_may_come_from_the_settings(monkeypatch):
    with Stub() as stub:
        monkeypatch.setenv("RLGEN_CHAT_BASE_URL", stub.url)
        settings.cache_clear()
        try: assert texts(complete(["a"], Endpoint("m"))) == ["A"]
        finally: settings.cache_clear()


def test_a_server_without_counts_or_with_an_empty_reply():
    bare = lambda path, asked, raw: json.dumps(dict(choices=[dict(message=dict(content=None if "word0" in str(asked) else "a b"), finish_reason="stop")])).encode()  # noqa: E731
    with Stub(body=bare) as stub: assert ask(stub, WORDS[:2]) == [Reply("", "stop", 3, 0), Reply("a b", "stop", 3, 2)]


def test_a_filtered_reply_is_an_error_and_not_kept(tmp_path):
    filtered = lambda path, asked, raw: shout(path, asked, raw).replace(b'"stop"', b'"content_filter"')  # noqa: E731
    with Stub(body=filtered) as stub: assert "filter" in ask(stub, WORDS[:1], cache=tmp_path)[0].error and not (tmp_path / "m.jsonl").exists()


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host/v1", "http://", "http://[::1"])
def test_bad_urls(url): assert "base URL" in line_of(Endpoint, "m", url)


def test_the_first_five_failing_stop_the_run_but_one_bad_prompt_does_not():
    with Stub(always=500) as stub:
        assert "the first 5 prompts all failed" in line_of(ask, stub, concurrency=1, retries=1) and len(stub.asked) == 10
    with Stub(always=lambda asked: 400 if "word3" in asked["messages"][0]["content"] else None) as stub:
        replies = ask(stub)
        assert [bool(r.error) for r in replies] == [i == 3 for i in range(12)] and len(stub.asked) == 12, "400 is not tried again"


def test_a_server_that_dies_stops_the_run_and_what_was_paid_is_kept(tmp_path):
    with Stub([None] * 3, always=500) as stub:
        with pytest.raises(Stopped) as e: ask(stub, [f"p{i}" for i in range(60)], concurrency=1, retries=0, cache=tmp_path)
        assert "25 prompts in a row" in str(e.value) and "3 of 60" in str(e.value) and "run again" in str(e.value) and texts(e.value.replies)[:4] == ["P0", "P1", "P2", ""]
        assert len(read_replies(cache_file(tmp_path, "m"))) == 3


# ---------------------------------------------------------------- the cache


def test_the_cache_pays_nothing_twice_and_reads_plainly(tmp_path):
    with Stub() as stub:
        first = ask(stub, cache=tmp_path)
        again = ask(stub, [*WORDS[::-1], "new"], cache=tmp_path)
        assert len(stub.asked) == 13 and texts(again) == [*SHOUTED[::-1], "NEW"] and [r.cached for r in again] == [True] * 12 + [False]
        assert not any(r.cached for r in first) and spent(again) == dict(requests=1, cached=12, errors=0, prompt_tokens=1, completion_tokens=1)
        ask(stub, WORDS[:1], cache=tmp_path, seed=1)
        assert len(stub.asked) == 14
    rows = [json.loads(x) for x in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert set(rows[0]) == {"key", "backend", "prompt", "settings", "sample", "reply", "time"} and rows[-1]["settings"]["seed"] == 1
    assert rows[0]["reply"] == dict(text=rows[0]["prompt"].upper(), finish="stop", prompt_tokens=3, completion_tokens=3)


def test_torn_and_foreign_lines_are_passed_over(tmp_path):
    with Stub() as stub:
        ask(stub, WORDS[:3], cache=tmp_path, concurrency=1)
        path = tmp_path / "m.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text(lines[0] + "[]\n{}\n\n" + lines[1] + lines[2][:60])
        told = []
        assert texts(ask(stub, WORDS[:3], cache=tmp_path, tell=told.append)) == SHOUTED[:3] and len(stub.asked) == 4
        assert len(told) == 1 and "3 in all" in told[0] and "m.jsonl:6" in told[0]
        assert path.read_text().count("\n") == 6 and len(read_replies(path, told.append)) == 3


def test_names_are_safe_file_names(tmp_path):
    names = ["a/b", "a-b", "../../etc/x", "a b", "", "ü", "x" * 300, "a:b"]
    files = [cache_file(tmp_path, n) for n in names]
    assert len(set(files)) == len(names) and all(f.parent == tmp_path and f.resolve().parent == tmp_path.resolve() and len(f.name) < 100 for f in files)


def test_several_writers_share_a_file(tmp_path):
    path = tmp_path / "a.jsonl"
    requests = make_requests([f"p{i} ü\u2028" for i in range(40)], Decoding(), {})
    write = lambda part: [keep_replies(path, "a", [(r, Reply("x" * 3000))]) for r in part]  # noqa: E731
    threads = [threading.Thread(target=write, args=(requests[i::4],)) for i in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert set(read_replies(path, pytest.fail)) == {r.key for r in requests}


CHILD = "import sys; from rlgen.chat import *; complete([f'p{i}' for i in range(40)], Endpoint('m', sys.argv[1]), cache=sys.argv[2], concurrency=4, tell=lambda x: None)"


def test_a_killed_run_pays_nothing_twice(tmp_path):
    with Stub(latency=0.05) as stub:
        child = subprocess.Popen([sys.executable, "-c", CHILD, stub.url, str(tmp_path)])
        while len(stub.asked) < 17: time.sleep(0.01)
        child.kill()
        child.wait()
        time.sleep(0.1)
        paid = Counter(a["messages"][0]["content"] for _, _, a, _ in stub.asked)
        kept = len(read_replies(tmp_path / "m.jsonl", lambda line: None))
        assert kept >= 8 and sum(paid.values()) - kept <= 8, "at most what was on its way is lost"
        replies = ask(stub, [f"p{i}" for i in range(40)], cache=tmp_path)
        assert texts(replies) == [f"P{i}" for i in range(40)] and sum(r.cached for r in replies) == kept and len(stub.asked) == sum(paid.values()) + 40 - kept


def test_ctrl_c_keeps_everything(tmp_path, request):
    main, before = threading.main_thread().ident, signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    def interrupt(asked):
        if asked["messages"][0]["content"] == "p10": signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.05)
    with Stub(always=interrupt) as stub:
        told = []
        with pytest.raises(KeyboardInterrupt): ask(stub, [f"p{i}" for i in range(40)], cache=tmp_path, tell=told.append)
        assert 8 <= len(stub.asked) < 40 and len(read_replies(tmp_path / "m.jsonl")) == len(stub.asked), "also what was on its way"
        assert "on their way" in told[0]


def test_ctrl_c_in_the_middle_of_a_write_keeps_it_too(tmp_path, monkeypatch):
    calls = []
    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2: raise KeyboardInterrupt
        keep_replies(*args)
    monkeypatch.setattr("rlgen.chat.keep_replies", interrupted)
    with Stub() as stub:
        with pytest.raises(KeyboardInterrupt): ask(stub, cache=tmp_path, concurrency=2)
        assert len(read_replies(tmp_path / "m.jsonl")) == len(stub.asked) < 8


def test_a_full_disk_is_one_line_and_hands_over_what_there_is(tmp_path, monkeypatch):
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr("rlgen.chat.append_jsonl", full)
    with Stub() as stub, pytest.raises(Stopped) as e: ask(stub, WORDS[:3], cache=tmp_path, concurrency=1)
    assert "No space left" in str(e.value) and "\n" not in str(e.value) and texts(e.value.replies)[0] == "WORD0 AND MORE"


def test_ctrl_c_in_the_middle_of_an_oracle_keeps_the_batches_before(tmp_path):
    def answer(prompt):
        if prompt == "p300": raise KeyboardInterrupt
        return prompt
    with pytest.raises(KeyboardInterrupt): complete([f"p{i}" for i in range(600)], Oracle(answer), cache=tmp_path)
    assert len(read_replies(tmp_path / "oracle.jsonl")) == 256


TWO = """import sys
from rlgen.chat import *
asked = []
replies = complete(["a", "b"], Oracle(lambda p: asked.append(p) or p.upper()), cache=sys.argv[1])
replies += complete(["my boss", "my aunt sold", "my"], Local("zoo/posts", batch_size=1), cache=sys.argv[1], max_tokens=4, logprobs=1)
sys.stdout.write(f"{asked} {[(r.text, len(r.logprobs)) for r in replies]}\\n")  # in one write: two processes share the line
sys.stdout.flush()"""


@pytest.mark.slow
def test_of_two_processes_one_asks_and_both_are_answered(tmp_path):
    env = os.environ | dict(ACCELERATE_USE_CPU="true", RLGEN_DEVICE="cpu")
    (tmp_path / "two.py").write_text(TWO)
    def said(*how): return subprocess.run([sys.executable, *how, tmp_path / "two.py", tmp_path / how[-1]], capture_output=True, text=True, check=True, env=env, timeout=120).stdout.split("\n")[:-1]
    alone, both = said("-u"), said("-m", "torch.distributed.run", "--nproc_per_node", "2")
    assert sorted(both) == sorted([alone[0], alone[0].replace("['a', 'b']", "[]", 1)]) and alone[0].startswith("['a', 'b'] [('A', 0), ('B', 0)")
    assert all(p.read_text().count("\n") in (2, 3) for p in (tmp_path / "2").iterdir() if p.suffix == ".jsonl")


# ---------------------------------------------------------------- budget and preview


def test_the_budget_in_requests_counts_every_attempt(tmp_path):
    with Stub([None, 500, None]) as stub:
        text = line_of(ask, stub, max_requests=5, cache=tmp_path)
        assert len(stub.asked) == 5 and "max_requests = 5" in text and "4 of 12" in text and "run again" in text
        assert texts(ask(stub, cache=tmp_path, max_requests=8)) == SHOUTED and len(stub.asked) == 13
    text = line_of(complete, WORDS, Oracle(str), max_requests=5)
    assert "5 of 12" in text and "cache=" in text


@pytest.mark.parametrize("concurrency", [1, 8])
def test_the_budget_in_tokens_is_never_exceeded(concurrency):
    with Stub() as stub:
        with pytest.raises(Stopped) as e: ask(stub, max_total_tokens=60, max_tokens=10, concurrency=concurrency)
        total = sum(r.prompt_tokens + r.completion_tokens for r in e.value.replies)
        assert 30 < total <= 60 and total == 6 * len(stub.asked) and "max_total_tokens = 60" in str(e.value)
        assert texts(ask(stub, max_total_tokens=100, max_tokens=10, concurrency=concurrency)) == SHOUTED, "what is charged at first is given back"


def test_the_preview_comes_before_the_spend(tmp_path):
    with Stub() as stub:
        told = []
        def no(line):
            told.append((len(stub.asked), line))
            return False
        text = line_of(ask, stub, preview=2, tell=no, cache=tmp_path)
        assert len(stub.asked) == 2 and [n for n, _ in told] == [2, 2, 2] and "2 of 12" in text
        assert told[0][1] == "preview 1: word0 and more -> WORD0 AND MORE" and "10 to go, about 60 tokens" in told[2][1]
        assert texts(ask(stub, preview=2, tell=lambda line: told.append(line), cache=tmp_path)) == SHOUTED and len(stub.asked) == 12


def test_progress_shows_cost(capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    with Stub([500]) as stub: ask(stub, WORDS[:4], label="teacher")
    shown = capsys.readouterr().err
    assert "teacher" in shown and "requests=5" in shown and "tokens=24" in shown and "errors=0" in shown


# ---------------------------------------------------------------- the key


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "RLGEN_CHAT_KEY"])
def test_the_key_is_sent_and_appears_nowhere(variable, tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.setenv(variable, f" {SECRET}\n")
    caplog.set_level(logging.DEBUG)
    said = []
    repeat = lambda path, asked, raw: shout(path, asked, raw).replace(b"WORD2", SECRET.encode())  # noqa: E731
    with Stub(["echo"], always=lambda asked: "echo" if "word1 " in asked["messages"][0]["content"] else None, body=repeat) as stub:
        backend = Endpoint("m", stub.url)
        replies = complete(WORDS, backend, cache=tmp_path, retries=1, tell=said.append, preview=2, label="x", concurrency=2, **QUICK)
        assert stub.asked[0][3] == f"Bearer {SECRET}" and "you sent Bearer <" in replies[1].error and replies[2].text == f"<{variable}> AND MORE"
        stub.always = (401, {})
        with pytest.raises(Stopped) as e: complete(["new"], backend, cache=tmp_path, tell=said.append, **QUICK)
    out = capfd.readouterr()
    everything = [*(p.read_text() for p in tmp_path.rglob("*") if p.is_file()), *said, repr(backend), repr(replies), str(e.value), repr(e.value.replies), out.out, out.err, caplog.text]
    assert not [x for x in everything if SECRET in x]


def test_the_key_has_no_place_in_urls_and_must_be_printable(monkeypatch):
    for url in (f"http://u:{SECRET}@host/v1", f"https://host/v1?key={SECRET}"):
        text = line_of(Endpoint, "m", url)
        assert SECRET not in text and "environment" in text
    monkeypatch.setenv("OPENAI_API_KEY", "sk-übel")
    with Stub() as stub:
        text = line_of(ask, stub)
        assert "OPENAI_API_KEY" in text and "übel" not in text and not stub.asked


def test_one_line():
    assert one_line("a\n b\t c") == "a b c" and len(one_line("x" * 500)) == 200 and str(Fault("x", pause=2)) == "x" and Request("a", Decoding()).seed == Request("a", Decoding()).seed


# ---------------------------------------------------------------- a real server


@pytest.fixture(scope="module")
def served(tmp_path_factory, models_dir):
    "`transformers serve` on loopback with two models: (url, stories' folder, a folder with a chat template)."
    missing = [m for m in ("fastapi", "uvicorn", "starlette") if not importlib.util.find_spec(m)]
    if missing: pytest.skip(f"transformers serve needs {', '.join(missing)}: pip install -e '.[serve]'")
    from tiny_models import make_model
    folder = make_model("llama", tmp_path_factory.mktemp("chat"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    with open(log, "w") as f:
        env = os.environ | dict(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
        child = subprocess.Popen([Path(sys.executable).parent / "transformers", "serve", "--port", str(port), "--host", "127.0.0.1", "--device", "cpu"], stdout=f, stderr=f, env=env)
    try:
        for _ in range(600):
            assert child.poll() is None, log.read_text()[-2000:]
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            except OSError: time.sleep(0.1)
            else: break
        yield f"http://127.0.0.1:{port}/v1", str(models_dir / "stories260k"), str(folder)
    finally:
        child.terminate()
        child.wait(10)


def forward(url):
    "A body that the real server made: the stub becomes a proxy in front of it."
    def body(path, asked, raw):
        request = urllib.request.Request(url.removesuffix("/v1") + path, raw, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer: return answer.read()
    return body


@pytest.mark.slow
def test_a_real_server_behind_a_bad_line(served, tmp_path):
    url, stories, chatty = served
    prompts = ["Once upon a time", "The little dog", "Lily and Tom", "One day, a bird"]
    plain = complete(prompts, Endpoint(stories, url, chat=False, name="stories"), temperature=0, max_tokens=12, concurrency=4)
    assert all(r.text and r.finish == "length" and r.completion_tokens == 12 and r.prompt_tokens > 2 for r in plain)
    said = complete(["the cat", [dict(role="system", content="be kind"), dict(role="user", content="the cat")]], Endpoint(chatty, url), temperature=0.0, max_tokens=5)
    assert not any(r.error for r in said) and said[1].prompt_tokens > said[0].prompt_tokens
    with Stub([None, 429, "half", "drop", "empty", "html", 500, "short"], body=forward(url)) as proxy:
        bad = complete(prompts, Endpoint(stories, proxy.url, chat=False, name="stories"), temperature=0, max_tokens=12, concurrency=3, cache=tmp_path, **QUICK)
        assert bad == plain and len(proxy.asked) == 11
        again = complete(prompts, Endpoint(stories, proxy.url, chat=False, name="stories"), temperature=0, max_tokens=12, cache=tmp_path)
        assert all(r.cached for r in again) and texts(again) == texts(plain) and len(proxy.asked) == 11
    assert "/no/such/model" in line_of(complete, ["a"], Endpoint("/no/such/model", url), retries=0, give_up=1)

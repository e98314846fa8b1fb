"""`rlgen judge` from two files and a server to verdicts, table and picture."""
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlgen.cli import main
from rlgen.core import jsonl, settings
from rlgen.judge import framed_texts

KEY = "sk-test-do-not-write-me-down"


@pytest.fixture
def server():
    "An OpenAI-compatible server that prefers the longer answer and doesn't understand the third prompt; .asked holds what it was sent."
    class Handler(BaseHTTPRequestHandler):
        asked = []

        def log_message(self, *args): pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            Handler.asked.append((body, self.headers["authorization"]))
            x = framed_texts(body["messages"][-1]["content"])
            text = "hm" if x["request"] == "p2" else json.dumps(dict(better=1 if len(x["answer 1"]) > len(x["answer 2"]) else 2))
            data = json.dumps(dict(id="a", object="chat.completion", created=0, model="m", choices=[dict(index=0, message=dict(role="assistant", content=text), finish_reason="stop")],
                                   usage=dict(prompt_tokens=5, completion_tokens=2, total_tokens=7))).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(data)

    there = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=there.serve_forever, daemon=True).start()
    there.asked, there.url = Handler.asked, f"http://127.0.0.1:{there.server_address[1]}/v1"
    yield there
    there.shutdown()
    there.server_close()


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A machine whose cache and results lie in a temporary folder, with a key in its environment."
    for name, value in dict(RLGEN_CACHE_DIR=str(tmp_path / "cache"), RLGEN_RESULTS_DIR=str(tmp_path / "results"), RLGEN_CHAT_KEY=KEY, RLGEN_CHAT_BASE_URL="").items(): monkeypatch.setenv(name, value)
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


def files(folder) -> list[str]:
    for name, texts in (("pargs", ["long one", "x", "y"]), ("greedy", ["short", "longer", "z"])):
        (folder / f"generation_{name}.jsonl").write_text(jsonl([dict(seed=0, item=i, prompt=f"p{i}", completion=t) for i, t in enumerate(texts)]))
    return [str(folder / f"generation_{name}.jsonl") for name in ("pargs", "greedy")]


def test_judge(server, here, capsys):
    words = ["judge", *files(here), "--judge-model", "a-judge", "--judge-url", server.url, "--criterion", "The longer one."]
    assert main(words) == 0
    shown = capsys.readouterr().out
    (folder,) = (here / "results" / "runs" / "judge").iterdir()
    found = json.loads((folder / "judge.json").read_text())
    (row,) = found["table"]
    assert [row[k] for k in ("a", "b", "n", "wins", "losses", "ties", "failed")] == ["pargs", "greedy", 3, 1, 1, 0, 1] and found["judge"] == "a-judge"
    assert row["win"]["rate"] == 0.5 and row["tokens"] == dict(prompt=30, completion=12) and "0.50 [0.09, 0.91]" in shown and "1 of 3" in shown
    assert {p.name for p in folder.iterdir()} == {"judge.json", "judge.png", "verdicts.jsonl"}
    assert len(server.asked) == 6 and all(b["temperature"] == 0 and b["model"] == "a-judge" and "The longer one." in b["messages"][-1]["content"] and key == f"Bearer {KEY}" for b, key in server.asked)
    assert not [p for p in here.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert main(words) == 0 and len(server.asked) == 6 and before == {p.name: p.read_bytes() for p in folder.iterdir()}, "from the cache, to the byte"
    assert main([*words, "--n", "1", "--out", str(here / "out")]) == 0 and json.loads((here / "out" / "judge.json").read_text())["table"][0]["n"] == 1


@pytest.mark.parametrize("words, expected", [
    (["--judge-model", ""], "no judge"), ([], "no judge"), (["--judge-model", "nowhere/model"], "nowhere/model"), (["--judge-model", "m", "--judge-url", "localhost:8000"], "localhost:8000"),
    (["--judge-model", "m", "--judge-url", "http://127.0.0.1:9/v1"], "127.0.0.1:9"), (["--judge-model", "m", "--judge-url", "http://127.0.0.1:9/v1", "--n", "-1"], "n = -1"),
])
def test_mistakes_are_one_line(words, expected, here, capsys):
    assert main(["judge", *files(here), *words]) == 2
    told = capsys.readouterr().err
    assert expected in told and told.strip().splitlines()[-1].startswith("rlgen: ") and KEY not in told and "Traceback" not in told


def test_files_that_do_not_fit(here, capsys):
    a, b = files(here)
    (here / "other.jsonl").write_text(jsonl([dict(seed=0, item=i, prompt="else", completion="x") for i in range(3)]))
    for second, expected in ((here / "other.jsonl", "another prompt"), (here / "none.jsonl", "no such file")):
        assert main(["judge", a, str(second), "--judge-model", "m", "--judge-url", "http://127.0.0.1:9/v1"]) == 2
        told = capsys.readouterr().err
        assert expected in told and told.count("\n") == 1


def test_a_local_judge_that_cannot_judge(here, capsys):
    "The shipped summariser answers with words of its own: every pair fails, and is told to."
    pytest.importorskip("torch")
    assert main(["judge", *files(here), "--judge-model", "zoo/posts", "--n", "1", "--max-tokens", "4", "--out", str(here / "out")]) == 0
    row = json.loads((here / "out" / "judge.json").read_text())["table"][0]
    assert row["failed"] == 1 and row["win"]["rate"] is None and row["replies"]["parsed"] == 0

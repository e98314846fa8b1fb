"rlgen.lapdog.benchmark: both ways write the same replies and arrive at the same gradients, do the work they say, and leave the weights alone."
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_lapdog_reader import bart
from tiny_models import make_model

from rlgen.core import RlgenError
from rlgen.lapdog import benchmark
from rlgen.lapdog.benchmark import Setting, Taken, gradient_gap, our_step, plain_logprobs, plain_replies, plain_step
from rlgen.lapdog.data import Dialogue, Story
from rlgen.lapdog.joint import Recipe
from rlgen.lapdog.reader import PLAIN, build_reader, encode_pairs, pair_ids, prefix_ids, reply_logprobs
from rlgen.lapdog.reader import begin as beginning
from rlgen.lapdog.retriever import Library, Retriever, build_encoder
from rlgen.lapdog.reward import Reward
from rlgen.lm import load_lm, word_tokenizer
from rlgen.sampling import generate, sampler
from rlgen.worlds import lapdog as world

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="module")
def parts(double):
    "Readers, a retriever, a library that has been read and dialogues."
    from rlgen.core import settings
    settings.cache_clear()
    tok = word_tokenizer([*world.vocabulary(), "dialog with R's persona: R: <extra_id_0> story title: story:"])
    library = Library([Story(t.id, t.title, t.text, t.corpus) for i in range(2) for t in world.tales(f"valid-{i}")])
    retriever = Retriever(build_encoder(tok, width=16), query="all", temperature=1.0)
    readers = [build_reader(tok, 16, 1, seed=i) for i in (0, 1)]
    for m in (*readers, retriever.encoder): m.model.double()
    library.refresh(retriever)
    return *readers, retriever, library, [Dialogue(t.id, t.question, (t.answer,), t.corpus) for t in world.make_talks("valid", 3, corpora=2)]


def setting(parts, **recipe) -> Setting: return Setting(*parts, recipe=Recipe(**dict(documents=3, replies=2, max_new_tokens=6, kl_coef=0.1) | recipe), seed=3)


def weights(s): return torch.cat([p.detach().flatten() for m in s.models.values() for p in m.parameters()])


@pytest.mark.parametrize("recipe", [{}, dict(loss_type="grpo"), dict(loss_type="dr_grpo", advantage="mean"), dict(estimator="iid", documents=2, replies=3), dict(temperature=0.7, kl="ratio_k3", advantage="group_std")], ids=str)
def test_the_same_step(parts, recipe):
    "Replies, stories and rewards are equal, gradients to seven places (T5 has a softmax in single precision whatever it is given), and nothing has moved."
    s = setting(parts, **recipe)
    before = weights(s)
    ours, plain = our_step(s), plain_step(s)
    assert [x.stories.tolist() for x in ours.groups] == [x.stories.tolist() for x in plain.groups]
    assert torch.equal(torch.stack([x.rewards for x in ours.groups]), torch.stack([x.rewards for x in plain.groups]))
    assert all(torch.allclose(a.old, b.old, atol=1e-12) for a, b in zip(ours.groups, plain.groups))
    assert ours.gradients["reader"].norm() > 1e-3 and ours.gradients["retriever"].norm() > 1e-6
    assert max(gradient_gap(ours, plain).values()) < 1e-7 and gradient_gap(ours, plain)["retriever"] < 1e-12
    assert torch.equal(weights(s), before)


def test_single_precision(parts):
    "What the run notebook asks for."
    s = setting(parts)
    for m in (s.reader, s.reference, s.retriever.encoder): m.model.float()
    try: gaps = gradient_gap(our_step(s), plain_step(s))
    finally:
        for m in (s.reader, s.reference, s.retriever.encoder): m.model.double()
    assert 0 < max(gaps.values()) < 1e-4


def test_a_query_side_retriever(parts):
    reader, reference, retriever, library, talks = parts
    frozen = Retriever(retriever.encoder, side="query", query="all", temperature=1.0)
    s = setting((reader, reference, frozen, library, talks))
    assert max(gradient_gap(our_step(s), plain_step(s)).values()) < 1e-7


def test_the_work_is_counted(parts):
    "Every pair once for each of three purposes; plainly once a reply, in a call for each story or a pass for each reply."
    s = setting(parts)
    ours, plain = our_step(s), plain_step(s)
    assert (ours.passes, ours.texts) == (3, 3 * 3 * 3) and (plain.passes, plain.texts) == (9 + 2 * 18, 3 * 18)
    assert set(ours.seconds) == set(plain.seconds) == {"experience", "reference", "reader", "retriever"}
    assert ours.total == pytest.approx(sum(ours.seconds.values())) and min(ours.seconds.values()) > 0


def test_one_backward_pass_for_each_story(parts, monkeypatch):
    s, seen = setting(parts), []
    spied = benchmark.accumulate
    monkeypatch.setattr(benchmark, "accumulate", lambda model, rows, loss, micro, acc: seen.append((len(rows), micro)) or spied(model, rows, loss, micro, acc))
    plain_step(s), our_step(s)
    assert seen == [(9, 1), (3, 1), (3, 3), (3, 3)]


@pytest.mark.parametrize("arch", ["t5", "bart"])
def test_the_librarys_generate_draws_our_tokens(arch, tmp_path):
    "To the limit, and where a text ends early."
    lm = bart() if arch == "bart" else load_lm(str(make_model(arch, tmp_path, seed=3)))
    lm.model.generation_config.eos_token_id = None
    pairs, recipe = [[5, 6, 7, 8], [9, 4]], Recipe(temperature=0.8, max_new_tokens=7, templates=PLAIN)
    for _ in range(2):
        ours = generate(lm, [[i] for i in (0, 0, 1, 1)], sampler([1, 2, 3, 4], 0.8), 7, begin=beginning(encode_pairs(lm, pairs)))
        plain = [r for i, p in enumerate(pairs) for r in plain_replies(lm, p, recipe, [2 * i + 1, 2 * i + 2])]
        assert [r.completion_ids for r in plain] == [r.completion_ids for r in ours]
        lm.model.generation_config.eos_token_id = [lm.tokenizer.eos_token_id, ours[0].completion_ids[2]]
    assert len(plain[0].completion_ids) <= 3


def test_plain_logprobs(parts):
    s = setting(parts, temperature=0.7)
    pair, said = pair_ids(s.reader, s.dialogues[0], s.library.stories[0]), [[4, 5, 1], [6, 7, 8, 9]]
    plain, mask = plain_logprobs(s.reader, pair, said, s.recipe)
    ours, same = reply_logprobs(s.reader, [pair], [[0], [0]], said, prefix_ids(s.reader), 0.7)
    assert torch.allclose(plain, ours * same, atol=1e-10) and torch.equal(mask, same)


@pytest.mark.parametrize("what", ["_story_loss", "retriever_loss"])
def test_another_gradient_is_noticed(parts, monkeypatch, what):
    s = setting(parts)
    ours, right = our_step(s), getattr(benchmark, what)
    def wrong(*args):
        loss = right(*args)
        def twice(model, rows):
            total, n, stats = loss(model, rows)
            return total * 1.01, n, stats
        return twice
    monkeypatch.setattr(benchmark, what, wrong)
    assert 1e-3 < max(gradient_gap(ours, plain_step(s)).values()) < 0.02


def test_other_replies_are_refused(parts):
    s = setting(parts)
    with pytest.raises(RlgenError, match="replies differ"): gradient_gap(our_step(s), plain_step(dataclasses.replace(s, seed=4)))
    with pytest.raises(RlgenError, match="set both to 1"): setting(parts, stories=2)
    with pytest.raises(RlgenError, match="set both to 1"): setting(parts, epochs=2)
    assert Taken().total == 0


def test_nothing_is_remembered(parts, monkeypatch):
    "Each step scores its replies anew."
    calls = []
    class Counted(Reward):
        def parts(self, replies, dialogues): calls.append(len(replies)); return super().parts(replies, dialogues)
    from rlgen.lapdog import reward
    s = dataclasses.replace(setting(parts), reward=Counted())
    for step in (our_step, our_step, plain_step):
        step(s)
        assert 0 < reward._best.cache_info().misses <= 3 * 18
    assert calls == [18, 18] + [1] * 18


def test_the_run_notebook(tmp_path):
    "From end to end, tiny, without network."
    small = dict(num_dialogues=2, groups=[[2, 2]], repeats=1, generation_max_length=4, num_passages=[100, 300], largest=dict(hnsw=100), num_queries=4, top_k=3, search_repeats=1, out_dir=str(tmp_path))
    env = os.environ | dict(HF_HUB_OFFLINE="1", RLGEN_DEVICE="cpu", RLGEN_DTYPE="float32")
    done = subprocess.run([sys.executable, "-m", "papermill", "nbs/run_benchmarks_lapdog.ipynb", str(tmp_path / "out.ipynb"), "-y", json.dumps(small)], cwd=ROOT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "lapdog.json").read_text())
    assert [(r["way"], r["texts_encoded"]) for r in found["rows"]] == [("plain", 24), ("ours", 12)] and found["rows"][0]["times_as_fast"] == 1
    assert [r["part"] for r in found["parts"]] == ["experience", "reference", "reader", "retriever"]
    assert [(r["passages"], r["index"]) for r in found["search"]] == [(100, "torch"), (100, "flat"), (100, "ivf"), (100, "hnsw"), (300, "torch"), (300, "flat"), (300, "ivf")]
    assert all(r["recall"] == 1 for r in found["search"] if r["index"] in ("torch", "flat")) and (tmp_path / "lapdog.png").stat().st_size > 5000

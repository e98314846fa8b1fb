"rlgen.rest_pg.em: rewards, the choice, sampling across kills, what the M-step's rows do, and the bound on tables."
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers import line_of
from rlgen.chat import Oracle
from rlgen.core import rank_world, read_jsonl, seed_for
from rlgen.judge import framed_texts
from rlgen.lm import build_lm, encode_completion, encode_prompt, load_lm, word_tokenizer
from rlgen.metrics import words
from rlgen.rest_pg import em
from rlgen.rest_pg.data import Example
from rlgen.rest_pg.em import e_report, e_step, force, judge_rewards, m_rows, rouge_rewards, sample_outputs, select_outputs
from rlgen.rest_pg.prompt import form
from rlgen.sampling import Cost, generate, greedy, sampler
from rlgen.train import sft, sft_loss

HERE = Path(__file__).resolve().parent
PEOPLE = [Example(f"write of {t}", f"story of {t} with a calm sea .", (f"note of {t} .",), f"u{i}") for i, t in enumerate(("rain", "the old market", "snow", "a long way home", "bread"))]
HOW = dict(max_new_tokens=14, samples=3, temperature=1.0, top_p=1.0, seed=5, label="")


@pytest.fixture(scope="module", autouse=True)
def doubles(double):
    "64-bit floats for tensors made here, too."
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def tiny(seed=0):
    "A model that has read a few outputs: some of what it samples is in the form, some isn't."
    told = [form(z, e.y) for e in PEOPLE for z in ("calm", "merry , loves rain")] + [e.x for e in PEOPLE]
    lm = build_lm(word_tokenizer(told), width=16, seed=seed)
    sft(lm, [(encode_prompt(lm, e.x), encode_completion(lm, form(z, e.y)), 1.0) for e in PEOPLE for z in ("calm", "merry , loves rain")], steps=60, batch_size=10, lr=1e-2)
    return lm


@pytest.fixture(scope="module")
def lm(doubles): return tiny()


@pytest.fixture(scope="module")
def prompts(lm): return [encode_prompt(lm, e.x) for e in PEOPLE]


def attempt(sample=0, reward=1.0, text="a", reasoning="z", item=0, finished=True, ids=(5, 1)):
    return dict(item=item, sample=sample, reasoning=reasoning, text=text, finished=finished, reward=reward, ids=list(ids), tokens=len(ids), reasoning_tokens=1)


def kept(attempts, threshold=0.5, most=10): return [(a["item"], a["sample"]) for a in select_outputs(attempts, threshold, most) if a["kept"]]


# ---------------------------------------------------------------- rewards


def test_rouge_is_rouge_scores():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"], tokenizer=SimpleNamespace(tokenize=words))
    texts = ["story of rain with a calm sea .", "sea calm a with rain of story", "the OLD market, Wörter und 漢字", "snow snow snow", "bread ."]
    for e, t in itertools.product(PEOPLE, texts):
        s = scorer.score(e.y, t)
        assert rouge_rewards([e], [t]) == [(s["rouge1"].fmeasure + s["rougeL"].fmeasure) / 2]
    assert rouge_rewards(PEOPLE, [e.y for e in PEOPLE]) == [1.0] * 5


def test_equal_pairs_are_scored_once(monkeypatch):
    calls = []
    monkeypatch.setattr(em, "rouge", lambda text, y: calls.append((text, y)) or dict(rouge1=0.5, rougeL=0.25))
    a, b = PEOPLE[:2]
    assert rouge_rewards([a, a, b, a, a], ["x", "x", "x", None, "w"]) == [0.375, 0.375, 0.375, 0.0, 0.375]
    assert calls == [("x", a.y), ("x", b.y), ("w", a.y)]


def test_rewards_want_as_many_texts():
    with pytest.raises(ValueError, match="zip"): rouge_rewards(PEOPLE, ["a"])
    with pytest.raises(ValueError, match="zip"): judge_rewards(Oracle(lambda r: "A"))(PEOPLE, ["a"])


def test_a_judge_sees_the_text_alone_once_and_what_it_mumbles_is_not_zero():
    asked = []
    def grade(request):
        asked.append(framed_texts(request))
        return {"good": "A", "so so": "C", "odd": "hm"}[asked[-1]["text"]]
    a, b = PEOPLE[:2]
    got = judge_rewards(Oracle(grade))([a, a, a, b, b], ["good", "good", "odd", "so so", None])
    assert got == [1.0, 1.0, None, 0.5, 0.0] and len(asked) == 3
    assert asked[0] == {"request": a.x, "reference": a.y, "text": "good"}
    assert judge_rewards(Oracle(grade))([], []) == []


# ---------------------------------------------------------------- the choice


def test_choice_by_hand():
    a = [attempt(0, 0.4), attempt(1, 0.6, "b"), attempt(2, 0.9, "c"), attempt(3, 0.5, "d"), attempt(4, 0.7, "e")]
    assert kept(a) == [(0, 1), (0, 2), (0, 3), (0, 4)], "at the threshold is above it"
    assert kept(a, most=2) == [(0, 2), (0, 4)] and kept(a, most=1) == [(0, 2)] and kept(a, threshold=0.95) == []


def test_outputs_count_once_thoughts_and_text_together():
    same = [attempt(0), attempt(1), attempt(2, reasoning="y"), attempt(3, text="b"), attempt(4, item=1)]
    assert kept(same) == [(0, 0), (0, 2), (0, 3), (1, 4)]
    assert [a["accepted"] for a in select_outputs(same, 0.5, 1)] == [True] * 5
    assert kept(same, most=2) == [(0, 0), (0, 2), (1, 4)], "twins take no place"


def test_ties_go_to_the_lower_sample_number_in_any_order():
    ties = [attempt(s, r, f"t{s}") for s, r in enumerate((0.8, 0.9, 0.8, 0.9, 0.8))]
    wanted = {(0, 1), (0, 3), (0, 0)}
    for order in itertools.permutations(ties): assert set(kept(order, most=3)) == wanted


def test_items_dont_compete():
    a = [attempt(s, 0.5 + 0.1 * i + 0.01 * s, f"t{s}", item=i) for i in range(4) for s in range(5)]
    assert kept(a, most=2) == [(i, s) for i in range(4) for s in (3, 4)]


def test_never_accepted():
    for bad in (attempt(text=None, reward=0.0), attempt(reward=None), attempt(reward=0.0), attempt(finished=False)):
        assert kept([bad, attempt(1, text="b")], threshold=0.0) == [(0, 1)]
    assert "max_outputs_per_input = 0" in line_of(select_outputs, [attempt()], 0.5, 0)


def test_choosing_leaves_its_input_alone_and_can_be_repeated():
    a = [attempt(s, 0.1 * s, f"t{s}") for s in range(8)]
    before = json.dumps(a)
    once = select_outputs(a, 0.3, 2)
    assert json.dumps(a) == before and select_outputs(once, 0.3, 2) == once and kept(select_outputs(a, 0.7, 1), 0.1, 8) == [(0, s) for s in range(1, 8)]


# ---------------------------------------------------------------- sampling and the E-step


def run(folder, lm, prompts, reward=rouge_rewards, **more): return e_step(folder, lm, prompts, PEOPLE[: len(prompts)], reward, threshold=0.3, **(HOW | more))


def count_samples(monkeypatch, die_after=None):
    "Prompts handed to generate, call by call; the call after `die_after` of them dies."
    calls = []
    def counting(lm, prompts, *args, **kw):
        if die_after is not None and len(calls) == die_after: raise KeyboardInterrupt
        calls.append(len(prompts))
        return generate(lm, prompts, *args, **kw)
    monkeypatch.setattr(em, "generate", counting)
    return calls


@pytest.fixture(scope="module")
def calm(lm, prompts, tmp_path_factory):
    "An undisturbed E-step: attempts and their file."
    folder = tmp_path_factory.mktemp("calm")
    return run(folder, lm, prompts), (folder / "attempts.jsonl").read_bytes()


def test_attempts_are_what_the_file_holds(calm, lm, prompts):
    attempts, data = calm
    assert [json.loads(x) for x in data.splitlines()] == attempts and [(a["item"], a["sample"]) for a in attempts] == [(i, s) for i in range(5) for s in range(3)]
    assert list(attempts[0]) == ["item", "sample", "output", "ids", "finished", "tokens", "reasoning", "text", "reasoning_tokens", "reward", "accepted", "kept"]
    for a in attempts:
        alone = generate(lm, [prompts[a["item"]]], sampler([seed_for(5, "e_step", [a["item"], a["sample"]])]), 14)[0]
        assert alone.completion_ids == a["ids"] and alone.text(lm.tokenizer) == a["output"] and a["tokens"] == len(a["ids"]) and a["finished"] == (a["ids"][-1] in lm.eos_ids)


def test_outputs_out_of_form_score_zero_and_are_counted(calm):
    attempts, _ = calm
    lost = [a for a in attempts if a["text"] is None]
    assert 0 < len(lost) < len(attempts), "this model must give both kinds, or the test shows nothing"
    assert all(a["reward"] == 0 and a["reasoning"] is None and not a["accepted"] and not a["kept"] for a in lost)
    told = e_report(attempts)
    assert told["parsed"] == pytest.approx(1 - len(lost) / len(attempts)) and told["histogram"][0] >= len(lost) and sum(told["histogram"]) == 15
    for a in attempts:
        if a["text"]: assert form(a["reasoning"], a["text"]) == a["output"] and rouge_rewards([PEOPLE[a["item"]]], [a["text"]]) == [a["reward"]]


@pytest.mark.parametrize(("batch_size", "chunk"), [(1, 1), (2, 5), (64, 2), (4, 100)])
def test_batches_and_chunks_change_nothing(calm, lm, prompts, tmp_path, batch_size, chunk):
    run(tmp_path, lm, prompts, batch_size=batch_size, chunk=chunk)
    assert (tmp_path / "attempts.jsonl").read_bytes() == calm[1]


@pytest.mark.parametrize("chunks", [0, 1, 2, 4])
def test_killed_between_chunks_it_goes_on(calm, lm, prompts, tmp_path, monkeypatch, chunks):
    first = count_samples(monkeypatch, die_after=chunks)
    with pytest.raises(KeyboardInterrupt): run(tmp_path, lm, prompts, chunk=1)
    assert first == [3] * chunks and not (tmp_path / "attempts.jsonl").exists()
    second = count_samples(monkeypatch)
    run(tmp_path, lm, prompts, chunk=1)
    assert sum(first) + sum(second) == 15 and (tmp_path / "attempts.jsonl").read_bytes() == calm[1]
    third = count_samples(monkeypatch)
    assert run(tmp_path, lm, prompts, chunk=1) == calm[0] and third == []


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.55, 0.99])
def test_a_torn_line_is_sampled_again_and_no_other(calm, lm, prompts, tmp_path, monkeypatch, share):
    run(tmp_path, lm, prompts, chunk=2)
    file = tmp_path / "sampled.jsonl"
    whole = file.read_bytes()
    torn = whole[: int(len(whole) * share)]
    file.write_bytes(torn)
    calls = count_samples(monkeypatch)
    run(tmp_path, lm, prompts, chunk=2)
    assert sum(calls) == 15 - torn.count(b"\n") and (tmp_path / "attempts.jsonl").read_bytes() == calm[1]
    assert len(read_jsonl(file)) == 15 and file.read_bytes() == whole


def test_killed_while_scoring_it_samples_nothing(calm, lm, prompts, tmp_path, monkeypatch):
    def dies(examples, texts): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): run(tmp_path, lm, prompts, dies)
    calls = count_samples(monkeypatch)
    run(tmp_path, lm, prompts)
    assert calls == [] and (tmp_path / "attempts.jsonl").read_bytes() == calm[1]


def test_more_samples_are_added_and_fewer_taken(calm, lm, prompts, tmp_path, monkeypatch):
    run(tmp_path, lm, prompts, samples=2)
    calls = count_samples(monkeypatch)
    run(tmp_path, lm, prompts, samples=3)
    assert sum(calls) == 5 and (tmp_path / "attempts.jsonl").read_bytes() == calm[1]
    assert [(a["item"], a["sample"]) for a in run(tmp_path, lm, prompts, samples=1)] == [(i, 0) for i in range(5)] and sum(calls) == 5


def test_a_file_of_another_run_is_refused(lm, prompts, tmp_path):
    run(tmp_path, lm, prompts)
    for more in (dict(temperature=0.9), dict(top_p=0.9), dict(seed=6), dict(max_new_tokens=13)): assert "sampled.jsonl" in line_of(run, tmp_path, lm, prompts, **more)
    assert "another model" in line_of(run, tmp_path, lm, prompts[::-1])
    other = build_lm(lm.tokenizer, width=16)
    other.model.load_state_dict(lm.model.state_dict())
    run(tmp_path, other, prompts)
    sft(other, [(prompts[0], [5, 1], 1.0)], steps=1, lr=1e-5, batch_size=1)
    assert "another model" in line_of(run, tmp_path, other, prompts)


def test_seeds_belong_to_items(lm, prompts, tmp_path):
    a, b = (sample_outputs(tmp_path / f"{n}.jsonl", lm, prompts[:n], **HOW) for n in (2, 5))
    assert [r["ids"] for r in a] == [r["ids"] for r in b[:6]]
    assert len({tuple(r["ids"]) for r in b[:3]}) > 1 and [r["ids"] for r in sample_outputs(tmp_path / "s.jsonl", lm, prompts[:2], **HOW | dict(seed=6))] != [r["ids"] for r in a]


def test_cost_of_an_e_step_is_each_prompt_once_and_the_tokens_but_one(calm, lm, prompts, tmp_path):
    cost = Cost()
    attempts = run(tmp_path, lm, prompts, cost=cost, batch_size=1000)
    assert cost.lm_tokens == sum(map(len, prompts)) + sum(a["tokens"] - 1 for a in attempts)


def test_other_orders(lm, prompts, tmp_path):
    plain = run(tmp_path / "n", lm, prompts, order="none")
    assert all(a["text"] is None for a in plain if "<reasoning>" in a["output"]) and all(a["reasoning_tokens"] == 0 for a in plain)
    assert any(r["text"] for r in run(tmp_path / "b", lm, prompts)) and not any(r["text"] for r in run(tmp_path / "a", lm, prompts, order="after") if "</reasoning>" not in r["output"])


def test_what_is_thought_is_counted_with_its_tags(calm, lm):
    for a in calm[0]: assert a["reasoning_tokens"] == (len(a["reasoning"].split()) + 2 if a["text"] else 0)


def test_wrong_calls(lm, prompts, tmp_path, monkeypatch):
    "All of them are told before anything is sampled."
    calls = count_samples(monkeypatch)
    assert "2 prompts and 5 examples" in line_of(e_step, tmp_path, lm, prompts[:2], PEOPLE, rouge_rewards, threshold=0.3, **HOW)
    assert "0 prompts" in line_of(e_step, tmp_path, lm, [], [], rouge_rewards, threshold=0.3, **HOW)
    assert "max_outputs_per_input" in line_of(run, tmp_path, lm, prompts, most=0)
    assert "context" in line_of(run, tmp_path, lm, prompts, max_new_tokens=1000)
    assert "temperature" in line_of(run, tmp_path, lm, prompts, temperature=0.0)
    assert "max_input_length" in line_of(run, tmp_path, lm, [*prompts[:4], prompts[0] * 40], chunk=1), "the last one, before the first is sampled"
    assert calls == [] == list(tmp_path.iterdir())


def shared_e_step(out):
    "An E-step alone or as one of two; the second process's rewards may not matter, and both must have the same attempts."
    torch.manual_seed(0)
    lm = load_lm(str(Path(out).parent / "lm"))
    def reward(examples, texts): return [r and r / (1 + rank_world()[0]) for r in rouge_rewards(examples, texts)]
    attempts = run(Path(out), lm, [encode_prompt(lm, e.x) for e in PEOPLE], reward, chunk=2)
    (Path(out) / f"{rank_world()[0]}-of-{rank_world()[1]}.json").write_text(json.dumps(attempts))


def test_two_processes_do_the_work_of_one(lm, tmp_path):
    from rlgen.lm import save_lm

    save_lm(SimpleNamespace(model=lm.model, tokenizer=lm.tokenizer), tmp_path / "lm")
    for name in ("one", "two"): (tmp_path / name).mkdir()
    shared_e_step(tmp_path / "one")
    in_fresh_python("shared_e_step", tmp_path / "two")
    one, two = ((tmp_path / n / "attempts.jsonl").read_text() for n in ("one", "two"))
    assert one == two and len(read_jsonl(tmp_path / "two" / "sampled.jsonl")) == 15
    assert [json.loads((tmp_path / "two" / f"{r}-of-2.json").read_text()) for r in (0, 1)] == [read_jsonl(tmp_path / "one" / "attempts.jsonl")] * 2


# ---------------------------------------------------------------- the M-step


def test_rows_are_what_was_kept(calm, prompts):
    attempts, _ = calm
    rows = m_rows(prompts, attempts)
    assert rows == [(prompts[a["item"]], a["ids"], a["reward"]) for a in attempts if a["kept"]] and rows
    told = line_of(m_rows, prompts, select_outputs(attempts, 2.0, 10))
    assert f"none of 15 outputs was kept, the best reward is {max(a['reward'] for a in attempts):.3f}" in told
    assert "best reward is 0.000" in line_of(m_rows, prompts, select_outputs([attempt(reward=0.0), attempt(1, None, "b")], 0.3, 1))
    assert "no reply of the judge can be read" in line_of(m_rows, prompts, select_outputs([attempt(reward=None)], 0.3, 1))
    assert "has the form" in line_of(m_rows, prompts, select_outputs([attempt(0, 0.0, None, None)], 0.3, 1))


def test_rewards_weigh_the_gradient(lm, prompts):
    "sft_loss of m_rows against a sum over tokens written out."
    rows = m_rows(prompts, select_outputs([attempt(0, 0.3, "a", ids=(5, 6, 1)), attempt(1, 0.9, "b", ids=(7, 1)), attempt(2, 0.6, "c", ids=(8, 9, 10, 1), item=3)], 0.0, 10))
    def gradient(loss):
        lm.model.zero_grad()
        loss.backward()
        got = torch.cat([p.grad.flatten() for p in lm.model.parameters()])
        lm.model.zero_grad()
        return got
    total, units = sft_loss(lm)(lm.model, rows)
    by_hand, weight = 0.0, 0.0
    for p, c, w in rows:
        logprobs = lm.model(torch.tensor([p + c])).logits[0].log_softmax(-1)
        by_hand = by_hand - w * sum(logprobs[len(p) - 1 + i, t] for i, t in enumerate(c))
        weight += w * len(c)
    even, n = sft_loss(lm)(lm.model, [(p, c, 1.0) for p, c, _ in rows])
    weighted = gradient(total / units)
    torch.testing.assert_close(weighted, gradient(by_hand / weight), atol=1e-10, rtol=1e-8)
    assert (weighted - gradient(even / n)).abs().max() > 1e-3, "without weights it is another gradient"


def test_learning_from_the_kept_raises_the_reward(lm, prompts, tmp_path):
    "One round on a model that babbles: its own best outputs teach it the form."
    before = run(tmp_path / "0", lm, prompts, samples=16)
    student = build_lm(lm.tokenizer, width=16)
    student.model.load_state_dict(lm.model.state_dict())
    sft(student, m_rows(prompts, select_outputs(before, 0.6, 4)), steps=40, batch_size=16, lr=5e-3)
    after = run(tmp_path / "1", student, prompts, samples=16, seed=9)
    assert e_report(after)["reward"] > e_report(before)["reward"] + 0.05


# ---------------------------------------------------------------- report and forced reasoning


def test_report_by_hand():
    a = select_outputs([attempt(0, 1.0), attempt(1, 1.0), attempt(2, 0.5, "b"), attempt(0, 0.0, None, None, item=1), attempt(1, None, "c", item=1), attempt(2, 0.96, "d", item=1, finished=False)], 0.5, 10)
    told = e_report(a)
    assert {k: told[k] for k in ("items", "samples", "unscored", "acceptance", "coverage", "kept", "distinct")} == dict(items=2, samples=6, unscored=1, acceptance=0.5, coverage=0.5, kept=1.0, distinct=2.0)
    assert told["reward"] == pytest.approx(3.46 / 5) and told["best"] == pytest.approx(0.98) and told["parsed"] == told["finished"] == pytest.approx(5 / 6)
    assert [b for b, n in enumerate(told["histogram"]) for _ in range(n)] == [0, 10, 19, 19, 19]
    assert e_report(select_outputs([attempt(reward=None)], 0.5, 1))["reward"] == 0


def test_bins_are_equal_and_hold_everything():
    rewards = [i / 40 for i in range(41)]
    told = e_report(select_outputs([attempt(i, r, str(i)) for i, r in enumerate(rewards)], 0.5, 99))["histogram"]
    assert told == [2] * 19 + [3]


def test_forced_reasoning_is_the_prompt_of_the_form(lm, prompts):
    for z in ("calm", " merry , loves rain "):
        own = prompts[0] + encode_completion(lm, form(z, PEOPLE[0].y))
        begun = force(prompts[0], lm, z)
        assert begun == own[: len(begun)] and lm.tokenizer.decode(own[len(begun) :], skip_special_tokens=True) == PEOPLE[0].y
        assert lm.eos_ids[0] not in begun and generate(lm, [begun], greedy, 8)[0].completion_ids
    assert "decoder" in line_of(force, prompts[0], SimpleNamespace(kind="seq2seq"), "calm")


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma"])
def test_forced_reasoning_with_tokens_that_are_parts_of_words(folders, arch):
    lm = load_lm(str(folders(arch)))
    prompt = encode_prompt(lm, "write a letter")
    whole, begun = prompt + encode_completion(lm, form("likes 漢字", "a letter")), force(prompt, lm, "likes 漢字")
    assert begun == whole[: len(begun)]


# ---------------------------------------------------------------- tables: the bound


def table(seed):
    "p(z | x), p(y | z) and a reward for 3 requests, 3 thoughts, 4 texts; some rewards are 0."
    g = torch.Generator().manual_seed(seed)
    z, y = ((2 * torch.randn(3, n, generator=g)).softmax(-1) for n in (3, 4))
    return z, y, torch.rand(3, 4, generator=g) * (torch.rand(3, 4, generator=g) > 0.2)


def mean_reward(z, y, reward): return torch.einsum("xz,zy,xy->", z, y, reward).item() / 3


def m_step(q):
    "The best p(z | x) p(y | z) for weights q (x, z, y); what has no weight stays even."
    z, y = q.sum(2), q.sum(0)
    even = lambda t: torch.where(t.sum(1, keepdim=True) > 0, t / t.sum(1, keepdim=True).clamp(min=1e-300), torch.full_like(t, 1 / t.shape[1]))
    return even(z), even(y)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6])
def test_exact_rounds_never_lower_the_thresholded_reward(threshold):
    for seed in range(40):
        z, y, reward = table(seed)
        reward = reward * (reward >= threshold)
        line = [mean_reward(z, y, reward)]
        for _ in range(8):
            z, y = m_step(z[:, :, None] * y * reward[:, None])
            line.append(mean_reward(z, y, reward))
        assert all(b >= a - 1e-12 for a, b in zip(line, line[1:])), (seed, line)
        assert line[-1] > line[0]


def test_the_rows_of_an_enumerated_e_step_are_the_exact_e_step():
    "Each output once for every 1/1000 of its probability, nothing chosen away: summed weights of m_rows are p R."
    z, y, reward = table(1)
    p = (1000 * z[:, :, None] * y).round()
    attempts = [attempt(s, reward[i, w].item(), f"y{w}", f"z{t}", i, ids=(t, w)) | dict(kept=True)
                for i in range(3) for s, (t, w) in enumerate((t, w) for t in range(3) for w in range(4) for _ in range(int(p[i, t, w])))]  # fmt: skip
    weights = torch.zeros(3, 3, 4)
    for prompt, (t, w), r in m_rows([[0], [1], [2]], attempts): weights[prompt[0], t, w] += r
    torch.testing.assert_close(weights, p * reward[:, None])
    once = select_outputs(attempts, 0.0, 99)
    assert len(m_rows([[0], [1], [2]], once)) == ((p > 0) & (reward[:, None] > 0)).sum() < len(attempts), "chosen, each counts once: R, no longer p R"


def in_fresh_python(name, *args):
    "A function of this file in two processes."
    env = os.environ | dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", ACCELERATE_USE_CPU="true", TOKENIZERS_PARALLELISM="false")
    pair = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = subprocess.run([*pair, __file__, name, *map(str, args)], capture_output=True, text=True, timeout=240, env=env, cwd=HERE)
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__": getattr(__import__("test_rest_pg_em"), sys.argv[1])(*sys.argv[2:])  # under its own name, as the tests know it

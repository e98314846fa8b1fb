"rlgen.pargs.decoding: the guided rule against its formula and enumeration, its limits, and best of N (rewards of prefixes: test_scorers.py)."
import itertools
import math

import pytest
import torch
from tiny_models import make_model

from rlgen.core import RlgenError
from rlgen.lm import build_lm, encode_completion, encode_prompt, load_lm, save_lm, word_tokenizer
from rlgen.sampling import Rollout, Step, generate, greedy, sampler
from rlgen.pargs import scorers
from rlgen.pargs.decoding import best_of, guided
from rlgen.pargs.scorers import RecomputeScorer, TreeScorer, same_tokens, scorer_for
from rlgen.reward import load_reward_model, new_reward_model, score_ids

TEXTS = ["the cat", "a dog ran over the hill and", "what did you eat today ?", "my neighbour lost her keys", "she", "post : my boss wants me to work on sunday . summary :"]
ALIKE = (("gpt2", "gpt2"), ("llama", "llama"), ("gemma", "gemma"))
OTHERS = (("gpt2", "deberta-v2"), ("gpt2", "roberta"), ("llama", "gpt2"), ("t5", "deberta-v2"), ("gemma", "bert"))


pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "models(lm, rm): a writer and a guide; a quarter of the writer's vocabulary ends a text."
    lms, rms = {}, {}

    def get(arch, guide):
        if arch not in lms:
            lms[arch] = lm = load_lm(str(make_model(arch, tmp_path_factory.mktemp(arch))))
            mixed = torch.randperm(len(lm.tokenizer), generator=torch.Generator().manual_seed(4)).tolist()
            lm.model.generation_config.eos_token_id = [lm.tokenizer.eos_token_id, *mixed[: len(mixed) // 4]]
        if guide not in rms: rms[guide] = load_reward_model(str(make_model(guide, tmp_path_factory.mktemp(f"{guide}-rm"), head="reward", seed=1)))
        return lms[arch], rms[guide]

    return get


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    "A word-level writer and guide over the same nine tokens, in 64-bit floats, with opinions."
    tok = word_tokenizer(["my boss sold the car ."])
    lm = build_lm(tok, width=16, seed=3)
    for p in lm.model.parameters(): p.data *= 2
    lm.model.double()
    folder = tmp_path_factory.mktemp("toy")
    save_lm(lm, folder)
    rm = new_reward_model(str(folder), seed=1)
    rm.model.score.weight.data *= 60
    return lm, rm


def prompts_of(lm): return [encode_prompt(lm, t) for t in TEXTS]


class Given:
    "Rewards (B, V) from a table, and what was asked."

    def __init__(self, rewards): self.rewards, self.events = rewards, []

    def start(self, prompts, rows): self.events.append(("start", list(rows)))
    def score(self, candidates):
        self.events.append(("score", candidates))
        return self.rewards[: len(candidates)].gather(1, candidates)
    def advance(self, choice): self.events.append(("advance", choice))
    def select(self, keep): self.events.append(("select", keep.tolist()))


class Never:
    "A scorer that may not be asked."
    def __getattr__(self, name): raise AssertionError("nobody is asked")


# ---------------------------------------------------------------- the rule


def test_the_rule_is_the_formula():
    "Probabilities, tokens and KL of a step, by hand, for draws and for the best."
    g = torch.Generator().manual_seed(0)
    logprobs, rewards = torch.randn(5, 12, generator=g, dtype=torch.float64).log_softmax(-1), torch.randn(5, 12, generator=g, dtype=torch.float64)
    score, step = Given(rewards), Step(0, list(range(5)), logprobs, [[0]] * 5, [[]] * 5)
    for k, alpha, heat in itertools.product((1, 4, 12, 99), (0.0, 0.5, 3.0), (1.0, 0.7)):
        tokens, kl = guided(score, alpha, k)(step)
        for i in range(5):
            kept = logprobs[i].argsort(descending=True)[:k]
            best = max(kept.tolist(), key=lambda c: logprobs[i, c] + alpha * rewards[i, c])
            assert tokens[i].item() == best and kl[i].item() == pytest.approx(-logprobs[i, best].item(), abs=1e-12)
        _, kl = guided(score, alpha, k, seeds=list(range(5)), temperature=heat)(step)
        for i in range(5):
            kept = logprobs[i].argsort(descending=True)[:k]
            q = (logprobs[i, kept] / heat + alpha * rewards[i, kept]).softmax(-1)
            assert kl[i].item() == pytest.approx((q * (q.log() - logprobs[i, kept])).sum().item(), abs=1e-10)


def test_draws_follow_the_formula():
    from scipy import stats

    n, g = 30_000, torch.Generator().manual_seed(1)
    logprobs, rewards = torch.randn(1, 9, generator=g, dtype=torch.float64).log_softmax(-1), torch.randn(1, 9, generator=g, dtype=torch.float64)
    score, step = Given(rewards.expand(n, 9)), Step(0, list(range(n)), logprobs.expand(n, 9), [[0]] * n, [[0]] * n)
    for k, heat in ((9, 1.0), (9, 2.0), (4, 0.5)):
        tokens, _ = guided(score, 1.5, k, seeds=list(range(n)), temperature=heat)(step)
        kept = logprobs[0].topk(k).indices
        q = (logprobs[0] / heat + 1.5 * rewards[0])[kept].softmax(-1)
        counts = torch.bincount(tokens, minlength=9)
        assert counts.sum() == counts[kept].sum() and stats.chisquare(counts[kept].numpy(), (q * n).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("end", (False, True))
def test_texts_follow_the_enumerated_distribution(end, toy):
    "All texts of up to three tokens, their exact probabilities, and eight thousand samples; the mean of their KL is the KL of the distributions."
    from scipy import stats

    lm, rm = toy
    prompt, n, alpha, V = encode_prompt(lm, "my boss"), 8000, 0.7, len(lm.tokenizer)
    score = TreeScorer(rm, lm.tokenizer.eos_token_id, end)

    def grow(written, q, p, out):
        "Probabilities of all continuations under the rule (q) and the model (p)."
        if len(written) == 3 or written[-1:] == [lm.tokenizer.eos_token_id]: out[tuple(written)] = (q, p); return out
        with torch.no_grad(): logprobs = lm.model(torch.tensor([prompt + written])).logits[0, -1].log_softmax(-1)
        tail = [lm.tokenizer.eos_token_id]
        seqs = [prompt + written + [c] + (tail if end and c not in lm.eos_ids else []) for c in range(V)]
        rule = (logprobs + alpha * score_ids(rm, seqs)).log_softmax(-1)
        for c in range(V): grow([*written, c], q + rule[c].item(), p + logprobs[c].item(), out)
        return out

    exact = grow([], 0.0, 0.0, {})
    assert sum(math.exp(q) for q, _ in exact.values()) == pytest.approx(1, abs=1e-9)
    said = generate(lm, [prompt] * n, guided(score, alpha, k=V, seeds=list(range(n))), max_new_tokens=3, batch_size=n)
    counts = {t: 0 for t in exact}
    for r in said: counts[tuple(r.completion_ids)] += 1
    often = [t for t, (q, _) in exact.items() if math.exp(q) * n >= 5]
    seen, wanted = [counts[t] for t in often], [math.exp(exact[t][0]) * n for t in often]
    assert len(often) > 20 and stats.chisquare([*seen, n - sum(seen)], [*wanted, n - sum(wanted)]).pvalue > 1e-3
    plain = generate(lm, [prompt] * n, sampler(list(range(n))), max_new_tokens=3, batch_size=n)
    missed = [sum(r.completion_ids == list(t) for r in plain) for t in often[:30]]
    assert max(abs(a - b) for a, b in zip(missed, wanted)) > 100, "and the reward matters"
    for r in said[:200]: assert sum(r.logprobs) == pytest.approx(exact[tuple(r.completion_ids)][1], abs=1e-9), "log-probabilities are the model's"
    kls = torch.tensor([r.info["kl"] for r in said], dtype=torch.float64)
    whole = sum(math.exp(q) * (q - p) for q, p in exact.values())
    assert abs(kls.mean().item() - whole) < 4.5 * kls.std().item() / n**0.5 + 1e-9


# ---------------------------------------------------------------- its limits


@pytest.mark.parametrize("arch, guide", ALIKE)
def test_without_weight_it_is_greedy(arch, guide, models):
    lm, rm = models(arch, guide)
    wanted = generate(lm, prompts_of(lm), greedy, max_new_tokens=8)
    for rule in (guided(Never(), 0.0), guided(Never(), 0), guided(Never(), 0.0, k=1), guided(scorer_for(rm, lm, TEXTS, 40), 5.0, k=1)):
        got = generate(lm, prompts_of(lm), rule, max_new_tokens=8)
        assert [r.completion_ids for r in got] == [r.completion_ids for r in wanted] and [r.info for r in got] == [r.info for r in wanted]
    drawn = generate(lm, prompts_of(lm), guided(Never(), 0.0, k=7, seeds=list(range(6)), temperature=0.8), max_new_tokens=8)
    plain = generate(lm, prompts_of(lm), sampler(list(range(6)), temperature=0.8, top_k=7), max_new_tokens=8)
    assert [r.completion_ids for r in drawn] == [r.completion_ids for r in plain], "and drawing is top-k sampling, with the same noise"
    assert [r.info["kl"] for r in drawn] == pytest.approx([r.info["kl"] for r in plain], abs=1e-8)


def test_without_weight_it_is_greedy_on_ties_too():
    "Half-precision models make exact ties."
    logprobs = torch.randint(0, 4, (200, 300), generator=torch.Generator().manual_seed(0)).float().log_softmax(-1)
    step = Step(0, list(range(200)), logprobs, [[0]] * 200, [[]] * 200)
    assert torch.equal(guided(None, 0.0)(step)[0], greedy(step)[0])


@pytest.mark.parametrize("arch, guide", (*ALIKE[:2], OTHERS[0]))
def test_with_a_large_weight_the_best_rewarded_wins(arch, guide, models):
    lm, rm = models(arch, guide)
    rule, plain, taken = guided(scorer_for(rm, lm, TEXTS, 40), 1e9, k=5), RecomputeScorer(rm, lm, TEXTS), []

    def watched(step):
        "Each row asked anew, without a memory."
        tokens, kl = rule(step)
        candidates = step.logprobs.topk(5).indices
        plain.start(step.prompts, step.rows)
        plain.written = [list(w) for w in step.written]
        rewards = plain.score(candidates)
        taken.extend(((candidates == tokens[:, None]).int().argmax(1) == rewards.argmax(1)).tolist())
        return tokens, kl

    said = generate(lm, prompts_of(lm), watched, max_new_tokens=5)
    assert all(taken) and len(taken) == sum(len(r.completion_ids) for r in said) > 6
    assert [r.completion_ids for r in said] != [r.completion_ids for r in generate(lm, prompts_of(lm), greedy, max_new_tokens=5)]


@pytest.mark.parametrize("seeds", (None, list(range(6))))
def test_a_constant_changes_nothing(seeds, models):
    lm, rm = models("llama", "llama")
    shift = torch.tensor([100.0, -7.0, 0.0, 3.0, 50.0, -1.0], dtype=torch.float64)

    class Shifted(RecomputeScorer):
        "A constant for everything, or one for each prompt."
        by = torch.full((6,), 100.0, dtype=torch.float64)
        def score(self, candidates): return super().score(candidates) + self.by[self.rows][:, None]

    class ShiftedByRow(Shifted): by = shift

    rules = [guided(s, 4.0, seeds=seeds) for s in (scorer_for(rm, lm, TEXTS, 40), Shifted(rm, lm, TEXTS), ShiftedByRow(rm, lm, TEXTS))]
    a, *others = (generate(lm, prompts_of(lm), r, max_new_tokens=6) for r in rules)
    for b in others:
        assert [r.completion_ids for r in a] == [r.completion_ids for r in b]
        assert [r.info["kl"] for r in a] == pytest.approx([r.info["kl"] for r in b], abs=1e-8)
    bare = generate(lm, prompts_of(lm), sampler(seeds, top_k=10) if seeds else greedy, max_new_tokens=6)
    assert [r.completion_ids for r in bare] != [r.completion_ids for r in a]


def test_a_negative_weight_is_refused():
    with pytest.raises(RlgenError, match="0 or more") as e: guided(None, -0.5)
    assert "\n" not in str(e.value)


# ---------------------------------------------------------------- rewards of prefixes


@pytest.mark.parametrize("end", (False, True))
def test_ids_and_text_agree_for_words(end, toy, monkeypatch):
    "A word-level tokenizer loses nothing on the way through text."
    lm, rm = toy
    texts = ["my boss", "the car . my"]
    words = [lm.tokenizer.convert_tokens_to_ids(w) for w in ("boss", "sold", ".", "<eos>")]
    candidates = torch.tensor([words, words[::-1]])

    def asked(scorer):
        scorer.start([encode_prompt(lm, texts[i]) for i in (1, 0)], [1, 0])
        scorer.written = [encode_completion(lm, "sold the", eos=False), []]
        return scorer.score(candidates)

    by_ids = asked(RecomputeScorer(rm, lm, texts, end))
    assert same_tokens(lm, rm)
    monkeypatch.setattr(scorers, "same_tokens", lambda lm, rm: False)
    torch.testing.assert_close(asked(RecomputeScorer(rm, lm, texts, end)), by_ids, atol=1e-10, rtol=0)
    assert by_ids.std() > 1e-3


@pytest.mark.parametrize("arch, guide", OTHERS)
def test_company_changes_nothing(arch, guide, models):
    "Alone, in batches of any size, in any order: the same guided texts."
    lm, rm = models(arch, guide)
    seeds, drawn = list(range(20, 26)), None
    for s in (None, seeds):
        def run(at, size=64, s=s):
            texts = [TEXTS[i] for i in at]
            rule = guided(scorer_for(rm, lm, texts, 40), 2.0, k=6, seeds=s and [s[i] for i in at])
            return generate(lm, [encode_prompt(lm, t) for t in texts], rule, max_new_tokens=6, batch_size=size)
        whole = run(range(6))
        order = [4, 2, 0, 5, 3, 1]
        others = {"small": run(range(6), 2), "alone": [run([i])[0] for i in range(6)]}
        shuffled = run(order, 4)
        others["order"] = [shuffled[order.index(i)] for i in range(6)]
        for name, other in others.items():
            assert [r.completion_ids for r in other] == [r.completion_ids for r in whole], name
            for a, b in zip(other, whole): assert a.logprobs == pytest.approx(b.logprobs, abs=1e-10, rel=0) and a.info["kl"] == pytest.approx(b.info["kl"], abs=1e-8)
        assert drawn != [r.completion_ids for r in whole]
        drawn = [r.completion_ids for r in whole]


def test_the_scorer_hears_of_everything_in_order():
    "start, then score and advance for each token, select before a score when rows have ended; positions are those of the batch as it was."
    logprobs = torch.arange(40, dtype=torch.float64).view(4, 10).log_softmax(-1)
    scorer = Given(torch.zeros(4, 10, dtype=torch.float64))
    rule = guided(scorer, 1.0, k=3, seeds=[0] * 9)
    for t, rows in enumerate(([7, 2, 5, 0], [7, 5, 0], [7, 5, 0], [0])): rule(Step(t, list(rows), logprobs[: len(rows)], [[1]] * len(rows), [[]] * len(rows)))
    rule(Step(0, [1, 8], logprobs[:2], [[1]] * 2, [[]] * 2))
    told = [name if name in ("score", "advance") else (name, what) for name, what in scorer.events]
    once = ["score", "advance"]
    assert told == [("start", [7, 2, 5, 0]), *once, ("select", [0, 2, 3]), *once, *once, ("select", [2]), *once, ("start", [1, 8]), *once]
    assert [x.shape for name, x in scorer.events if name == "score"] == [(4, 3), (3, 3), (3, 3), (1, 3), (2, 3)]


# ---------------------------------------------------------------- best of N


def test_best_of_takes_the_first_of_the_best():
    rollouts = [Rollout([1], [2, 3], [-1.0], info=dict(kl=0.5, finished=True)), Rollout([1], [4], [-2.0], info=dict(kl=0.7, finished=False)), Rollout([1], [4], [-2.0], info=dict(kl=0.7, finished=False)), Rollout([1], [5], [-3.0], info=dict(kl=0.1, finished=True))]
    best = best_of(rollouts, [0.1, 0.9, 0.9, 0.3])
    assert best.completion_ids == [4] and best.logprobs == [-2.0] and best.reward == 0.9 and best.prompt_ids == [1]
    assert best.info == dict(kl=pytest.approx(0.7 + math.log(4) - 3 / 4), finished=False, n=4, distinct=3)
    assert best_of(rollouts, [1.0] * 4).completion_ids == [2, 3] and best_of(rollouts, [-5, -4, -3, -2.0]).completion_ids == [5]
    assert best_of(rollouts[:1], [0.0]).info == dict(kl=0.5, finished=True, n=1, distinct=1)
    assert rollouts[1].reward is None and "n" not in rollouts[1].info, "the samples stay what they were"

"rlgen.lapdog.feedback: divergence and gradients by definition, candidates, both judges, remembered feedback, kills, and fine-tuning."
import copy
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from helpers import line_of
from rlgen.lapdog import feedback
from rlgen.lapdog.data import Dialogue, Story
from rlgen.lapdog.feedback import (
    Teaching, candidate_kl, draw_candidates, feedback_scores, feedback_target, fine_tune, imitation_loss, imitation_rows, judge, teaching_loss, train_retriever,
)  # fmt: skip
from rlgen.lapdog.joint import answer
from rlgen.lapdog.reader import PLAIN, build_reader, pair_ids, reply_logprobs
from rlgen.lapdog.retriever import Library, Retriever, build_encoder, document_logits, search_stories
from rlgen.lapdog.reward import Reward
from rlgen.lm import completion_logprobs, encode_completion, word_tokenizer
from rlgen.train import prepare_model

pytestmark = pytest.mark.usefixtures("double")
ASK = dict(paint="brushes", fish="rods", bake="flour", climb="ropes", sew="needles", ride="saddles", sing="songs", dig="seeds")
SEEN = "duke monk ring lamp cave tower judge widow".split()
STORIES = [Story(f"s{i}", f"the one who {k}", f"they saw a {w} .", "shelf") for i, (k, w) in enumerate(zip(ASK, SEEN))]
TALKS = [Dialogue(f"d{i}", f"persona: i own {v} . context: Q: {q}", (f"i saw a {w} .",), "shelf", (f"s{i % 8}",))
         for i, (v, w, q) in enumerate((v, w, q) for q in ("tell me .", "what was there ?", "well ?") for v, w in zip(ASK.values(), SEEN))]
TOK = word_tokenizer([*(t for s in STORIES for t in (s.title, s.text)), *(d.question for d in TALKS), "i saw a R: story title: story: well , forget"])
KW = dict(templates=PLAIN, max_new_tokens=6)


def reader_of(seed=0):
    reader = build_reader(TOK, 16, 1, seed=seed)
    reader.model.double()
    return reader


def retriever_of(seed=0, **options):
    encoder = build_encoder(TOK, 16, seed=seed)
    encoder.model.double()
    return Retriever(encoder, query="all", temperature=1.0, **options)


def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])


def noise(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- the loss


def test_divergence_and_gradient_by_definition():
    "Row by row, in plain numbers; the gradient is what the retriever says less the target."
    logits, scores = noise(5, 4).requires_grad_(), noise(5, 4, seed=1)
    total, n, told = candidate_kl(logits, scores, 0.85)
    direct, surprise = 0.0, 0.0
    for s, m in zip(logits.tolist(), scores.tolist()):
        p, q = ([math.exp(x) / sum(map(math.exp, v)) for x in v] for v in (s, [x / 0.85 for x in m]))
        direct += sum(b * math.log(b / a) for a, b in zip(p, q))
        surprise -= sum(b * math.log(b) for b in q)
    assert n == 5 and total.item() == pytest.approx(direct, abs=1e-12) and float(told["target_entropy"]) == pytest.approx(surprise, abs=1e-12) and told["flat"] == 0
    grad = torch.autograd.grad(total, logits)[0]
    assert torch.allclose(grad, (logits.softmax(-1) - feedback_target(scores, 0.85)).detach(), atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: candidate_kl(x, scores, 0.1)[0], logits)
    same, _, _ = candidate_kl(scores / 0.85 + 7, scores, 0.85)
    assert abs(same.item()) < 1e-12, "0 where the retriever says what it should, whatever is added to its scores"


def test_target_is_a_softmax_of_scores_over_the_temperature():
    scores = torch.tensor([[3.0, 1.2, 0.6]], dtype=torch.float64)
    e = [math.exp(m / 0.85) for m in (3.0, 1.2, 0.6)]
    assert feedback_target(scores, 0.85)[0].tolist() == pytest.approx([x / sum(e) for x in e], abs=1e-12)
    assert feedback_target(scores, 0.1)[0, 0] > 0.9999 and Teaching().temperature == 0.85 and Teaching("perplexity").temperature == 0.1 and Teaching(gold_temperature=2.0).temperature == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_level_rows_give_exactly_nothing(dtype):
    "Also where equal sums differ in the last digit; other rows are as if alone, and the divisor counts all."
    logits = noise(4, 3).to(dtype).requires_grad_()
    scores = torch.tensor([[0.7] * 3, [0.1 + 0.2, 0.3, 0.15 * 2], [1.0, 0.0, 0.5], [0.0] * 3], dtype=dtype)
    total, n, told = candidate_kl(logits, scores, 0.85)
    grad = torch.autograd.grad(total, logits)[0]
    assert n == 4 and told["flat"] == 3 and (grad[[0, 1, 3]] == 0).all()
    alone = torch.autograd.grad(candidate_kl(logits[2:3], scores[2:3], 0.85)[0], logits)[0]
    assert torch.equal(grad, alone) and alone[2].abs().max() > 0.01
    pulled = torch.autograd.grad(candidate_kl(logits, scores, 0.85, flat="pull")[0], logits)[0]
    assert torch.allclose(pulled[[0, 1, 3]], logits.detach().softmax(-1)[[0, 1, 3]] - 1 / 3, atol=1e-6)


# ---------------------------------------------------------------- candidates


def test_candidates_are_the_best_with_some_replaced():
    "By the binomial law, from everywhere else alike, never twice, never where there is no story."
    logits = noise(1, 12)
    logits[0, [4, 9]] = -math.inf
    best, rows = logits[0].topk(4).indices.tolist(), 20_000
    others = [i for i in range(12) if i not in (*best, 4, 9)]
    for share in (0.5, 0.2):
        drawn = draw_candidates(logits.expand(rows, 12), 4, share, list(range(rows)))
        assert all(len(set(r)) == 4 for r in drawn.tolist()) and not torch.isin(drawn, torch.tensor([4, 9])).any()
        kept = drawn == torch.tensor(best)
        assert torch.allclose(kept.double().mean(0), torch.full((4,), 1 - share, dtype=torch.float64), atol=0.015), "each in its own place"
        seen = Counter(drawn[~kept].tolist())
        assert set(seen) == set(others) and max(seen.values()) < 1.06 * min(seen.values())
    assert draw_candidates(logits, 4, 0.0, [5]).tolist() == [best]
    assert not set(draw_candidates(logits, 4, 1.0, [5])[0].tolist()) & set(best)


def test_candidates_belong_to_their_seed():
    logits = noise(6, 20)
    together = draw_candidates(logits, 5, 0.5, [3, 1, 4, 1, 5, 9])
    for i, seed in enumerate((3, 1, 4, 1, 5, 9)): assert draw_candidates(logits[i : i + 1], 5, 0.5, [seed])[0].tolist() == together[i].tolist()
    assert draw_candidates(logits, 5, 0.5, [2] * 6).tolist() != together.tolist()


def test_candidates_of_small_corpora():
    "All stories: nothing to replace; one more: only it comes in; too few: one line."
    logits = noise(2, 4)
    assert sorted(draw_candidates(logits, 4, 1.0, [0, 1])[0].tolist()) == [0, 1, 2, 3]
    three = draw_candidates(logits, 3, 1.0, [0, 1])
    assert all(len(set(r)) == 3 for r in three.tolist())
    logits[1, 3] = -math.inf
    assert "a corpus has 3" in line_of(draw_candidates, logits, 4, 0.5, [0, 1])


# ---------------------------------------------------------------- judges


def test_metric_feedback_is_the_reward_of_the_reply_from_each_story():
    reader, reward = reader_of(), Reward(total="sum", generation_length_penalty=1.0)
    asked, told = [TALKS[0], TALKS[0], TALKS[3]], [STORIES[0], STORIES[5], STORIES[3]]
    for size in (1, 2, 64):
        found = feedback_scores(reader, asked, told, Teaching(reward=reward, read_batch=size, **KW))
        assert found == pytest.approx([reward(answer(reader, [d], [[s]], 6, templates=PLAIN), [d])[0] for d, s in zip(asked, told)], abs=1e-12)
    assert Teaching().reward == Reward(total="sum")


def test_perplexity_feedback_is_the_best_answers_mean_log_probability():
    "End mark included; by a plain forward pass; in whatever batches."
    reader, two = reader_of(), replace(TALKS[1], answers=("i saw a monk .", "well , i forget"))
    asked, told = [two, TALKS[2], two], [STORIES[1], STORIES[1], STORIES[4]]

    def plain(d, s, text):
        logprobs, mask = completion_logprobs(reader, [pair_ids(reader, d, s, templates=PLAIN)], [encode_completion(reader, text)])
        assert encode_completion(reader, text)[-1] == TOK.eos_token_id
        return (logprobs * mask).sum().item() / mask.sum().item()
    want = [max(plain(d, s, text) for text in d.answers) for d, s in zip(asked, told)]
    for size in (1, 2, 64): assert feedback_scores(reader, asked, told, Teaching("perplexity", read_batch=size, **KW)) == pytest.approx(want, abs=1e-9)


def test_a_reader_that_has_run_away():
    reader = reader_of()
    with torch.no_grad(): reader.model.shared.weight.fill_(math.nan)
    assert "NaN" in line_of(feedback_scores, reader, TALKS[:1], STORIES[:1], Teaching("perplexity", **KW))


def test_teaching_refuses():
    for bad in (dict(feedback="metrics"), dict(flat="drop"), dict(candidates=1), dict(replace=1.5), dict(gold_temperature=-1.0)): assert next(iter(bad)) in line_of(Teaching, **bad)


def test_what_was_judged_is_asked_only_once(monkeypatch):
    "The same rows with and without memory, and a talk that stands twice in a batch."
    reader, retriever, library, asked = reader_of(), retriever_of(), Library(STORIES), []
    library.refresh(retriever)

    def counted(reader, dialogues, stories, *more):
        asked.extend((d.id, s.id) for d, s in zip(dialogues, stories))
        return feedback_scores(reader, dialogues, stories, *more)
    monkeypatch.setattr(feedback, "feedback_scores", counted)
    known, teaching, batch = {}, Teaching("perplexity", candidates=3, **KW), [TALKS[0], TALKS[1], TALKS[0]]
    for seed in range(6):
        with_memory, told = judge(reader, retriever, library, batch, teaching, seed, known)
        before = len(asked)
        without, plain = judge(reader, retriever, library, batch, teaching, seed)
        assert all(torch.equal(a.stories, b.stories) and torch.allclose(a.scores, b.scores, atol=1e-12) for a, b in zip(with_memory, without))
        assert plain["judged"] == len(set(asked[before:])) == len(asked) - before
        del asked[before:]
    assert len(asked) == len(set(asked)) == len(known) and told["judged"] == 0


# ---------------------------------------------------------------- a step


@pytest.mark.parametrize("side", ["both", "query"])
def test_a_step_against_a_direct_one(side):
    "Gradient through queries and, where they are trained, stories; the others' vectors don't matter."
    reader, retriever, library, teaching = reader_of(), retriever_of(side=side), Library(STORIES), Teaching("perplexity", candidates=3, **KW)
    library.refresh(retriever)
    rows, _ = judge(reader, retriever, library, TALKS[:4], teaching, 0)
    library.vectors += 5 * (side == "both")  # stale ones are for finding only
    model = retriever.encoder.model
    total, n, told = teaching_loss(retriever, library, teaching)(model, rows)
    grad = torch.autograd.grad(total, model.parameters(), allow_unused=True)
    direct = 0.0
    for r in rows:
        q = retriever.queries([r.dialogue])[0]
        d = retriever.passages.vectors(retriever.passages.ids([library.texts[i] for i in r.stories.tolist()]))
        target = torch.tensor(feedback_scores(reader, [r.dialogue] * 3, [STORIES[i] for i in r.stories.tolist()], teaching), dtype=torch.float64).div(0.1).softmax(-1)
        direct = direct + (target * (target.log() - (d @ q / 16**0.5).log_softmax(-1))).sum()
    want = torch.autograd.grad(direct, model.parameters(), allow_unused=True)
    assert n == 4 and total.item() == pytest.approx(direct.item(), abs=1e-6)
    for a, b in zip(grad, want): assert (a is None and b is None) or torch.allclose(a, b, atol=1e-6)
    assert abs(float(told["staleness"])) < 1e-6


def test_level_feedback_moves_nothing(monkeypatch):
    "A reader that says the same from every story leaves the weights as they are, to the bit; the published pull doesn't."
    monkeypatch.setattr(feedback, "feedback_scores", lambda reader, dialogues, *_: [0.3] * len(dialogues))
    before, lines = weights(retriever_of().encoder.model), []
    for flat in ("skip", "pull"):
        retriever = retriever_of()
        train_retriever(retriever, Library(STORIES), TALKS, reader_of(), steps=4, batch_size=4, candidates=3, flat=flat, log=lambda step, **s: lines.append(s), **KW)
        assert torch.equal(weights(retriever.encoder.model), before) == (flat == "skip")
    assert [x["flat"] for x in lines] == [1, 1] and lines[0]["retriever_grad_norm"] == 0 < lines[1]["retriever_grad_norm"]


def test_it_learns_what_the_judge_says(monkeypatch):
    "Which story belongs to whom, told by marks alone."
    monkeypatch.setattr(feedback, "feedback_scores", lambda reader, dialogues, stories, *_: [3.0 * (s.id in d.gold) for d, s in zip(dialogues, stories)])
    retriever, library = retriever_of(), Library(STORIES)
    def recall(): return sum(STORIES[r[0]].id in d.gold for r, d in zip(search_stories(retriever, library, TALKS, 1)[0], TALKS)) / len(TALKS)
    library.refresh(retriever)
    before = recall()
    train_retriever(retriever, library, TALKS, reader_of(), steps=120, batch_size=24, candidates=4, refresh_every=1, **KW)
    assert before < 0.5 and recall() > 0.9


def test_staleness_and_refreshing():
    "Vectors made anew at every step are never stale; vectors that are never made anew are; a threshold is kept."
    def run(**options):
        lines, library = [], Library(STORIES)
        train_retriever(retriever_of(), library, TALKS, reader_of(), steps=8, batch_size=4, candidates=3, feedback="perplexity", log_every=1, log=lambda step, **s: lines.append(s), **options, **KW)
        return [x["staleness"] for x in lines], [x["refreshes"] for x in lines]
    stale, count = run(refresh_every=1)
    assert max(map(abs, stale)) < 1e-6 and count == list(range(1, 9))
    stale, count = run(refresh_above=math.inf)
    assert abs(stale[0]) < 1e-6 < 1e-3 < stale[-1] and count == [0] * 8
    stale, count = run(refresh_above=0.01)
    assert [b - a for a, b in zip([0, *count], count)] == [int(s > 0.01) for s in stale] and 0 < count[-1] < 8


# ---------------------------------------------------------------- kills


@pytest.mark.parametrize("options", [dict(), dict(feedback="metric", train_reader=True), dict(side="query")], ids=["frozen-reader", "both-learn", "query-side"])
def test_after_a_kill(tmp_path, options):
    "Same weights to the bit, same lines, though the index was older than the weights when it was killed."
    options = dict(feedback="perplexity") | options
    side = dict(side=options.pop("side", "both"))

    def trained(folder, die=0):
        folder.mkdir(exist_ok=True)
        reader, retriever, lines = reader_of(), retriever_of(**side), {}

        def log(step, **scalars):
            lines[step] = scalars
            if step == die: raise KeyboardInterrupt
        kw = dict(steps=10, batch_size=4, candidates=3, refresh_every=3, refresh_above=math.inf, folder=folder, save_seconds=0, log_every=2, log=log, weight_decay=0.01, seed=5)
        try: train_retriever(retriever, Library(STORIES), TALKS, reader, **kw, **options, **KW)
        except KeyboardInterrupt:
            assert (folder / "checkpoint.pt").is_file() and torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == die - 2
            return trained(folder)
        return weights(reader.model), weights(retriever.encoder.model), lines
    calm, killed = trained(tmp_path / "calm"), trained(tmp_path / "killed", die=6)
    assert all(torch.equal(a, b) for a, b in zip(calm[:2], killed[:2])) and all(killed[2][s] == calm[2][s] for s in (6, 8, 10))
    assert not torch.equal(calm[1], weights(retriever_of().encoder.model)) and torch.equal(calm[0], weights(reader_of().model)) == ("train_reader" not in options)
    assert not list(tmp_path.glob("*/checkpoint*")), "nobody needs it any more"


def test_what_was_frozen_stays_so():
    "A frozen reader can be trained afterwards; single frozen weights stay frozen and as they are."
    reader, retriever = reader_of(), retriever_of()
    frozen = reader.model.decoder.block[0].layer[0].SelfAttention.q.weight.requires_grad_(False)
    before, start = frozen.detach().clone(), weights(reader.model)
    kw = dict(steps=2, batch_size=4, candidates=3, reader_lr=1e-2, weight_decay=0.1)
    train_retriever(retriever, Library(STORIES), TALKS, reader, **kw, **KW)
    assert torch.equal(weights(reader.model), start) and [p.requires_grad for p in reader.model.parameters()].count(False) == 1
    train_retriever(retriever, Library(STORIES), TALKS, reader, train_reader=True, **kw, **KW)
    assert torch.equal(frozen, before) and not frozen.requires_grad and not torch.equal(weights(reader.model), start)


# ---------------------------------------------------------------- stage 1


def test_rows_hold_targets_and_every_story():
    reader, cut = reader_of(), Counter()
    logged = replace(TALKS[0], target="well , i forget")
    rows = imitation_rows(reader, [logged, TALKS[1]], [[], STORIES[:3]], templates=PLAIN, cut=cut)
    assert rows[0] == ([pair_ids(reader, logged, None, templates=PLAIN)], encode_completion(reader, "well , i forget")), "what the logs say, not what is right"
    assert rows[1][0] == [pair_ids(reader, TALKS[1], s, templates=PLAIN) for s in STORIES[:3]] and rows[1][1].count(TOK.eos_token_id) == 1 and rows[1][1][-1] == TOK.eos_token_id
    assert cut == Counter(turns=0, story_tokens=0) and "one for each" in line_of(imitation_rows, reader, TALKS[:2], [[]])


def test_loss_of_a_batch_is_the_sum_of_its_rows():
    "None, one and three fused stories in one batch; the forward pass of others changes nothing; gradients too."
    reader = reader_of()
    rows = imitation_rows(reader, TALKS[:4], [[], STORIES[:1], STORIES[:3], STORIES[:1]], templates=PLAIN)
    loss, params = imitation_loss(reader, PLAIN), list(reader.model.parameters())
    total, n = loss(reader.model, rows)
    alone = [loss(reader.model, [r]) for r in rows]
    assert total.item() == pytest.approx(sum(a.item() for a, _ in alone), abs=1e-9) and n == sum(len(r[1]) for r in rows)
    for a, b in zip(torch.autograd.grad(total, params), torch.autograd.grad(sum(a for a, _ in alone), params)): assert torch.allclose(a, b, atol=1e-9)
    fused, mask = reply_logprobs(reader, rows[2][0], [[2, 0, 1]], [rows[2][1]])
    assert alone[2][0].item() == pytest.approx(-(fused * mask).sum().item(), abs=1e-9)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_fine_tuning_on_a_batch(n):
    "The loss falls to nearly nothing, and the reader says it, from no story, one, or three."
    reader, lines = reader_of(), []
    told = [STORIES[i : i + n] for i in range(4)]
    fine_tune(reader, TALKS[:4], told, steps=80, batch_size=4, lr=1e-2, weight_decay=0.0, templates=PLAIN, log=lambda step, **s: lines.append(s["loss"]), evaluate=lambda: dict(held_out=1.0))
    assert lines[-1] < 0.1 * lines[0]
    assert answer(reader, TALKS[:4], told, 8, templates=PLAIN) == [d.target for d in TALKS[:4]]


def test_fine_tuning_after_a_kill_and_in_parts(tmp_path):
    "To the bit after a kill; up to rounding in parts of a batch."
    def trained(folder=None, die=0, **options):
        reader = reader_of()

        def log(step, **_):
            if step == die: raise KeyboardInterrupt
        try: fine_tune(reader, TALKS[:6], [STORIES[:2]] * 6, steps=8, batch_size=4, lr=1e-2, templates=PLAIN, folder=folder, save_seconds=0, log_every=2, log=log, **options)
        except KeyboardInterrupt: return trained(folder)
        return weights(reader.model)
    calm = trained()
    assert torch.equal(calm, trained(tmp_path, die=6)) and torch.allclose(calm, trained(micro_batch=1), atol=1e-7)
    assert not torch.equal(calm, trained(optimizer="adafactor", decay="linear"))


def test_checkpointed_gradients_are_the_same():
    reader = reader_of()
    rows = imitation_rows(reader, TALKS[:3], [STORIES[:2]] * 3, templates=PLAIN)
    def grads(model): return torch.autograd.grad(imitation_loss(reader, PLAIN)(model, rows)[0], list(model.parameters()))
    plain, again = grads(reader.model), copy.deepcopy(reader.model).train()
    prepare_model(again, gradient_checkpointing=True)
    for a, b in zip(plain, grads(again)): assert torch.allclose(a, b, atol=1e-9)


def test_candidates_come_from_the_dialogues_corpus():
    "Logits come from the dialogue's corpus alone; a dialogue of another corpus is named."
    retriever, library = retriever_of(), Library(STORIES)
    library.refresh(retriever)
    assert document_logits(retriever, library, TALKS[:2])[0].shape == (2, 8)
    assert "elsewhere" in line_of(judge, reader_of(), retriever, library, [replace(TALKS[0], corpus="elsewhere")], Teaching(**KW), 0)

"rlgen.lapdog.retriever: logits and their gradients against reading everything anew, rankings against brute force, and the lines for what goes wrong."
import math

import numpy as np
import pytest
import torch

from helpers import line_of
from rlgen.lapdog import retriever as module
from rlgen.lapdog.data import Dialogue, Story
from rlgen.lapdog.retriever import Library, Retriever, build_encoder, document_logits, gold_stories, random_stories, search_stories, staleness, story_text, word_stories
from rlgen.lm import word_tokenizer
from rlgen.retrieval import BM25, Encoder, load_encoder

WORDS = "cat dog hill soup apple letter friend garden night key boat ship harbour bread lamp ring".split()
STORIES = [Story(f"{c}{i}", WORDS[i], " ".join(WORDS[(i * s + j) % 16] for j in range(2 + i % 4)), c) for c, n, s in (("a", 9, 3), ("b", 4, 5), ("c", 1, 7)) for i in range(n)]
TALKS = [Dialogue(f"d{i}", f"persona: {WORDS[i]} {WORDS[i + 3]} context: Q: {WORDS[15 - i]} ?", ("yes",), "abac"[i % 4], gold=(f"{'abac'[i % 4]}0",)) for i in range(8)]

pytestmark = pytest.mark.usefixtures("double")


def small(seed=0, layers=1, width=16, **more) -> Retriever:
    "A retriever in 64 bits with short vectors, so that no probability is near 1."
    encoder = build_encoder(word_tokenizer([*WORDS, "persona: context: Q: ?"]), width, layers, seed=seed, gain=1.5)
    encoder.model.double()
    return Retriever(encoder, query="all", **more)


def read(retriever, stories=STORIES, **more) -> Library:
    library = Library(stories, **more)
    library.refresh(retriever)
    return library


def parameters(retriever): return [p for p in retriever.encoder.model.parameters() if p.requires_grad]


def gradient(value, retriever): return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters(retriever), allow_unused=True) if g is not None])


def by_hand(retriever, dialogue, stories) -> torch.Tensor:
    "Scores of one dialogue against stories, everything read now, one text at a time."
    asked = retriever.encoder.vectors(retriever.encoder.ids([retriever.query_text(dialogue)]))[0]
    told = torch.stack([retriever.passages.vectors(retriever.passages.ids([story_text(s)]))[0] for s in stories])
    return told @ asked / (math.sqrt(len(asked)) * retriever.temperature)


def moved(retriever, by=0.05) -> None:
    "The encoder as after a step of training."
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        for p in parameters(retriever): p.add_(by * torch.randn_like(p))


# ---------------------------------------------------------------- logits


@pytest.mark.parametrize("temperature", [0.8, 0.1])
@pytest.mark.parametrize("layers", [0, 1])
def test_logits_are_scaled_inner_products_over_the_corpus(layers, temperature):
    retriever = small(layers=layers, temperature=temperature)
    library = read(retriever)
    logits, ids = document_logits(retriever, library, TALKS)
    assert logits.shape == ids.shape == (8, 9)
    for d, row, at in zip(TALKS, logits, ids):
        stories = [s for s in STORIES if s.corpus == d.corpus]
        assert [library.stories[i] for i in at.tolist() if i >= 0] == stories and (at[len(stories):] == -1).all()
        assert torch.allclose(row[: len(stories)], by_hand(retriever, d, stories), atol=1e-5) and (row[len(stories):] == -torch.inf).all()


def test_one_corpus_and_many_give_the_same():
    retriever = small()
    library = read(retriever)
    many, one = document_logits(retriever, library, TALKS)[0], document_logits(retriever, library, TALKS[:1])[0]
    assert torch.allclose(many[0], one[0], atol=1e-9)


def test_reading_all_anew_is_the_true_gradient():
    retriever = small()
    library = read(retriever)
    moved(retriever)
    weights = torch.linspace(-1, 1, 9, dtype=torch.float64)
    for d in TALKS[:2]:
        stories = [s for s in STORIES if s.corpus == d.corpus]
        logits, ids = document_logits(retriever, library, [d], torch.tensor([library.rows[d.corpus].tolist()]))
        truth = by_hand(retriever, d, stories)
        w = weights[: len(stories)]
        assert torch.allclose(logits[0], truth, atol=1e-9)
        assert torch.allclose(gradient((w * logits[0].log_softmax(-1)).sum(), retriever), gradient((w * truth.log_softmax(-1)).sum(), retriever), atol=1e-8)


def test_only_the_sampled_stories_are_read_anew():
    retriever = small()
    library = read(retriever)
    before = document_logits(retriever, library, TALKS[:2])[0]
    moved(retriever)
    sampled = torch.tensor([[2, 5], [10, 12]])
    kept, fresh = document_logits(retriever, library, TALKS[:2])[0], document_logits(retriever, library, TALKS[:2], sampled)[0]
    changed = (kept - fresh).abs() > 1e-7
    assert changed[0].nonzero()[:, 0].tolist() == [2, 5] and changed[1][:4].nonzero()[:, 0].tolist() == [1, 3]
    assert torch.allclose(fresh[0, [2, 5]], by_hand(retriever, TALKS[0], [STORIES[2], STORIES[5]]), atol=1e-9) and not torch.allclose(before[0], kept[0], atol=1e-4)


def test_advantages_that_add_up_to_zero_need_only_the_sampled_stories():
    "log π is a score minus a term that all share: with weights of sum 0 nothing else of the corpus has a gradient; with others it has."
    retriever = small()
    library = read(retriever)
    sampled, everything = torch.tensor([[2, 5, 7]]), torch.tensor([list(range(9))])
    def policy(weights, anew): return gradient((torch.tensor(weights) * document_logits(retriever, library, TALKS[:1], anew)[0].log_softmax(-1)[:, sampled[0]]).sum(), retriever)
    assert torch.allclose(policy([0.7, -0.5, -0.2], sampled), policy([0.7, -0.5, -0.2], everything), atol=1e-6)
    a, b = policy([1.0, 0.0, 0.0], sampled), policy([1.0, 0.0, 0.0], everything)
    assert (a - b).norm() > 0.05 * b.norm()


def test_a_story_drawn_twice_counts_once():
    retriever = small()
    library = read(retriever)
    def pull(read_anew): return gradient(document_logits(retriever, library, TALKS[:1], torch.tensor([read_anew]))[0].log_softmax(-1)[0, 2], retriever)
    assert torch.allclose(pull([2, 5, 2, 2]), pull([5, 2]), atol=1e-9) and not torch.allclose(pull([5, 2]), pull([5, 3]), atol=1e-6)


def test_each_different_story_is_read_once(monkeypatch):
    retriever, sizes = small(), []
    library, vectors = read(retriever), Encoder.vectors
    monkeypatch.setattr(Encoder, "vectors", lambda self, ids: (sizes.append(len(ids)), vectors(self, ids))[1])
    document_logits(retriever, library, [TALKS[0], TALKS[2], TALKS[4]], torch.tensor([[0, 1], [1, 2], [0, 2]]))
    assert sizes == [3, 3]


def test_no_gradient_is_lost_in_short_corpora():
    retriever = small()
    library = read(retriever)
    logits, _ = document_logits(retriever, library, TALKS[:4], torch.tensor([[0], [9], [1], [13]]))
    probs = logits.softmax(-1)
    entropy = -(probs * logits.log_softmax(-1).masked_fill(probs == 0, 0.0)).sum(-1)
    assert gradient(entropy.sum(), retriever).isfinite().all() and abs(entropy[3].item()) < 1e-12 and (probs[1, 4:] == 0).all()


def test_query_side_training_leaves_the_stories_alone():
    retriever = small(side="query")
    library = read(retriever)
    logits = document_logits(retriever, library, TALKS[:1], torch.tensor([[1, 2]]))[0]
    assert torch.equal(logits, document_logits(retriever, library, TALKS[:1])[0])
    stories, frozen = library.vectors.clone(), [p.clone() for p in retriever.passages.model.parameters()]
    assert gradient(logits.log_softmax(-1)[0, 1], retriever).norm() > 0
    moved(retriever)
    assert library.refresh(retriever) == 0 and torch.equal(library.vectors, stories)
    assert all(torch.equal(a, b) for a, b in zip(frozen, retriever.passages.model.parameters()))
    assert library.refresh(small(side="query", seed=1)) == 14 and not torch.equal(library.vectors, stories)


# ---------------------------------------------------------------- staleness and refresh


def test_staleness_is_the_mean_kl_over_the_sampled():
    fresh, stale = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([[0.0, 2.0, 1.0], [5.0, 5.0, 5.0]])
    p, q = np.exp([1, 2, 0]) / np.exp([1, 2, 0]).sum(), np.exp([0, 2, 1]) / np.exp([0, 2, 1]).sum()
    assert staleness(fresh, stale) == pytest.approx((p * np.log(p / q)).sum() / 2, abs=1e-6) and staleness(fresh, fresh) == 0.0


def test_staleness_grows_and_refresh_ends_it():
    retriever = small()
    library, sampled, found = read(retriever), torch.arange(9)[None], []
    for by in (0.0, 0.02, 0.05):
        moved(retriever, by)
        fresh, kept = (document_logits(retriever, library, TALKS[:1], s)[0] for s in (sampled, None))
        found.append(staleness(fresh, kept))
    assert abs(found[0]) < 1e-9 and found[0] < found[1] < found[2]
    assert library.refresh(retriever) == 14
    fresh, kept = (document_logits(retriever, library, TALKS[:1], s)[0] for s in (sampled, None))
    assert abs(staleness(fresh, kept)) < 1e-9


def test_vectors_are_each_storys_own():
    retriever = small()
    library = read(retriever)
    for vector, story in zip(library.vectors, STORIES): assert np.allclose(vector, retriever.passages.embed([story_text(story)])[0], atol=1e-6)


def test_refresh_shows_progress_where_it_is_asked_to(capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    seen = []
    monkeypatch.setattr(Encoder, "embed", lambda self, texts, batch_size, label="": (seen.append((len(texts), batch_size, label)), np.zeros((len(texts), self.width), np.float32))[1])
    Library(STORIES).refresh(small(), "stories")
    assert seen == [(14, 512, "stories")]


# ---------------------------------------------------------------- rankings


def exact(retriever, library, dialogue) -> list[int]:
    rows = library.rows[dialogue.corpus].tolist()
    scores = library.vectors[rows].numpy() @ retriever.encoder.embed([retriever.query_text(dialogue)])[0]
    return [rows[i] for i in np.argsort(-scores, kind="stable")]


@pytest.mark.parametrize("options", [{}, dict(large=0), dict(kind="hnsw"), dict(kind="ivf", breadth=9)], ids=str)
def test_search_equals_brute_force(options):
    retriever = small()
    library = read(retriever, **options)
    for k in (1, 3, 99):
        found, scores = search_stories(retriever, library, TALKS, k)
        assert found == [exact(retriever, library, d)[:k] for d in TALKS]
        for d, row, of in zip(TALKS, found, scores): assert of == pytest.approx(by_hand(retriever, d, [STORIES[i] for i in row]).tolist(), abs=1e-4)


def test_search_follows_the_encoder_only_after_a_refresh():
    retriever = small()
    library = read(retriever, large=0)
    search_stories(retriever, library, TALKS, 3)
    moved(retriever, 0.5)
    library.refresh(retriever)
    assert search_stories(retriever, library, TALKS, 3)[0] == [exact(retriever, library, d)[:3] for d in TALKS]


def test_level_stories_stand_in_their_order():
    "Whole-number vectors, so that level means level."
    retriever = small()
    retriever.encoder.embed = lambda texts, *a: np.array([[3.0 if "boat" in t else 1.0] * 16 for t in texts], np.float32)
    stories = [Story(f"s{i}", "", "boat" if i in (2, 4) else "cat", "a") for i in range(7)]
    for large in (0, 100): assert search_stories(retriever, read(retriever, stories, large=large), TALKS[:1], 5)[0] == [[2, 4, 0, 1, 3]]


def test_large_corpora_go_to_faiss(monkeypatch):
    retriever, made = small(), []
    library, index = read(retriever, large=5), module._faiss_index
    monkeypatch.setattr(module, "_faiss_index", lambda library, rows: (made.append(len(rows)), index(library, rows))[1])
    for _ in range(2): search_stories(retriever, library, TALKS, 2)
    assert made == [9], "one index, for the one corpus of more than five stories, made once"


@pytest.mark.parametrize("query", ["all", "persona", "context"])
def test_word_search_is_bm25_of_the_corpus(query):
    library = Library(STORIES)
    for d, row in zip(TALKS, word_stories(library, TALKS, 3, query)):
        rows = library.rows[d.corpus].tolist()
        asked = dict(all=f"{d.persona} {d.context}", persona=d.persona, context=d.context)[query]
        assert row == [rows[i] for i in BM25([story_text(STORIES[i]) for i in rows]).search([asked], 3)[0][0]]


def test_random_stories_belong_to_the_dialogue():
    library = Library(STORIES)
    together = random_stories(library, TALKS, 3, seed=1)
    assert [random_stories(library, [d], 3, seed=1)[0] for d in reversed(TALKS)] == together[::-1] and together != random_stories(library, TALKS, 3, seed=2)
    for d, row in zip(TALKS, together): assert len(set(row)) == len(row) == min(3, len(library.rows[d.corpus])) and {STORIES[i].corpus for i in row} == {d.corpus}


def test_random_stories_are_even():
    counts = np.zeros(4)
    for i in range(2000): counts[random_stories(Library(STORIES[9:13]), [Dialogue(f"x{i}", "Q: cat", ("y",), "b")], 1, seed=0)[0]] += 1
    assert abs(counts - 500).max() < 100


def test_gold_stories():
    library = Library(STORIES)
    assert [[STORIES[i].id for i in row] for row in gold_stories(library, TALKS)] == [list(d.gold) for d in TALKS]
    assert "'zz'" in line_of(gold_stories, library, [Dialogue("d", "Q: cat", ("y",), "a", ("a0", "zz"))])
    assert "no gold" in line_of(gold_stories, library, [Dialogue("d", "Q: cat", ("y",), "a")])


# ---------------------------------------------------------------- what is asked, and with what


def test_query_texts():
    encoder = small().encoder
    texts = {q: Retriever(encoder, query=q).query_text(TALKS[0], "a draft") for q in module.QUERIES}
    assert texts == dict(persona="cat soup", all=TALKS[0].question, context="Q: ring ?", draft="a draft")
    asked = Retriever(encoder, query="draft").queries(TALKS[:2], ["cat", "dog"])
    assert torch.allclose(asked, encoder.vectors(encoder.ids(["cat", "dog"])), atol=1e-9)


def test_real_encoders_of_other_makes(folders):
    for arch in ("bert", "roberta", "t5"):
        retriever = Retriever(load_encoder(str(folders(arch, "encoder"))), query="all")
        library = read(retriever)
        logits, _ = document_logits(retriever, library, TALKS[:2], torch.tensor([[0, 1], [9, 10]]))
        assert torch.allclose(logits[0], by_hand(retriever, TALKS[0], STORIES[:9]), atol=1e-5)
        assert gradient(logits.log_softmax(-1)[0, 0], retriever).norm() > 0


def test_build_encoder():
    tok = word_tokenizer(WORDS)
    def first(seed): return build_encoder(tok, seed=seed).embed(["cat dog"])
    state = torch.random.get_rng_state()
    assert (first(1) == first(1)).all() and (first(1) != first(2)).any() and torch.equal(state, torch.random.get_rng_state())
    one, eight = (np.linalg.norm(build_encoder(tok, gain=g).embed(["cat"])) for g in (1.0, 8.0))
    assert eight == pytest.approx(8 * one, rel=1e-5) and build_encoder(tok, layers=0).model.encoder.layer is not None


def test_lines_for_what_a_person_can_mend():
    retriever, library = small(), Library(STORIES)
    assert "refresh" in line_of(document_logits, retriever, library, TALKS) and "refresh" in line_of(search_stories, retriever, library, TALKS, 1)
    library.refresh(retriever)
    wide = small(width=32)
    for call in (lambda: document_logits(wide, library, TALKS), lambda: search_stories(wide, library, TALKS, 1)): assert "16 wide" in line_of(call) and "32" in line_of(call)
    stranger = Dialogue("d9", "Q: cat", ("y",), "e")
    for call in (document_logits, lambda r, x, d: search_stories(r, x, d, 1), lambda r, x, d: word_stories(x, d, 1), lambda r, x, d: random_stories(x, d, 1, 0)):
        assert "d9" in line_of(call, retriever, library, [stranger])
    assert "corpus" in line_of(document_logits, retriever, library, TALKS[:2], torch.tensor([[0], [0]]))
    assert "corpus" in line_of(document_logits, retriever, library, TALKS[1:2], torch.tensor([[8]]))
    assert "draft" in line_of(Retriever(retriever.encoder, query="draft").queries, TALKS[:1])
    assert "'persona'" in line_of(Retriever, retriever.encoder, query="personna") and "'query'" in line_of(Retriever, retriever.encoder, side="qeury")
    assert "temperature" in line_of(Retriever, retriever.encoder, temperature=0.0)
    assert "no stories" in line_of(Library, []) and "'flat'" in line_of(Library, STORIES, kind="flatt")
    retriever.encoder.model.embeddings.word_embeddings.weight.data.fill_(torch.nan)
    assert "NaN" in line_of(library.refresh, retriever)

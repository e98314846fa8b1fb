"rlgen.genalign.classifier: the optimum against scikit-learn and finite truth, nothing left from one training in the next, and judging."
import math
import random

import numpy as np
import pytest
import torch
from helpers import line_of
from tiny_models import make_model

from rlgen.genalign.classifier import (Classifier, calibration_error, class_indices, conjugate_gradient, fit_linear, hessian_product, judge, mean_loss, new_classifier,
                                       train_classifier, train_transformer, train_words, word_means)
from rlgen.genalign.data import Item

LABELS = ("cross", "glad")
WORDS = dict(cross="cold rude dirty shabby stale".split(), glad="warm kind cosy merry fresh".split(), dull="slow flat grey plain drab".split())


def reviews(n, seed=0, labels=LABELS):
    rng = random.Random(seed)
    return [Item(f"the {rng.choice(WORDS[label])} {rng.choice(('room', 'soup', 'bed'))} on {rng.choice(('monday', 'friday'))}", label, f"r{i}") for i, label in enumerate(labels[i % len(labels)] for i in range(n))]


def noise(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- labels


def test_class_indices():
    assert class_indices(reviews(3), LABELS).tolist() == [0, 1, 0] and class_indices(reviews(3), LABELS[::-1]).tolist() == [1, 0, 1]
    assert "'glad'" in line_of(class_indices, [Item("a", "gld", "x7")], LABELS) and "text x7 ('a')" in line_of(class_indices, [Item("a", "gld", "x7")], LABELS)
    assert "one class only (glad)" in line_of(class_indices, reviews(2), ["glad"])
    assert "twice" in line_of(class_indices, reviews(2), ["glad", "cross", "glad"])
    assert "no labelled texts" in line_of(class_indices, [], LABELS)
    only = [t for t in reviews(6) if t.label == "glad"]
    assert "label 'cross' among 3" in line_of(class_indices, only, LABELS, every=True) and class_indices(only, LABELS).tolist() == [1, 1, 1]


# ---------------------------------------------------------------- linear algebra


@pytest.mark.parametrize("classes", (2, 3))
def test_hessian_product_is_autograds(classes):
    x, w, v = noise(7, 4), noise(4, classes, seed=1), noise(4, classes, seed=2)
    y = torch.arange(7) % classes
    def loss(w): return torch.nn.functional.cross_entropy(x @ w, y, reduction="sum") + 0.3 / 2 * (w**2).sum()
    wanted = torch.autograd.functional.hvp(loss, w, v)[1]
    torch.testing.assert_close(hessian_product(x, x.T, (x @ w).softmax(-1), v, 0.3), wanted)


def test_conjugate_gradient_solves():
    a = noise(12, 12)
    a, b = a @ a.T + torch.eye(12, dtype=torch.float64), noise(4, 3, seed=1)
    got = conjugate_gradient(lambda v: (a @ v.flatten()).view(4, 3), b)
    torch.testing.assert_close(got, torch.linalg.solve(a, b.flatten()).view(4, 3))
    assert not conjugate_gradient(lambda v: v, 0 * b).any()


@pytest.mark.parametrize("classes", (2, 3, 5))
def test_the_optimum_is_scikit_learns(classes):
    from sklearn.linear_model import LogisticRegression
    x, l2 = (noise(60, 8) > 0.5).double(), 0.7
    y = torch.arange(60) * 7 % 11 % classes
    w = fit_linear(x, y, classes, l2)
    ours = (w - w.mean(1, keepdim=True)).T if classes > 2 else (w[:, 1] - w[:, 0])[None]
    theirs = LogisticRegression(C=(2 if classes == 2 else 1) / l2, fit_intercept=False, tol=1e-12, max_iter=5000).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(ours.numpy(), theirs.coef_, atol=1e-5)
    w = w.requires_grad_()
    (torch.nn.functional.cross_entropy(x @ w, y, reduction="sum") + l2 / 2 * (w**2).sum()).backward()
    assert w.grad.norm() < 1e-6, "the gradient vanishes there"


def test_fit_linear_takes_what_comes():
    "Sparse or dense, separable, far from 0, no texts, one class only."
    x, y = (noise(30, 5) > 0).double(), torch.arange(30) % 2
    torch.testing.assert_close(fit_linear(x.to_sparse(), y, 2), fit_linear(x, y, 2))
    hard = fit_linear(torch.tensor([[1.0, 0], [0, 1.0]], dtype=torch.float64) * 50, torch.tensor([0, 1]), 2, 1e-4)
    assert hard.isfinite().all() and hard[0, 0] > 0 > hard[1, 0]
    rare, one = 8 * torch.cat([torch.ones(200, 1), torch.eye(200)], 1).double(), torch.tensor([1] + [0] * 199)
    w = fit_linear(rare, one, 2, 1e-3)
    left = rare.T @ ((rare @ w).softmax(-1) - torch.nn.functional.one_hot(one, 2)) + 1e-3 * w
    assert left.norm() < 1e-4, "whole Newton steps would run away here"
    assert not fit_linear(x[:0], y[:0], 3).any() and fit_linear(x, 0 * y, 2)[:, 0].sum() > 0
    for l2 in (0.0, -1.0): assert "classifier_l2" in line_of(fit_linear, x, y, 2, l2)


# ---------------------------------------------------------------- words


def test_words_learn_and_dont_depend_on_order():
    train, test = reviews(60), reviews(40, 1)
    a, b = train_words(train, LABELS), train_words(train[::-1], LABELS)
    assert judge(a, test)["accuracy"] == 1.0
    torch.testing.assert_close(a.weight, b.weight, atol=1e-7, rtol=0)
    swapped = train_words(train, LABELS[::-1])
    torch.testing.assert_close(swapped.logits([t.text for t in test]).flip(1), a.logits([t.text for t in test]), atol=1e-7, rtol=0)


def test_words_features():
    c = train_words([Item("Warm, warm room.", "glad"), Item("cold room", "cross")], LABELS)
    assert c.names == ("cold", "room", "warm") and c.weight.shape == (2, 3)
    assert c.features(["warm WARM soup", "", "a cold ROOM!"]).tolist() == [[0, 0, 1], [0, 0, 0], [1, 1, 0]]
    assert c.inputs(["warm"]).tolist() == [[0, 0, 1, 1]] and c.features([]).shape == (0, 3)
    torch.testing.assert_close(c.logits(["warm", "room"]), c.inputs(["warm", "room"]) @ torch.cat([c.weight, c.bias[:, None]], 1).T)
    assert c.logits([""]).softmax(-1)[0, 0].item() == pytest.approx(0.5), "a text without known words, classes of one size"
    most = train_words([Item("warm", "glad"), Item("kind", "glad"), Item("cold", "cross")], LABELS)
    assert most.bias[1].item() == pytest.approx(-most.bias[0].item()) and most.logits([""]).argmax() == 1, "the constant knows which class is larger"
    few = train_words([*reviews(30), Item("rare", "glad")], LABELS, max_words=4)
    assert len(few.names) == 4 and {"the", "on"} < set(few.names)


def test_words_against_scikit_learn_on_texts():
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    labels, train, test = ("cross", "dull", "glad"), reviews(90, 0, ("cross", "dull", "glad")), reviews(45, 1, ("cross", "dull", "glad"))
    vectors = CountVectorizer(binary=True)
    def ones(x): return np.concatenate([x.toarray(), np.ones((x.shape[0], 1))], 1)
    theirs = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10, max_iter=2000).fit(ones(vectors.fit_transform([t.text for t in train])), [t.label for t in train])
    ours = train_words(train, labels).logits([t.text for t in test]).softmax(-1)
    np.testing.assert_allclose(ours.numpy(), theirs.predict_proba(ones(vectors.transform([t.text for t in test]))), atol=1e-4)


def test_word_means():
    a, b, c, d = word_means(["Warm room", "room, warm", "", "warm"])
    assert torch.equal(a, b) or torch.allclose(a, b, atol=1e-15)
    assert not c.any() and torch.allclose((d + word_means(["room"])[0]) / 2, a) and word_means([]).shape == (0, 64) and word_means(["x"], 7).shape == (1, 7)
    many = word_means([f"word{i}" for i in range(200)])
    assert (many.norm(dim=1) - 1).abs().mean() < 0.12 and (many @ many.T - torch.diag((many**2).sum(1))).abs().max() < 0.7


# ---------------------------------------------------------------- judging


def fixed(logits): return Classifier(("a", "b", "c"), lambda texts: torch.tensor([logits[int(t)] for t in texts], dtype=torch.float64), None, torch.eye(3, dtype=torch.float64), None)


def test_judge_by_hand():
    "Five texts, right labels a a b b c; guessed a b b b b."
    items = [Item(str(i), label) for i, label in enumerate("aabbc")]
    at = judge(fixed([[2.0, 0, 0], [0, 1.0, 0], [0, 3.0, 0], [0, 1.0, 0], [0, 2.0, 0]]), items)
    assert at["confusion"] == [[1, 1, 0], [0, 2, 0], [0, 1, 0]] and at["accuracy"] == 0.6 and at["n"] == 5
    assert at["classes"]["a"] == pytest.approx(dict(precision=1.0, recall=0.5, f1=2 / 3, support=2)) and at["classes"]["c"] == dict(precision=0, recall=0, f1=0, support=1)
    assert at["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    few = judge(fixed([[2.0, 0, 0], [0, 1.0, 0], [0, 3.0, 0], [0, 1.0, 0]]), items[:4])
    assert few["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2), "nobody has c, nobody guessed it"
    z = [math.log(math.exp(m) + 2) for m in (2, 1, 3, 1, 2)]
    assert at["loss"] == pytest.approx((z[0] - 2 + z[1] + z[2] - 3 + z[3] - 1 + z[4]) / 5)
    assert mean_loss(fixed([[0.0, 0, 0]]), [Item("0", "b")]) == pytest.approx(math.log(3))


def test_macro_f1_is_scikit_learns():
    from sklearn.metrics import f1_score
    for seed in range(5):
        logits = noise(20, 3, seed=seed).tolist()
        items = [Item(str(i), "abc"[i * 5 % (2 + seed % 2)]) for i in range(20)]
        guess = ["abc"[max(range(3), key=row.__getitem__)] for row in logits]
        assert judge(fixed(logits), items)["macro_f1"] == pytest.approx(f1_score([t.label for t in items], guess, average="macro", zero_division=0))


def test_calibration_error():
    probs = torch.tensor([[0.95, 0.05]] * 4 + [[0.3, 0.7]] * 6)
    y = torch.tensor([0, 0, 1, 1] + [1] * 6)
    assert calibration_error(probs, y) == pytest.approx(0.4 * 0.45 + 0.6 * 0.3, abs=1e-6)
    assert calibration_error(torch.eye(2), torch.tensor([0, 1])) == 0 and calibration_error(torch.eye(2), torch.tensor([1, 0])) == 1
    assert calibration_error(torch.tensor([[0.99, 0.01], [0.9, 0.1]]), torch.tensor([0, 1])) == pytest.approx((0.01 + 0.9) / 2, abs=1e-6), "two bins"
    p = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.5
    right = torch.rand(20_000, generator=torch.Generator().manual_seed(1)) < p
    assert calibration_error(torch.stack([p, 1 - p], 1), (~right).long()) < 0.02, "probabilities that are kept"


def test_judge_refuses():
    c = train_words(reviews(10), LABELS)
    assert "no class here" in line_of(judge, c, [Item("a", "sad")]) and "no labelled texts" in line_of(judge, c, [])
    assert judge(c, [t for t in reviews(10) if t.label == "glad"])["classes"]["cross"]["support"] == 0


# ---------------------------------------------------------------- transformers

TEXTS = [t.text for t in reviews(40)]
SMALL = dict(batch_size=5, accumulation=2, lr=5e-3, epochs=6)


@pytest.fixture(scope="module")
def body(tmp_path_factory): return {arch: str(make_model(arch, tmp_path_factory.mktemp(arch), head=head, vocab_texts=TEXTS)) for arch, head in (("bert", "encoder"), ("roberta", "encoder"), ("deberta-v2", "encoder"), ("gpt2", "lm"), ("llama", "lm"))}


@pytest.mark.parametrize("arch", ("bert", "roberta", "deberta-v2", "gpt2", "llama"))
def test_logits_are_the_models_own(body, arch):
    "Features times the last layer is what the model itself says, in a batch of texts of several lengths."
    texts = ["the warm room", "the cold and very dirty soup on friday", "kind"]
    c = new_classifier(body[arch], ("a", "b", "c"))
    for text, row in zip(texts, c.logits(texts)):
        with torch.no_grad(): wanted = c.model(torch.tensor([c.tokenizer(text)["input_ids"]])).logits[0]
        torch.testing.assert_close(row, wanted.double(), atol=1e-5, rtol=0)
    assert c.features(texts).shape == (3, 32) == c.embed(texts).shape and c.logits([]).shape == (0, 3)
    assert (c.bias is None) == (arch in ("gpt2", "llama")) and c.inputs(texts).shape[1] == 32 + (c.bias is not None)


def test_nothing_is_left_of_a_training(body):
    "Same seed, same bits, whatever was trained in between; the folder and the untrained classifier stay as they were."
    train, texts = reviews(20), [t.text for t in reviews(6, 1)]
    fresh = new_classifier(body["bert"], LABELS)
    before, embedded = fresh.logits(texts), fresh.embed(texts)
    state = torch.get_rng_state()
    assert torch.equal(new_classifier(body["bert"], LABELS).logits(texts), before) and torch.equal(torch.get_rng_state(), state)
    a = train_transformer(train, LABELS, body["bert"], **SMALL)
    train_transformer(reviews(20, 5), LABELS, body["bert"], **SMALL)
    b = train_transformer(train, LABELS, body["bert"], **SMALL)
    assert torch.equal(a.logits(texts), b.logits(texts)) and not torch.equal(a.logits(texts), before)
    assert torch.equal(fresh.logits(texts), before) and torch.equal(fresh.embed(texts), embedded) and not torch.equal(a.embed(texts), embedded)
    assert not torch.equal(new_classifier(body["bert"], LABELS, seed=1).logits(texts), before)
    assert not torch.equal(train_transformer(train, LABELS, body["bert"], seed=1, **SMALL).logits(texts), a.logits(texts))


@pytest.mark.parametrize("arch", ("roberta", "gpt2"))
def test_a_transformer_learns(body, arch):
    train, test, lines = reviews(60), reviews(30, 1), []
    c = train_transformer(train, LABELS, body[arch], batch_size=10, accumulation=1, lr=1e-2, epochs=8, log=lambda step, **s: lines.append((step, s)))
    assert judge(c, test)["accuracy"] > 0.9 and not c.model.training
    assert lines[-1][0] == 48 and lines[-1][1]["loss"] < lines[0][1]["loss"]


def test_accumulation_is_a_bigger_batch(body):
    train, texts = reviews(20), [t.text for t in reviews(6, 1)]
    options = dict(lr=1e-3, epochs=1)
    def logits(**sizes):
        torch.manual_seed(0)
        return train_transformer(train, LABELS, str(quiet), **options, **sizes).logits(texts)
    from pathlib import Path
    quiet = make_model("bert", Path(body["bert"]).parent / "quiet", head="encoder", vocab_texts=TEXTS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    torch.testing.assert_close(logits(batch_size=2, accumulation=5), logits(batch_size=10, accumulation=1), atol=1e-4, rtol=0)


def test_the_best_epoch_is_kept(body):
    "Labels of the held-out part are turned round: every epoch makes it worse, so the first is kept, and patience stops."
    turned = [Item(t.text, LABELS[t.label == "cross"]) for t in reviews(30, 2)]
    def losses(**options):
        lines = []
        c = train_transformer(reviews(60), LABELS, body["gpt2"], batch_size=10, accumulation=1, lr=1e-2, epochs=8, dev=turned, log=lambda step, **s: lines.extend([s["dev_loss"]] if "dev_loss" in s else []), **options)
        return judge(c, turned)["loss"], lines
    kept, seen = losses()
    assert len(seen) == 8 and kept == pytest.approx(min(seen), abs=1e-6) and kept < seen[-1] - 0.1
    stopped, few = losses(patience=2)
    assert stopped == pytest.approx(kept, abs=1e-6) and seen[: len(few)] == few and len(few) < 8


def test_transformers_refuse(body):
    train = reviews(16)
    assert "make 3 updates" in line_of(train_transformer, train, LABELS, body["bert"], warmup=100) and "warmup = 3 " in line_of(train_transformer, train, LABELS, body["bert"], warmup=3)
    train_transformer(train, LABELS, body["bert"], warmup=2)
    assert "classifier_model" in line_of(train_transformer, train, LABELS)
    assert "'cross'" in line_of(train_transformer, train[1::2], LABELS, body["bert"])


def test_a_trained_heads_labels_are_not_ours(tmp_path):
    "A folder that brings a last layer for as many classes: it is not taken over."
    from safetensors.torch import load_file
    folder = make_model("bert", tmp_path, head="reward", vocab_texts=TEXTS, num_labels=2)
    theirs, ours = load_file(folder / "model.safetensors")["classifier.weight"].double(), new_classifier(str(folder), LABELS)
    assert theirs.shape == ours.weight.shape and (theirs - ours.weight).abs().min() > 1e-6 and not ours.bias.any()
    assert torch.equal(ours.weight, new_classifier(str(folder), LABELS).weight)


def test_texts_longer_than_the_model(body):
    c = new_classifier(body["bert"], LABELS, max_length=8)
    assert torch.equal(c.logits(["warm " * 500]), c.logits(["warm " * 400])) and new_classifier(body["bert"], LABELS, max_length=10_000).logits(["warm " * 500]).isfinite().all()


# ---------------------------------------------------------------- both


def test_train_classifier(body):
    train, texts = reviews(20), [t.text for t in reviews(5, 1)]
    assert torch.equal(train_classifier("words", train, LABELS, l2=0.5).logits(texts), train_words(train, LABELS, 0.5).logits(texts))
    assert torch.equal(train_classifier("transformer", train, LABELS, seed=2, model=body["bert"], **SMALL).logits(texts), train_transformer(train, LABELS, body["bert"], seed=2, **SMALL).logits(texts))
    assert "'words'" in line_of(train_classifier, "word", train, LABELS)
    assert "no option 'l3'" in line_of(train_classifier, "words", train, LABELS, l3=1) and "'epochs'" in line_of(train_classifier, "transformer", train, LABELS, epoch=1)


@pytest.mark.slices
def test_real_sentences(slices):
    "Two classes of sentences about films: better than chance by far, with words alone, in seconds."
    import csv
    rows = {name: [Item(r["text"], r["label"]) for r in csv.DictReader(open(slices / "movie_sentences" / f"{name}.csv", encoding="utf-8"))] for name in ("train", "test")}
    labels = sorted({t.label for t in rows["train"]})
    at = judge(train_words(rows["train"], labels, l2=3.0), rows["test"])
    assert 0.72 < at["accuracy"] < 0.9 and at["ece"] < 0.15

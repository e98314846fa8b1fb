"rlgen.genalign.credit: influence against autograd, against retraining and against all subsets."
import itertools
import random
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import line_of
from tiny_models import make_model

from rlgen.genalign.classifier import class_indices, fit_linear, mean_loss, new_classifier, train_transformer, train_words
from rlgen.genalign.credit import CREDITS, CURVATURES, dataset_credit, distance_credit, influence, leave_one_out, scalar_credit, to_advantages
from rlgen.genalign.data import Item
from rlgen.genalign.distances import inter_class, intra_class
from rlgen.grpo import group_advantages

WORDS = dict(cross="cold rude dirty shabby stale".split(), glad="warm kind cosy merry fresh".split(), dull="slow flat grey plain drab".split())
LABELS, THREE = ("cross", "glad"), ("cross", "dull", "glad")


def reviews(n, seed=0, labels=LABELS, wrong=0.0):
    "Labelled by turns; a share of labels is wrong, which the id tells."
    rng, out = random.Random(seed), []
    for i in range(n):
        label = labels[i % len(labels)]
        bad = rng.random() < wrong
        truth = labels[(i + 1) % len(labels)] if bad else label
        a, b = rng.sample(WORDS[truth], 2)
        out.append(Item(f"the {a} {rng.choice(('room', 'soup', 'bed'))} was {b} on {rng.choice(('monday', 'friday'))}", label, "bad" if bad else "good"))
    return out


def corr(a, b): return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


def head_of(classifier):
    "The last layer's weights and, where there is one, its bias, as one matrix (D, C)."
    return (classifier.weight if classifier.bias is None else torch.cat([classifier.weight, classifier.bias[:, None]], 1)).T.clone()


def slope(classifier, items):
    "Autograd's gradient of the mean loss by the last layer."
    w = head_of(classifier).requires_grad_()
    loss = torch.nn.functional.cross_entropy(classifier.inputs([t.text for t in items]) @ w, class_indices(items, classifier.labels))
    return torch.autograd.grad(loss, w)[0]


# ---------------------------------------------------------------- scalar, data sets


def test_a_scalar_teaches_nothing_in_a_group():
    credits = scalar_credit(-0.7, 8)
    assert credits.tolist() == [-0.7] * 8 and not to_advantages(credits).any() and not group_advantages(credits)[0].any() and not to_advantages(credits, list("ababaabb")).any()


def test_dataset_credit():
    assert dataset_credit([1.0, 3.0, 8.0], [2, 1, 3]).tolist() == pytest.approx([-4.5, -4.5, -1.5, 6, 6, 6])
    assert not dataset_credit([0.3, 0.3], [1, 2]).any()
    assert "2 or more" in line_of(dataset_credit, [1.0], [4]) and "2 rewards for 1" in line_of(dataset_credit, [1.0, 2.0], [4]) and "nan" in line_of(dataset_credit, [1.0, float("nan")], [1, 1])


# ---------------------------------------------------------------- influence


@pytest.mark.parametrize("labels", (LABELS, THREE))
def test_gradient_similarity_is_autograds(labels):
    items, golden = reviews(18, 0, labels, 0.2), reviews(12, 1, labels)
    c = train_words(items, labels)
    wanted = torch.stack([(slope(c, golden) * slope(c, [t])).sum() for t in items])
    torch.testing.assert_close(influence(c, items, golden, "none"), wanted, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("labels", (LABELS, THREE))
def test_curvature_is_the_hessian_written_out(labels):
    items, golden, l2, more = reviews(18, 0, labels, 0.2), reviews(12, 1, labels), 0.7, 0.2
    c = train_words(items, labels, l2)
    w, x, y = head_of(c), c.inputs([t.text for t in items]), class_indices(items, labels)
    H = torch.autograd.functional.hessian(lambda w: torch.nn.functional.cross_entropy(x @ w, y, reduction="sum") + (l2 + more) / 2 * (w**2).sum(), w).view(w.numel(), -1)
    each = torch.stack([slope(c, [t]).flatten() for t in items])
    torch.testing.assert_close(influence(c, items, golden, "full", more), each @ torch.linalg.solve(H, slope(c, golden).flatten()), atol=1e-10, rtol=1e-7)
    torch.testing.assert_close(influence(c, items, golden, "diagonal", more), each @ (slope(c, golden).flatten() / H.diag()), atol=1e-12, rtol=1e-9)


def test_influence_foretells_leaving_out():
    "Forty texts, a quarter of them mislabelled, each left out in turn."
    items, golden = reviews(40, 3, wrong=0.25), reviews(60, 4)
    learn = partial(train_words, labels=LABELS)
    saved, c = leave_one_out(items, golden, learn), learn(items)
    found = {k: influence(c, items, golden, k) for k in CURVATURES}
    assert corr(found["full"], saved) > 0.95 and min(corr(found[k], saved) for k in ("none", "diagonal")) > 0.6
    size = (found["full"] * saved).sum() / (saved**2).sum()
    assert 0.6 < size < 1.05, "in nats, a little less than the truth"
    assert corr(found["full"], saved) > max(corr(found["none"], saved), corr(found["diagonal"], saved))
    bad = torch.tensor([t.id == "bad" for t in items])
    assert 5 < bad.sum() < 20 and found["full"][bad].mean() < 0 < found["full"][~bad].mean() and (found["full"][bad] < 0).double().mean() > 0.9


def test_influence_with_many_texts_foretells_better():
    "Leaving one out is a smaller change among more texts, so that first order says more of it."
    golden = reviews(30, 4)
    def off(n):
        items = reviews(n, 5, wrong=0.2)
        c = train_words(items, LABELS)
        whole = mean_loss(c, golden)
        saved = torch.tensor([mean_loss(train_words(items[:i] + items[i + 1 :], LABELS), golden) - whole for i in range(10)], dtype=torch.float64)
        return ((influence(c, items, golden)[:10] - saved).norm() / saved.norm()).item()
    assert off(160) < off(20) / 2


def test_leave_one_out_by_hand():
    items, golden = reviews(6, 1, wrong=0.3), reviews(8, 2)
    learn = partial(train_words, labels=LABELS, l2=0.5)
    saved = leave_one_out(items, golden, learn)
    for i in (0, 5): assert saved[i].item() == pytest.approx(mean_loss(learn(items[:i] + items[i + 1 :]), golden) - mean_loss(learn(items), golden))
    assert "no text with the label" in line_of(leave_one_out, items[:3], golden, learn), "a class would be left without texts"


def test_copies_share():
    items, golden = reviews(8), reviews(20, 2)
    def first(n, curvature):
        many = [*items, *[items[0]] * n]
        return influence(train_words(many, LABELS), many, golden, curvature)
    assert first(20, "full")[0] < 0.3 * first(0, "full")[0]
    torch.testing.assert_close(first(5, "full")[8:], first(5, "full")[:1].expand(5))


def test_influence_doesnt_care_for_company_in_golden():
    "Golden texts count by their mean: twice the same ones change nothing; order neither."
    items, golden = reviews(12, wrong=0.2), reviews(10, 2)
    c = train_words(items, LABELS)
    torch.testing.assert_close(influence(c, items, golden * 2), influence(c, items, golden))
    torch.testing.assert_close(influence(c, items[::-1], golden[::-1]).flip(0), influence(c, items, golden))


def test_influence_refuses():
    items, golden = reviews(8), reviews(6, 2)
    c = train_words(items, LABELS)
    assert "did you mean 'full'" in line_of(influence, c, items, golden, "ful")
    bare = replace(c, l2=0.0)
    for k in ("full", "diagonal"): assert "damping above 0" in line_of(influence, bare, items, golden, k)
    assert influence(bare, items, golden, "none").isfinite().all() and "damping = -1" in line_of(influence, c, items, golden, damping=-1)
    assert "no class here" in line_of(influence, c, [Item("a", "sad")], golden) and "no labelled texts" in line_of(influence, c, items, [])


@pytest.mark.parametrize("arch", ("roberta", "gpt2"))
def test_influence_on_a_transformers_head(arch, tmp_path, double):
    "Closed form against autograd, and against refitting the head on frozen features."
    items, golden = reviews(24, 0, wrong=0.25), reviews(20, 2)
    folder = str(make_model(arch, tmp_path, head="lm" if arch == "gpt2" else "encoder", vocab_texts=[t.text for t in items]))
    c = train_transformer(items, LABELS, folder, batch_size=8, accumulation=1, lr=5e-3, epochs=3)
    wanted = torch.stack([(slope(c, golden) * slope(c, [t])).sum() for t in items])
    torch.testing.assert_close(influence(c, items, golden, "none"), wanted, atol=1e-9, rtol=1e-7)
    assert "damping" in line_of(influence, c, items, golden)
    x, y = c.inputs([t.text for t in items]), class_indices(items, LABELS)
    golden_x, golden_y = c.inputs([t.text for t in golden]), class_indices(golden, LABELS)
    def loss(w): return torch.nn.functional.cross_entropy(golden_x @ w, golden_y).item()
    w = fit_linear(x, y, 2, 1.0)
    refitted = replace(c, weight=w.T if c.bias is None else w[:-1].T, bias=None if c.bias is None else w[-1], l2=1.0)
    saved = torch.tensor([loss(fit_linear(torch.cat([x[:i], x[i + 1 :]]), torch.cat([y[:i], y[i + 1 :]]), 2, 1.0)) - loss(w) for i in range(24)], dtype=torch.float64)
    assert corr(influence(refitted, items, golden), saved) > 0.9
    untrained = new_classifier(folder, LABELS)
    assert influence(untrained, items, golden, damping=1.0).isfinite().all()


# ---------------------------------------------------------------- all subsets


@pytest.fixture(scope="module")
def subsets():
    "Eight texts, two of them mislabelled; each of 256 choices of them trains a classifier."
    items = [Item(f"the {w} {n}", label, "good") for label in LABELS for w, n in zip(WORDS[label][:4], ("room", "soup", "bed", "room"))]
    for i in (3, 7): items[i] = Item(items[i].text, LABELS[LABELS.index(items[i].label) - 1], "bad")
    golden = [Item(f"a {w} {n}", label) for label in LABELS for w in WORDS[label][:4] for n in ("room", "lamp")]
    c, here = train_words(items, LABELS), torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)), dtype=torch.float64)
    x, y = c.inputs([t.text for t in items]), class_indices(items, LABELS)
    golden_x, golden_y = c.inputs([t.text for t in golden]), class_indices(golden, LABELS)
    def reward(w): return -torch.nn.functional.cross_entropy(golden_x @ w, golden_y).item()
    return items, golden, c, here, x, y, reward


def regress(here, reward): return torch.linalg.lstsq(torch.cat([here, torch.ones(len(here), 1, dtype=here.dtype)], 1), reward[:, None]).solution[:-1, 0]


def test_regression_over_all_subsets_agrees_with_credit(subsets):
    items, golden, c, here, x, y, reward = subsets
    earned = torch.tensor([reward(fit_linear(x[m.bool()], y[m.bool()], 2)) for m in here], dtype=torch.float64)
    worth, credit = regress(here, earned), influence(c, items, golden)
    assert corr(worth, credit) > 0.95 and (torch.sign(worth) == torch.sign(credit)).all() and worth[[3, 7]].max() < 0
    scalar = 4 * (here - 0.5) * (earned - earned.mean())[:, None]
    torch.testing.assert_close(scalar.mean(0), worth)
    assert (scalar.std(0) > 1.5 * worth.abs()).all(), "right on average, and drowned in noise"


def test_after_one_small_step_they_are_equal(subsets):
    items, golden, c, here, x, y, reward = subsets
    blank, step = replace(c, weight=0 * c.weight, bias=0 * c.bias), 1e-5
    pulls = x[:, :, None] * (0.5 - torch.nn.functional.one_hot(y, 2))[:, None, :]
    earned = torch.tensor([reward(-step * (m[:, None, None] * pulls).sum(0)) for m in here], dtype=torch.float64)
    torch.testing.assert_close(regress(here, earned) / step, influence(blank, items, golden, "none"), atol=1e-5, rtol=0)


# ---------------------------------------------------------------- advantages


def test_advantages_by_group():
    got = to_advantages(torch.tensor([1.0, 3.0, 10.0, 14.0]), ["a", "a", "b", "b"])
    assert got.tolist() == pytest.approx([-(0.4**0.5), 0.4**0.5, -(1.6**0.5), 1.6**0.5])
    together = to_advantages(torch.tensor([1.0, 3.0, 10.0, 14.0]))
    assert together.mean().abs() < 1e-12 and together.std(correction=0).item() == pytest.approx(1) and together[1] < 0 < got[1]
    assert to_advantages(torch.tensor([1.0, 2.0, 7.0]), ["a", "a", "b"])[2] == 0, "nobody to compare with"


def test_advantages_keep_their_size():
    credits = torch.tensor([0.1, -0.2, 0.05, 0.3])
    torch.testing.assert_close(to_advantages(credits * 1e-6), to_advantages(credits))
    assert not to_advantages(torch.tensor([0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2], dtype=torch.float64)).any(), "rounding is no difference"
    assert not to_advantages(torch.tensor([0.5])).any()
    assert to_advantages(torch.tensor([0.0] * 99 + [1.0]), clip=3.0).max() == 3 and to_advantages(credits.requires_grad_()).requires_grad is False


def test_advantages_refuse():
    assert "2 groups for 3" in line_of(to_advantages, torch.zeros(3), ["a", "b"]) and "nan" in line_of(to_advantages, torch.tensor([0.0, float("nan")]))
    assert CREDITS == ("per_sample", "dataset", "scalar")


# ---------------------------------------------------------------- distances


def points(sizes, width=3, seed=0):
    "Vectors in a mixed order, and the names of their classes."
    labels = random.Random(seed).sample(whole := [name for name, n in zip("abcd", sizes) for _ in range(n)], len(whole))
    return torch.randn(len(labels), width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), labels


def left_out(x, labels, distance):
    "What is lost with each text, by measuring twice."
    out = []
    for i in range(len(labels)):
        rest = [j for j in range(len(labels)) if j != i]
        out.append([f(x, labels, distance) - (f(x[rest], [labels[j] for j in rest], distance) if rest else 0.0) for f in (inter_class, intra_class)])
    return torch.tensor(out, dtype=torch.float64).T


@pytest.mark.parametrize("distance", ("cosine", "euclidean"))
@pytest.mark.parametrize("sizes", [(5, 4), (3, 3), (3, 4, 6), (1, 4), (2, 5), (2, 2), (1, 1), (1, 2, 3, 4), (1, 1, 1), (5,), (3,), (2,), (1,)], ids=str)
def test_distance_credit_is_leaving_out(sizes, distance):
    "Classes of one, two and more texts; a class that goes with its text; copies and a vector of nothing among them."
    x, labels = points(sizes)
    inter, intra = distance_credit(x, labels, distance)
    torch.testing.assert_close(torch.stack([inter, intra]), left_out(x, labels, distance), atol=1e-12, rtol=1e-9)
    assert inter.dtype == intra.dtype == torch.float64 and inter.shape == intra.shape == (len(labels),)
    x[-1] = x[0]
    x[len(x) // 2] = 0
    torch.testing.assert_close(torch.stack(distance_credit(x, labels, distance)), left_out(x, labels, distance), atol=1e-12, rtol=1e-9)


def test_distance_credit_by_hand():
    "On a line: a at 0, 2 and 7, b at 10, 10 and 10."
    x, labels = torch.tensor([[0.0], [2.0], [7.0], [10.0], [10.0], [10.0]]), list("aaabbb")
    inter, intra = distance_credit(x, labels, "euclidean")
    assert inter.tolist() == pytest.approx([1.5, 0.5, -2.0, 0, 0, 0]), "centroids 7 apart; 5.5, 6.5 and 9 without each"
    assert intra.tolist() == pytest.approx([(14 / 3 - 5) / 2, (14 / 3 - 7) / 2, (14 / 3 - 2) / 2, 0, 0, 0])
    assert not any(v.any() for v in distance_credit(torch.ones(6, 2), labels))


def test_distance_credit_is_the_texts_own():
    "It goes with its text in any order, is the same for copies, and knows no unit."
    x, labels = points((5, 6, 4), seed=4)
    x[labels.index("b")] = x[len(labels) - 1 - labels[::-1].index("b")]
    inter, intra = distance_credit(x, labels)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    for a, b in zip((inter, intra), distance_credit(x[order], [labels[i] for i in order])): torch.testing.assert_close(a[order], b)
    first, last = labels.index("b"), len(labels) - 1 - labels[::-1].index("b")
    assert first != last and inter[first].item() == pytest.approx(inter[last].item()) and intra[first].item() == pytest.approx(intra[last].item())
    for same in (x.numpy(), x.clone().requires_grad_()): assert torch.equal(distance_credit(same, labels)[0], inter)
    torch.testing.assert_close(distance_credit(x * 7, labels)[1], intra)
    torch.testing.assert_close(distance_credit(x * 7 + 3, labels, "euclidean")[1], 7 * distance_credit(x, labels, "euclidean")[1])


def test_distance_credit_refuses():
    x, labels = points((2, 3))
    assert "4 labels for 5" in line_of(distance_credit, x, labels[:4]) and "cosine" in line_of(distance_credit, x, labels, "cosin") and "nan" in line_of(distance_credit, x * float("nan"), labels)

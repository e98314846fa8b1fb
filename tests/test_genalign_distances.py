"""rlgen.genalign.distances: classes told apart, texts told alike, defined where there is nothing to measure."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score
from sklearn.metrics.pairwise import cosine_distances

from helpers import line_of
from rlgen.genalign.distances import class_distances, diversity, inter_class, intra_class, pairwise, quality, silhouette


def cloud(n, classes, seed=0, d=5):
    "Random embeddings, every class at a place of its own, and labels in random order."
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n)[torch.randperm(n, generator=g)] % classes
    return torch.randn(n, d, generator=g) + 2 * torch.randn(classes, d, generator=g)[y], [f"class {i}" for i in y]


def one_far(a, b, distance) -> float:
    "A single distance, written out in plain floats."
    a, b = a.double().tolist(), b.double().tolist()
    if distance == "euclidean": return math.dist(a, b)
    long = math.hypot(*a) * math.hypot(*b)
    return 1 - sum(p * q for p, q in zip(a, b)) / long


# ---------------------------------------------------------------- distances


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_pairwise_is_every_single_distance(distance):
    a, b = cloud(7, 2)[0], cloud(4, 2, 1)[0]
    exact = [[one_far(p, q, distance) for q in b] for p in a]
    assert np.allclose(pairwise(a, b, distance), exact, atol=1e-12) and pairwise(a, b, distance).dtype == torch.float64
    assert np.allclose(pairwise(a.numpy(), b.tolist(), distance), exact, atol=1e-12), "arrays and lists do as well"


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_equal_vectors_have_distance_zero_exactly(distance, kind):
    x = cloud(40, 3, d=64)[0].to(kind)
    far = pairwise(torch.cat([x, x]), x, distance)
    assert (far[:40].diagonal() == 0).all() and (far[40:].diagonal() == 0).all() and (far >= 0).all() and (far[:40] > 0).sum() == 40 * 39


def test_cosine_sees_direction_only_and_small_angles_too():
    assert pairwise([[1.0, 0.0]], [[7.0, 0.0], [-2.0, 0.0], [0.0, 3.0]]).tolist() == [[0, 2, 1]]
    assert pairwise([[1.0, 0.0]], [[1.0, 1e-5]]).item() == pytest.approx(0.5e-10, rel=1e-4), "not taken for equal"


def test_vectors_of_length_zero_are_a_direction_of_their_own():
    assert pairwise([[0.0, 0.0], [1.0, 2.0]], [[0.0, 0.0], [1.0, 2.0], [-1.0, 0.0]]).round(decimals=9).tolist() == [[0, 1, 1], [1, 0, round(1 + 1 / 5**0.5, 9)]]
    assert np.allclose(cosine_distances([[0, 0], [1, 2]], [[1, 2]])[0], pairwise([[0.0, 0.0]], [[1.0, 2.0]]))


def test_euclidean_keeps_its_digits_under_a_large_common_part():
    x = cloud(10, 2)[0].double()
    assert torch.allclose(pairwise(x + 1e6, x + 1e6, "euclidean"), torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist"), rtol=1e-6)


# ---------------------------------------------------------------- classes


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("n, classes", [(12, 2), (31, 4)])
def test_inter_and_intra_are_what_they_say(distance, n, classes):
    x, labels = cloud(n, classes)
    members = [[x[i] for i in range(n) if labels[i] == name] for name in sorted(set(labels))]
    centres = [torch.stack(m).double().mean(0) for m in members]
    inter = np.mean([one_far(a, b, distance) for a, b in itertools.combinations(centres, 2)])
    intra = np.mean([np.mean([one_far(a, b, distance) for a, b in itertools.combinations(m, 2)]) for m in members])
    assert inter_class(x, labels, distance) == pytest.approx(inter, abs=1e-12) and intra_class(x, labels, distance) == pytest.approx(intra, abs=1e-12)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("n, classes, seed", [(9, 2, 0), (40, 3, 1), (60, 11, 2), (7, 6, 3)])
def test_silhouette_equals_scikit_learns(distance, n, classes, seed):
    x, labels = cloud(n, classes, seed)
    x[3] = x[0]  # a copy, perhaps in another class
    assert silhouette(x, labels, distance) == pytest.approx(silhouette_score(x.double().numpy(), labels, metric=distance), abs=1e-9)


def test_blocks_of_rows_add_up_to_the_whole():
    x, labels = cloud(1500, 3, d=4)  # more than one block
    far, y = pairwise(x, x), np.array(labels)
    within = np.mean([far[y == c][:, y == c].sum().item() / ((y == c).sum() * ((y == c).sum() - 1)) for c in sorted(set(labels))])
    assert intra_class(x, labels) == pytest.approx(within, rel=1e-12) and silhouette(x, labels) == pytest.approx(silhouette_score(x.double().numpy(), labels, metric="cosine"), abs=1e-9)


def test_neither_order_nor_names_nor_length_matter():
    x, labels = cloud(20, 3)
    x = x.double()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(5))
    base, other = class_distances(x, labels), class_distances(3 * x[order], [{"class 0": "z"}.get(labels[i], labels[i]) for i in order])
    assert all(base[k] == pytest.approx(other[k], abs=1e-12) for k in ("inter", "intra", "silhouette", "quality")) and base["within"]["class 0"] == pytest.approx(other["within"]["z"])


def test_identical_pairs_count():
    x, labels = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [0, 1], [1, 1]]), ["a"] * 4 + ["b"] * 2
    assert class_distances(x, labels)["within"] == pytest.approx(dict(a=3 / 6, b=1 - 0.5**0.5)), "three of six pairs are equal"
    assert intra_class(x, labels) == pytest.approx((0.5 + 1 - 0.5**0.5) / 2), "classes count alike"


# ---------------------------------------------------------------- where there is little to measure


def test_one_class_and_single_texts_have_defined_values_and_a_warning():
    x, labels = cloud(6, 2)
    one = class_distances(x, ["a"] * 6)
    assert (one["inter"], one["silhouette"], one["classes"], one["n"]) == (0, 0, 1, 6) and one["intra"] > 0 and one["warning"] == "one class only (a): inter and silhouette are 0 by definition"
    lone = class_distances(x[:3], ["a", "a", "b"])
    assert lone["within"]["b"] is None and lone["intra"] == lone["within"]["a"] and lone["warning"] == "one text only, no pair to measure: b"
    assert lone["silhouette"] == pytest.approx(silhouette_score(x[:3].double().numpy(), ["a", "a", "b"], metric="cosine"))
    each = class_distances(x[:2], ["a", "b"])
    assert (each["intra"], each["silhouette"]) == (0, 0) and each["inter"] > 0 and "a, b" in each["warning"]
    single = class_distances(x[:1], ["a"])
    assert (single["inter"], single["intra"], single["silhouette"]) == (0, 0, 0) and "one class only" in single["warning"] and "one text only" in single["warning"]
    assert class_distances(x, labels)["warning"] == ""


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_collapse_is_bounded_and_free_of_rounding(distance):
    a, b = cloud(2, 2, d=33)[0]
    two = class_distances(torch.stack([a] * 5 + [b] * 5), ["a"] * 5 + ["b"] * 5, distance)
    assert two["intra"] == 0 and two["silhouette"] == 1 and 0.7 < two["quality"] <= 1
    one = class_distances(torch.stack([a] * 10), ["a"] * 5 + ["b"] * 5, distance)
    assert (one["inter"], one["intra"], one["silhouette"]) == (0, 0, 0) and one["quality"] == pytest.approx(0.4)


def test_quality_is_the_published_mixture_within_its_bounds():
    assert quality(0.5, 0.25, 0.5) == pytest.approx(0.3 * 0.25 + 0.3 * 0.75 + 0.2 * 0.75 + 0.2 * 0.2)
    assert quality(3.0, 0.0, 1.0) == quality(2.0, 0.1, 1.0) + 0.03 == 1 and quality(0.0, 4.0, -1.0) == 0 and quality(1e-300, 0.0, 0.0) == pytest.approx(0.6)
    assert quality(0.0, 0.0, 0.0) == pytest.approx(0.4) and quality(1.0, 1e-320, 0.0) == pytest.approx(0.15 + 0.3 + 0.1 + 0.2)
    values = [0.0, 1e-9, 0.3, 1.0, 2.0, 50.0]
    assert all(0 <= quality(a, b, s) <= 1 for a in values for b in values for s in (-1, 0, 1))
    assert all(quality(a, 0.3, s) <= quality(b, 0.3, s) for a, b in itertools.pairwise(values) for s in (-1, 1)) and all(quality(0.3, a, 0) >= quality(0.3, b, 0) for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("numbers", [(math.nan, 0, 0), (0, math.nan, 0), (0, 0, math.nan), (-0.1, 0, 0), (0, -0.1, 0), (0, 0, 1.1), (math.inf, 1, 0), (1, math.inf, 0)])
def test_quality_of_what_is_no_distance_is_refused(numbers):
    assert "expected finite distances" in line_of(quality, *numbers)


def test_bad_input_is_one_clear_line():
    x, labels = cloud(4, 2)
    for f in (inter_class, intra_class, silhouette, class_distances):
        assert "3 labels for 4 embeddings" in line_of(f, x, labels[:3]) and "did you mean 'cosine'?" in line_of(f, x, labels, "cosin")
        assert "expected (N, D)" in line_of(f, x[0], labels) and "expected (N, D)" in line_of(f, x[:0], []) and "expected (N, D)" in line_of(f, x[:, :0], labels)
        for value in (math.nan, math.inf):
            bad = x.clone()
            bad[2, 1] = value
            assert "the embedding of text 2 holds nan or inf" in line_of(f, bad, labels)


def test_embeddings_with_a_gradient_are_only_looked_at():
    x, labels = cloud(6, 2)
    x.requires_grad_()
    found = class_distances(x, labels)
    assert isinstance(found["inter"], float) and x.grad is None and x.requires_grad


# ---------------------------------------------------------------- words


TEXTS = ["a warm room", "a warm room", "the cold soup", "rude waiter , cold soup", ":-)"]


def test_diversity_is_what_it_says():
    from sklearn.feature_extraction.text import TfidfVectorizer

    from rlgen.metrics import words
    v = TfidfVectorizer(analyzer=words).fit_transform(TEXTS).toarray()
    found, pairs = diversity(TEXTS), list(itertools.combinations(range(5), 2))
    assert found["different"] == 4 / 5 and found["distinct_1"] == 8 / 13 and found["distinct_2"] == 6 / 9
    assert found["self_similarity"] == pytest.approx(np.mean([v[i] @ v[j] for i, j in pairs]), abs=1e-12)


def test_diversity_at_its_ends():
    assert diversity(["so it is"] * 7) == pytest.approx(dict(different=1 / 7, distinct_1=3 / 21, distinct_2=2 / 14, self_similarity=1))
    assert diversity(["so it", "we were"]) == dict(different=1, distinct_1=1, distinct_2=1, self_similarity=0) and diversity(["so"])["self_similarity"] == 0
    assert diversity(["Warm room!", "warm  room"])["different"] == 0.5 and diversity(["", ":-)"]) == dict(different=1, distinct_1=0, distinct_2=0, self_similarity=0)
    assert "at least one" in line_of(diversity, [])


def test_a_reference_keeps_rounds_comparable():
    golden = ["a warm room", "a cold soup", "a rude waiter", "a tidy room"]
    early, late = ["a warm room", "a cold soup"], ["a warm room", "a warm soup"]
    alone, beside = diversity(late)["self_similarity"], diversity(late, golden)["self_similarity"]
    assert beside > alone > diversity(early)["self_similarity"], "a word in every text weighs little where the texts judge themselves"
    assert diversity(early, golden)["self_similarity"] == pytest.approx(diversity(early + early, golden)["self_similarity"] * 6 / 4 - 2 / 4)

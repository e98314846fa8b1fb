"The run of GenAlign: parameters that don't fit, somebody's texts, stages that are found again, and what every row leaves behind."
import csv
import json
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import here_of, line_of, working_in
from tiny_models import make_model

from rlgen.core import read_jsonl, seed_for, settings
from rlgen.genalign import loop, models
from rlgen.genalign import run as working
from rlgen.genalign.data import Item, bare
from rlgen.genalign.generator import Learner, write
from rlgen.genalign.models import answers, ask, fresh, read_sets, writing
from rlgen.genalign.report import report
from rlgen.genalign.run import apart, stages
from rlgen.genalign.setup import ALIGNED, METHODS, TRAINED, WRITING, Params, few, first_row, generator_name, load_problem, rows_of, start
from rlgen.lm import load_lm
from rlgen.record import check_params, read_params
from rlgen.worlds import genalign as world

ROOT = Path(__file__).resolve().parent.parent
SMALL = dict(num_pool=40, num_dev=20, num_test=40, golden_sizes=[10, 20], oracle_size=60, samples_per_iteration=32, num_sets=4, num_synthetic=32, synthetic_size=10,
             eval_sets=2, max_iterations=3, save_every=2, sft_steps=3, num_samples=2)
TINY = SMALL | dict(samples_per_iteration=16, num_sets=2, num_synthetic=16, max_iterations=2, eval_sets=1, num_test=20, num_dev=10)
OWN = dict(base_model="zoo/drafts", text_column="review", label_column="mood")
OTHERS = dict(  # runs that differ from SMALL in one thing
    classifier=dict(classifier_l2=2.0, methods=["untrained", "golden-sft", "rejection", "dataset-group", "golden-direct"]),
    reward=dict(w_inter=0.5, methods=["untrained", "golden-sft", "rejection", "dataset-group", "per-sample", "oracle"]),
    examples=dict(num_icl=2, methods=["in-context", "golden-sft", "golden-direct"]), right=dict(dataset_path="world/right", methods=["untrained", "golden-sft", "rejection", "per-sample", "golden-direct", "oracle"]))
OTHERS |= {part: {f"num_{part}": n, "methods": ["golden-sft", "rejection", "per-sample", "golden-direct", "oracle"]} for part, n in dict(pool=30, dev=15, test=30).items()}
VOCABULARY = [" ".join(world.vocabulary())]


here = here_of("genalign")


def keys(run) -> dict: return {s.item.removeprefix("0/"): s.key for s in run.stages}


def times(folder) -> dict: return {p: p.stat().st_mtime_ns for p in (folder / "cache").rglob("stage.json")}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "A small run of all rows, and others in the same cache: once more, then with something else in it."
    folder = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        begin = working_in(folder, patch, "genalign")
        run = begin(**SMALL)
        out = stages(run)
        found, before = report(run, out), times(folder)
        stages(begin(**SMALL))
        after, others = times(folder), {}
        for name, given in OTHERS.items():
            other = begin(**SMALL | given)
            others[name] = (stages(other), keys(other))
    settings.cache_clear()
    return SimpleNamespace(folder=folder, run=run, out=out, found=found, before=before, after=after, others=others)


def stage_of(x, item): return next(s for s in x.run.stages if s.item == f"0/{item}")


def changed(done, name: str) -> tuple[set, set]:
    "Stages of another run that were done anew, and those that were found."
    first, other = keys(done.run), done.others[name][1]
    return {item for item in other if other[item] != first.get(item)}, {item for item in other if other[item] == first.get(item)}


def bare_set(items) -> set: return {bare(t.text) for t in items}


def weights(folder) -> torch.Tensor: return torch.cat([p.detach().flatten() for p in load_lm(str(folder)).model.parameters()])


def texts_file(path: Path, rows, columns=("review", "mood")) -> str:
    with open(path, "w", newline="") as f: csv.writer(f).writerows([columns, *rows])
    return str(path)


def reviews(n: int, seed: int = 0, n_labels: int = 2, split: str = "pool") -> list: return world.golden(split, n, seed, n_labels)


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize("given, words", [
    (dict(seeds=[]), "seeds"), (dict(seeds=[1, 1]), "each once"), (dict(seeds=[-1]), "-1"), (dict(methods=[]), "methods is empty"), (dict(dataset_path="world/rihgt"), "the worlds are world, world/right"),
    (dict(w_inter=0.0, w_intra=0.0, w_golden=0.0), "one of them above 0"), (dict(minibatches=3), "minibatches = 3"), (dict(classifier="transformer"), "needs classifier_model"),
    (dict(classifier="transformer", classifier_model="x"), "set damping"), (dict(quantization="4bit"), "set lora_r"), (dict(quantization="8bit", methods=["golden-sft"]), "set lora_r"),
    (dict(num_icl=0), "num_icl = 0"),
    (dict(num_icl=0, icl_training=True, methods=["untrained"]), "icl_training"), (dict(golden_sizes=[]), "golden_sizes = []"), (dict(golden_sizes=[20, 20]), "each once"),
    (dict(prompt_template="{label}: {words}"), "needs {label} once"),
    (dict(dataset_path="my.csv"), "base_model is empty")])
def test_values_that_do_not_fit(here, given, words):
    assert words in line_of(here, **given)


@pytest.mark.parametrize("given", [
    dict(num_icl=0, methods=["per-sample"]), dict(golden_sizes=[], methods=["untrained"]), dict(dataset_path="my.csv", methods=["golden-direct", "oracle"]),
    dict(quantization="4bit", methods=["untrained", "rejection"]),
    dict(classifier="transformer", classifier_model="x", methods=["batch-level", "dataset-group"]), dict(classifier="transformer", classifier_model="x", curvature="none"),
    dict(classifier="transformer", classifier_model="x", w_golden=0.0),
    dict(minibatches=3, algorithm="reinforce"), dict(w_golden=0.0)])
def test_values_that_do(here, given):
    "Each differs in one thing from a line above."
    assert here(**given).out_dir.is_dir()


@pytest.mark.parametrize("given, words", [
    (dict(quantization="4bit", lora_r=2, methods=["untrained"]), "needs an NVIDIA GPU"), (dict(num_icl=4, num_pool=6, golden_sizes=[4]), "num_icl = 4: the golden pool has 3"),
    (dict(num_icl=7, num_pool=6, golden_sizes=[4], icl_scope="all"), "num_icl = 7: the golden pool has 6"), (dict(golden_sizes=[10, 41]), "41 golden texts of 40"), (dict(golden_sizes=[1]), "2 classes"),
    (dict(num_sets=20), "1 texts in a data set of 2 classes"),
    (dict(max_new_tokens=500), "context"), (dict(base_model="zoo/tales"), "encoder-decoder"), (dict(base_model="zoo/draft"), "no such model folder"),
    (dict(lora_r=2, lora_targets=["q_prj"], methods=["golden-sft"]), "no linear layer is called 'q_prj'"),
    (dict(num_pool=1, num_icl=1, golden_sizes=[1]), "class"), (dict(embedding_model="no/where"), "no/where"), (dict(classifier="transformer", classifier_model="no/where", damping=1.0), "no/where")])
def test_what_cannot_work_is_one_line(here, given, words):
    assert words in line_of(stages, here(**SMALL | given))


@pytest.mark.parametrize("given", [
    dict(golden_sizes=[41]), dict(num_sets=20), dict(num_icl=30), dict(base_model="zoo/tales"), dict(embedding_model="no/where"), dict(classifier="transformer", classifier_model="no/where", damping=1.0), dict(quantization="4bit", lora_r=2)])
def test_and_nothing_is_done_before(here, tmp_path, given):
    line_of(stages, here(**SMALL | given))
    assert not times(tmp_path)


def test_a_warm_up_that_never_ends(here, folders):
    "16 texts in batches of 4 × 4 are one update an epoch."
    bert = dict(classifier="transformer", classifier_model=str(folders("bert", "encoder")), damping=1.0, methods=["golden-direct"], golden_sizes=[16], classifier_epochs=3.0, classifier_lr=1e-3)
    assert "it would never learn" in line_of(stages, here(**TINY | bert, classifier_warmup=3))
    assert stages(here(**TINY | bert, classifier_warmup=2)).answers


def test_unknown_values_name_their_neighbours():
    for name, typed, meant in (("methods", ["per-sampel"], "per-sample"), ("credit", "per-sample", "per_sample"), ("normalize", "z-score", "zscore"),
                               ("icl_strategy", "randon", "random"), ("curvature", "ful", "full"), ("quantization", "4bits", "4bit")):
        assert f"did you mean {meant!r}" in line_of(check_params, Params, {name: typed})
    assert "num_sets" in line_of(check_params, Params, dict(num_set=3)) and "w_golden" in line_of(check_params, Params, dict(w_goldn=3))


@pytest.mark.parametrize("given", [
    dict(w_inter=-1.0), dict(temperature=0.0), dict(top_p=1.1), dict(num_sets=1), dict(guard_near=0.0), dict(alarm_rounds=2), dict(damping=-0.1), dict(golden_sizes=[0]), dict(classifier_l2=0.0), dict(num_dev=0), dict(reward_clip=0.0)])
def test_values_out_of_range(given):
    assert next(iter(given)) in line_of(check_params, Params, given)


def test_published_names_are_kept(here):
    run = here(experiment_name="mine", methods=["oracle"])
    assert run.params.params_name == "mine" and run.out_dir.name.startswith("mine-")
    published = "w_inter w_intra w_golden normalize reward_clip credit num_icl icl_strategy diversity samples_per_iteration temperature top_p max_iterations patience min_delta quantization embedding_model"
    assert set(published.split()) | {"distance", "text_column", "label_column"} < set(vars(Params()))


@pytest.mark.parametrize("preset", sorted((ROOT / "params" / "genalign").glob("*.yaml")), ids=lambda p: p.stem)
def test_presets_start(here, preset):
    p = check_params(Params, read_params([preset], {}))
    assert start(p).params == p and p.params_name == preset.stem


def test_the_papers_preset_asks_for_what_was_published():
    p, plain = check_params(Params, read_params([ROOT / "params" / "genalign" / "paper.yaml"], {})), Params()
    assert (p.base_model, p.quantization, p.lora_r, p.lora_alpha, p.lora_dropout, p.lora_targets) == ("meta-llama/Llama-3.1-8B-Instruct", "4bit", 16, 32, 0.1, ["q_proj", "v_proj", "k_proj", "down_proj"])
    assert (p.classifier, p.classifier_model, p.classifier_batch, p.classifier_accumulation, p.classifier_lr, p.classifier_epochs, p.classifier_warmup) == ("transformer", "roberta-base", 4, 4, 1e-5, 3, 0)
    assert (p.num_icl, p.icl_training, p.temperature, p.top_p, p.samples_per_iteration, p.max_iterations, p.patience, p.min_delta) == (4, True, 0.7, 0.9, 16, 50, 5, 0.01)
    assert (p.w_inter, p.w_intra, p.w_golden, p.normalize, p.reward_clip) == (1, 1, 1, "minmax", 5) and {"batch-level", "per-sample"} < set(p.methods) and plain.normalize == "zscore"
    assert plain.credit == "per_sample"


def test_rows_stand_in_the_tables_order():
    assert rows_of(["oracle", "golden-direct", "untrained"], [20, 200]) == ["untrained", "golden-direct-20", "golden-direct-200", "oracle"] and len(METHODS) == 9
    assert set(TRAINED) < set(WRITING) < set(METHODS)
    assert {credit: first_row(Params(credit=credit)) for credit in ALIGNED.values()} == {v: k for k, v in ALIGNED.items()}


def test_a_part_of_a_run_is_a_training():
    parts = apart(Params(seeds=[3, 4]))
    assert sorted((s, m) for part in parts for s in part["seeds"] for m in part["methods"]) == sorted((s, m) for s in (3, 4) for m in TRAINED) and len(parts) == 8
    assert apart(Params(methods=["untrained", "rejection", "oracle"])) == []


def test_every_parameter_is_read_somewhere():
    "A stage's key holds what the stage depends on; what is in no key has to be in the data's digest, in a row's own number, or of no consequence."
    read = {n for x in ("ASKING", "SHOWING", "ADAPTING", "CLASSIFYING", "REWARDING", "LEARNING", "TUNING") for n in getattr(working, x).split()}
    data = set("dataset_path train_split test_split text_column label_column labels fractions num_pool num_dev num_test oracle_size".split())
    given = set("classifier_model embedding_model base_model num_synthetic eval_sets synthetic_size golden_sizes".split())
    assert {f.name for f in fields(Params)} == read | data | given | set("seeds methods credit num_samples tracker tracker_project tracker_run_name out_dir experiment_name params_name".split())


# ---------------------------------------------------------------- data


def test_the_worlds_parts_share_no_text():
    q = load_problem(Params(num_pool=150, num_dev=150, num_test=150, golden_sizes=[20], seeds=[0, 1]))
    (a, b), plenty = (q.parts(s) for s in (0, 1)), q.plenty(0)
    for one in (a, b): assert not bare_set(one.pool) & bare_set(one.dev) and not bare_set(one.test) & (bare_set(one.pool) | bare_set(one.dev))
    assert not bare_set(a.test) & bare_set(plenty) and plenty[:150] == a.pool and len(plenty) == 2000
    assert a.test == b.test and not bare_set(a.pool) == bare_set(b.pool) and not bare_set(a.dev) == bare_set(b.dev) and q.labels == ("cross", "glad") and q.known
    assert load_problem(Params(dataset_path="world/right", num_pool=150, num_dev=150, num_test=150, golden_sizes=[20])).parts(0) == a


def test_few_are_in_proportion_and_nested():
    items = [Item(f"{label} {i}", label) for label, n in (("a", 60), ("b", 30), ("c", 10)) for i in range(n)]
    for n in (3, 4, 10, 17, 50, 99):
        kept = few(items, n)
        counts = Counter(t.label for t in kept)
        assert len(kept) == len(set(kept)) == n and all(abs(counts[c] - n * share) <= 1 for c, share in dict(a=0.6, b=0.3, c=0.1).items()) and kept == [t for t in items if t in kept]
        assert min(counts[c] for c in "abc") >= 1 and set(few(items, n - 1) if n > 3 else []) <= set(kept)
    assert few(items, 100) == few(items, 500) == items and set(few(items, 20, 1)) != set(few(items, 20)) == set(few(items[::-1], 20))
    assert "2 golden texts for 3 classes" in line_of(few, items, 2)


def test_somebodys_csv(tmp_path):
    texts = reviews(60)
    mine = texts_file(tmp_path / "mine.csv", [*texts, ("", "glad"), ("  ", "cross"), ("of no mood", ""), texts[0]])
    q = load_problem(check_params(Params, OWN | dict(dataset_path=mine, golden_sizes=[4], num_pool=20, num_dev=10, num_icl=2)))
    parts = q.parts(0)
    assert [len(x) for x in parts] == [20, 10, 18] == [q.report[k] for k in ("pool", "dev", "test")] and q.labels == ("cross", "glad") and not q.known and q.parts(1) == parts
    assert not bare_set(parts.pool) & bare_set(parts.dev) and not bare_set(parts.test) & (bare_set(parts.pool) | bare_set(parts.dev))
    assert {(t.text, t.label) for part in parts for t in part} < set(texts)
    read = q.report["read"]
    assert (read["rows"], read["kept"], read["no_text"], read["no_label"], read["repeated"]) == (64, 60, 2, 1, 1) and "mine.csv:62" in " ".join(read["first"])
    assert set(parts.pool) < set(q.plenty(0)) and len(q.plenty(0)) == 24 and not bare_set(q.plenty(0)) & bare_set(parts.test)


def test_a_folder_with_a_test_of_its_own(tmp_path):
    numbered = lambda rows: [(text, dict(cross=0, glad=1)[label], label) for text, label in rows]
    texts_file(tmp_path / "train.csv", numbered(reviews(40)), ("review", "mood", "mood_text"))
    texts_file(tmp_path / "test.csv", numbered([*reviews(12, split="test"), reviews(1)[0]]), ("review", "mood", "mood_text"))
    p = check_params(Params, OWN | dict(dataset_path=str(tmp_path), test_split="test", golden_sizes=[4], num_icl=2, fractions=dict(pool=0.5, dev=0.5)))
    q = load_problem(p)
    parts = q.parts(0)
    assert q.labels == ("cross", "glad") and [t.label for t in parts.test[:2]] == ["glad", "cross"] and len(parts.test) == 13 and q.report["read_test"]["rows"] == 13
    assert len(parts.pool) + len(parts.dev) == 39 and not bare_set(parts.test) & (bare_set(parts.pool) | bare_set(parts.dev)), "a text of the test leaves the other parts"
    texts_file(tmp_path / "test.csv", [("all quite odd", "7", "puzzled"), ("the room was warm", "1", "glad")], ("review", "mood", "mood_text"))
    assert "puzzled" in (said := line_of(load_problem, p)) and "test.csv:2" in said


def test_some_of_the_classes(tmp_path):
    mine = texts_file(tmp_path / "mine.csv", reviews(120, n_labels=4))
    p = OWN | dict(dataset_path=mine, golden_sizes=[4], num_icl=2)
    assert load_problem(check_params(Params, p)).labels == ("bored", "cross", "glad", "puzzled")
    q = load_problem(check_params(Params, p | dict(labels=["glad", "bored"])))
    assert q.labels == ("bored", "glad") and {t.label for part in q.parts(0) for t in part} == {"bored", "glad"} and sum(map(len, q.parts(0))) == 60
    assert "did you mean 'bored'" in line_of(load_problem, check_params(Params, p | dict(labels=["glad", "bord"])))
    for split in ("train", "test"): texts_file(tmp_path / f"{split}.csv", reviews(40, n_labels=4, split="pool" if split == "train" else "test"))
    apart = load_problem(check_params(Params, p | dict(dataset_path=str(tmp_path), test_split="test", labels=["glad", "puzzled"])))
    assert {t.label for t in apart.parts(0).test} == {"glad", "puzzled"} == set(apart.labels) and len(apart.parts(0).test) == 20


@pytest.mark.parametrize("rows, given, words", [
    ([("so warm", "glad")] * 2 + [("so kind", "glad")], {}, "a classifier needs two classes"), (None, dict(text_column="reviw"), "no column 'reviw' (did you mean 'review'?)"),
    (None, dict(label_column="label"), "the columns are review, mood"),
    ([("", "glad"), ("", "cross")], {}, "no row of 2 can be used"), ([("so warm", "glad"), ("so cold", "cross"), ("so kind", "glad")], {}, "different texts for 3 parts"),
    (None, dict(fractions=dict(pool=0.5, dev=0.5)), "expected exactly pool, dev, test"),
    (None, dict(fractions=dict(pool=0.9, dev=0.9, test=0.9)), "0.9"), (None, dict(golden_sizes=[200]), "200 golden texts of 16"),
    (None, dict(num_icl=9), "num_icl = 9: the golden pool has 8"), (None, dict(num_test=1), "1 golden texts for 2 classes"),
    (None, dict(test_split="valid"), "no split 'valid'"), (None, dict(dataset_path="nowhere.csv"), "nowhere.csv")])
def test_texts_that_cannot_be_used(tmp_path, rows, given, words):
    mine = texts_file(tmp_path / "mine.csv", reviews(40) if rows is None else rows)
    assert words in line_of(load_problem, check_params(Params, OWN | dict(dataset_path=mine, golden_sizes=[4], num_icl=2) | given))


def test_more_examples_than_different_texts_are_refused(tmp_path):
    "Texts that differ in case alone are one text among examples."
    rows = [(t, label) for text, label in reviews(8) for t in (text, text.upper(), text.title())] + reviews(8, split="test") + reviews(8, split="dev")
    p = check_params(Params, OWN | dict(dataset_path=texts_file(tmp_path / "mine.csv", rows), golden_sizes=[4], num_icl=2))
    q = load_problem(p)
    least = min(len(bare_set(t for t in q.parts(0).pool if t.label == name)) for name in q.labels)
    assert "num_icl" in line_of(load_problem, check_params(Params, vars(p) | dict(num_icl=least + 1)))


def test_the_shipped_texts_go_all_the_way(here, tmp_path):
    run = here(**TINY | dict(dataset_path="params/genalign/sample_data.csv", base_model="zoo/drafts", num_test=50))
    out = stages(run)
    found = report(run, out)
    assert list(dict.fromkeys(m for m, _ in out.answers)) == rows_of(METHODS, [10, 20]) and all(len(rows) == 50 for rows in out.answers.values()) and out.report["read"]["kept"] == 400
    assert all("right" not in r and 0 < r["different"] <= 1 for r in found["sets"]) and len(list(csv.DictReader(open(run.out_dir / "synthetic.csv")))) == 10
    assert len(out.sets["oracle", 0]) == 1 and {s["data"]["n"] for s in out.sets["golden-direct-20", 0]} == {20} and out.sets["oracle", 0][0]["data"]["n"] == 60


@pytest.mark.slices
def test_real_reviews(here, slices, folders):
    "Sentences about films and a tiny Llama that nobody has taught anything."
    run = here(**TINY | dict(dataset_path=str(slices / "movie_sentences"), test_split="test", base_model=str(folders("llama")), num_test=60, num_pool=100, fractions=dict(pool=0.5, dev=0.5), max_new_tokens=8))
    out = stages(run)
    assert len(out.answers) == len(rows_of(METHODS, [10, 20])) and {len(rows) for rows in out.answers.values()} == {60} and len(out.problem.labels) == 2


# ---------------------------------------------------------------- a run


def test_every_row_is_there(done):
    out, rows = done.out, rows_of(METHODS, [10, 20])
    test = out.problem.parts(0).test
    assert [m for m, _ in out.answers] == rows == [m for m, _ in out.sets] == [m for m, _ in out.cost] and {m for m, _ in out.models} == {m for m, _ in out.kl} == set(TRAINED)
    assert {m for m, _ in out.history} == set(ALIGNED)
    for row in rows:
        said = out.answers[row, 0]
        assert [(r["item"], r["label"]) for r in said] == [(t.id, t.label) for t in test] and all(r["right"] in (0, 0.5, 1) and r["loss"] > 0 for r in said)
        assert sum(r["right"] for r in said) / 40 == pytest.approx(sum(s["accuracy"] for s in out.sets[row, 0]) / len(out.sets[row, 0]), abs=1e-6)
        assert len(out.sets[row, 0]) == (2 if row in WRITING else 1)
    assert [t.id for t in test] == list(dict.fromkeys(t.id for t in test)) and out.headline == "golden_accuracy"


def test_every_set_has_its_texts(done):
    for row in WRITING:
        lines, (one, two) = read_jsonl(stage_of(done, f"texts/{row}").path / "texts.jsonl"), read_sets(stage_of(done, f"texts/{row}").path)
        assert len(one) == len(two) == 32 and Counter(r["set"] for r in lines) == {0: 32, 1: 32} and one != two and one == done.out.texts[row, 0]
        assert Counter(t.label for t in one) == Counter(t.label for t in two) == dict(cross=16, glad=16)
    first = {row: tuple(t.text for t in done.out.texts[row, 0]) for row in WRITING}
    assert len(set(first.values())) == len(WRITING) - 1 and first["batch-level"] == first["untrained"], "one scalar a round moves nothing before there are two rounds to compare it with"
    assert [s["data"]["n"] for s in done.out.sets["untrained", 0]] == [32, 32]


def test_answers_are_those_of_a_classifier_that_learned_the_texts(done):
    p, q, out = done.run.params, done.out.problem, done.out
    sets = {m: read_sets(stage_of(done, f"texts/{m}").path) for m in ("untrained", "per-sample")}
    sets |= {"golden-direct-10": [few(q.parts(0).pool, 10, 0)], "golden-direct-20": [few(q.parts(0).pool, 20, 0)], "oracle": [q.plenty(0)]}
    for row, each in sets.items():
        said = [answers(fresh(p, q, 0)(items), q.parts(0).test) for items in each]
        assert [r["right"] for r in out.answers[row, 0]] == [sum(x) / len(said) for x in zip(*(a.tolist() for a, _ in said))]
        assert [r["loss"] for r in out.answers[row, 0]] == pytest.approx([sum(x) / len(said) for x in zip(*(b.tolist() for _, b in said))], abs=1e-6)


def test_a_second_run_does_nothing(done):
    assert done.before == done.after and len(done.before) == 22


def test_another_classifier_examines_anew(done):
    anew, found = changed(done, "classifier")
    assert found == {"texts/untrained", "train/golden-sft", "texts/golden-sft"}
    assert anew == {f"exam/{row}" for row in rows_of(OTHERS["classifier"]["methods"], [10, 20])} | {"texts/rejection", "train/dataset-group", "texts/dataset-group", "synthetic/dataset-group"}


def test_another_reward_trains_the_aligned_rows_anew(done):
    anew, found = changed(done, "reward")
    assert anew == {f"{what}/{m}" for m in ("dataset-group", "per-sample") for what in ("train", "texts", "exam")} | {"synthetic/per-sample"}
    assert found == {f"{what}/{m}" for m in ("untrained", "golden-sft", "rejection") for what in ("texts", "exam")} | {"train/golden-sft", "exam/oracle"}


def test_other_examples_are_shown_to_those_who_see_them(done):
    anew, found = changed(done, "examples")
    assert {"texts/in-context", "exam/in-context"} <= anew and {"train/golden-sft", "exam/golden-direct-10", "exam/golden-direct-20"} <= found


def test_golden_texts_matter_to_those_who_read_them(done):
    "The pool to all but the oracle, dev texts to aligned rows, the test to examinations alone."
    mine = {f"{what}/per-sample" for what in ("train", "texts", "exam", "synthetic")}
    assert changed(done, "pool")[1] == {"exam/oracle"} and changed(done, "dev")[0] == mine
    anew, found = changed(done, "test")
    assert anew == {f"exam/{row}" for row in rows_of(OTHERS["test"]["methods"], [10, 20])} and found == {"train/golden-sft", "texts/golden-sft", "texts/rejection", *mine} - {"exam/per-sample"}


def test_the_ablation_has_another_generator(done):
    out, (anew, found) = done.others["right"][0], changed(done, "right")
    assert found == {"exam/golden-direct-10", "exam/golden-direct-20", "exam/oracle"} and {item.split("/")[0] for item in anew} == {"train", "texts", "exam", "synthetic"}
    assert all(out.answers[f"golden-direct-{n}", 0] == done.out.answers[f"golden-direct-{n}", 0] for n in (10, 20))
    assert generator_name(done.run.params) == "zoo/drafts" != generator_name(check_params(Params, dict(dataset_path="world/right")))
    right = {name: x.sets["untrained", 0][0]["data"]["right"] for name, x in dict(world=done.out, right=out).items()}
    assert right["world"] < 0.75 < right["right"]


@pytest.mark.parametrize("given", [dict(methods=["golden-direct", "per-sample", "in-context"]), dict(methods=["oracle", "dataset-group", "golden-sft", "rejection"], credit="dataset", golden_sizes=[5])])
def test_rows_do_not_know_of_each_other(done, here, given):
    "Nothing is in the cache, and other rows are asked for, in another order."
    run = here(**SMALL | given)
    out = stages(run)
    assert list(out.answers) == [(row, 0) for row in rows_of(given["methods"], run.params.golden_sizes)]
    for key in set(out.answers) & set(done.out.answers): assert out.answers[key] == done.out.answers[key] and out.sets[key] == done.out.sets[key] and out.cost[key] == done.out.cost[key]
    for key in set(out.history): assert out.history[key] == done.out.history[key] and torch.equal(weights(out.models[key]), weights(done.out.models[key]))
    mine, theirs = ((x.out_dir / "synthetic.csv").read_bytes() for x in (run, done.run))
    assert (mine == theirs) == ("per-sample" in given["methods"])


def test_synthetic_texts_are_those_of_the_row_that_the_run_is_about(done, here):
    rows = list(csv.DictReader(open(done.run.out_dir / "synthetic.csv", newline="")))
    assert len(rows) == 10 and list(rows[0]) == ["text", "label"]
    assert [(r["text"], r["label"]) for r in rows] == [(t.text, t.label) for t in read_sets(stage_of(done, "synthetic/per-sample").path)[0]]
    assert Counter(r["label"] for r in rows) == dict(cross=5, glad=5)
    tiny = TINY | dict(eval_sets=1, num_synthetic=8, golden_sizes=[4], num_pool=8, num_icl=2, synthetic_size=6)
    for credit, methods, row in (("scalar", ["untrained", "batch-level"], "batch-level"), ("per_sample", ["untrained", "rejection"], "rejection"), ("per_sample", ["untrained", "oracle"], "untrained")):
        run = here(**tiny | dict(credit=credit, methods=methods, max_iterations=1))
        stages(run)
        assert run.stages[-1].item == f"0/synthetic/{row}" and len(list(csv.DictReader(open(run.out_dir / "synthetic.csv", newline="")))) == 6
    run = here(**tiny | dict(methods=["golden-direct", "oracle"]))
    assert set(stages(run).answers) == {("golden-direct-4", 0), ("oracle", 0)} and not (run.out_dir / "synthetic.csv").exists()


def test_rounds_are_on_disk(done):
    for row in ALIGNED:
        folder, rounds = done.run.out_dir / "rounds" / f"{row}-0", done.out.history[row, 0]
        assert {p.name for p in folder.iterdir()} == {"stage.txt"} | {f"iteration-{i:04d}.{ending}" for i in range(4) for ending in ("csv", "jsonl")} and len(rounds) == 4
        for i in range(4):
            lines, table = read_jsonl(folder / f"iteration-{i:04d}.jsonl"), list(csv.DictReader(open(folder / f"iteration-{i:04d}.csv", newline="")))
            assert len(lines) == 32 and [[r[k] if k in ("text", "label") else str(r[k]) for k in r] for r in lines] == [list(r.values()) for r in table]
            assert [r["label"] for r in lines] == ["cross", "glad"] * 16
            assert set(lines[0]) == {"text", "label", "credit", "advantage", "penalty"} | ({"influence", "inter", "intra"} if row == "per-sample" else set())
            assert abs(sum(r["advantage"] for r in lines)) < (1e-3 if row != "batch-level" else 1e9)
        credits = [{r["credit"] for r in read_jsonl(folder / f"iteration-{i:04d}.jsonl")} for i in range(1, 4)]
        assert all(len(c) == 1 if row == "batch-level" else len(c) in (3, 4) if row == "dataset-group" else len(c) > 20 for c in credits)


def test_all_aligned_rows_begin_with_the_same_texts(done):
    first = [[r["text"] for r in read_jsonl(done.run.out_dir / "rounds" / f"{row}-0" / "iteration-0000.jsonl")] for row in ALIGNED]
    assert first[0] == first[1] == first[2]
    p, lm = done.run.params, load_lm("zoo/drafts")
    assert first[0] == [r.info["text"] for r in write(lm, ask(p, lm, done.out.problem, 32, 0), [seed_for(0, "round", [0, i]) for i in range(32)], **writing(p))]


@pytest.mark.parametrize("row", ALIGNED)
def test_the_best_rounds_model_is_kept(done, row):
    "It writes the best round's texts again."
    p, best, losses = done.run.params, done.out.best[row, 0], [r["golden_loss"] for r in done.out.history[row, 0]]
    assert best == losses.index(min(losses)) and done.out.models[row, 0] == done.run.out_dir / "models" / f"{row}-0"
    lm = load_lm(str(done.out.models[row, 0]))
    again = write(lm, ask(p, lm, done.out.problem, 32, 0, 32 * best), [seed_for(0, "round", [best, i]) for i in range(32)], **writing(p))
    said = {i: [r["text"] for r in read_jsonl(done.run.out_dir / "rounds" / f"{row}-0" / f"iteration-{i:04d}.jsonl")] for i in range(4)}
    assert [r.info["text"] for r in again] == said[best] and len({tuple(v) for v in said.values()}) == 4


def test_the_best_is_not_always_the_last(done): assert min(done.out.best.values()) < 3


def test_checkpoints_are_models(done):
    for row in ALIGNED:
        folder = done.run.out_dir / "checkpoints" / f"{row}-0"
        assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["iteration-0000", "iteration-0002"]
        assert torch.equal(weights(folder / "iteration-0000"), weights("zoo/drafts")) and torch.equal(weights(folder / "iteration-0002"), weights("zoo/drafts")) == (row == "batch-level")
        assert torch.equal(weights(folder / "iteration-0002"), weights(done.out.models[row, 0])) == (done.out.best[row, 0] == 2 or row == "batch-level")
    assert 2 in done.out.best.values() and not (stage_of(done, "train/per-sample").path / "best").exists() and not list(done.folder.rglob("checkpoint.pt"))


def test_no_checkpoints_where_none_are_wanted(here):
    run = here(**TINY | dict(methods=["per-sample"], save_every=0, max_iterations=1))
    stages(run)
    assert not (run.out_dir / "checkpoints").exists() and load_lm(str(run.out_dir / "models" / "per-sample-0"))


def test_the_golden_test_is_seen_by_nobody(done):
    p, q = done.run.params, done.out.problem
    parts, lm = q.parts(0), load_lm("zoo/drafts")
    shown = [e for r in ask(p, lm, q, 200, 0, icl=True) for e in r.examples]
    assert len(shown) > 600 and set(shown) <= set(parts.pool) and not bare_set(parts.test) & bare_set([*parts.pool, *parts.dev, *q.plenty(0)]) and not bare_set(parts.dev) & bare_set(parts.pool)
    told = dict(pool=40, dev=20, test=40)
    assert {k: v["n"] for k, v in done.out.report["golden"].items()} == told and {k: done.out.report[k] for k in told} == told


def test_rows_in_context_see_the_pool(done):
    "Another test and other dev texts change nothing that is written; another pool does."
    assert "texts/in-context" in keys(done.run) and not any(r.examples for r in ask(done.run.params, load_lm("zoo/drafts"), done.out.problem, 4, 0))
    a, b = (ask(done.run.params, load_lm("zoo/drafts"), done.out.problem, 4, 0, first, True) for first in (0, 4))
    assert [r.examples for r in a] != [r.examples for r in b] and all(len(r.examples) == 4 and {e.label for e in r.examples} == {r.label} for r in (*a, *b))


def test_accepted_texts_have_a_label_that_golden_texts_teach(done):
    guide = fresh(done.run.params, done.out.problem, 0)(done.out.problem.parts(0).pool)
    for items in read_sets(stage_of(done, "texts/rejection").path): assert all(r for r in answers(guide, items)[0].tolist()) and Counter(t.label for t in items) == dict(cross=16, glad=16)
    assert not all(r for r in answers(guide, done.out.texts["untrained", 0])[0].tolist())
    cost, told = done.out.cost["rejection", 0], json.loads((stage_of(done, "texts/rejection").path / "report.json").read_text())
    assert told["texts"] == 64 < told["written"] == cost["written"] and cost["written"] % 32 == 0


def test_costs_add_up(done):
    cost = done.out.cost
    assert (cost["per-sample", 0]["rounds"], cost["per-sample", 0]["texts"], cost["golden-sft", 0]["train_steps"]) == (3, 4 * 32, 3) and cost["untrained", 0]["written"] == 64
    assert not any(cost["oracle", 0].values()) and not any(cost["untrained", 0][k] for k in ("rounds", "train_steps", "texts", "train_tokens"))
    assert cost["per-sample", 0]["train_tokens"] > cost["per-sample", 0]["lm_tokens"] > 0
    assert cost["in-context", 0]["lm_tokens"] > cost["untrained", 0]["lm_tokens"], "examples are read, too"


def test_the_distance_from_the_beginning(done):
    kl = {m: v for (m, _), v in done.out.kl.items()}
    assert kl["dataset-group"] > 0 < kl["per-sample"] and kl["batch-level"] == 0 != kl["golden-sft"]
    assert all(next(r for r in stage_of(done, f"train/{row}").curves() if r["step"] == 0)["kl"] == 0 for row in ALIGNED)


def test_seeds_have_their_own_golden_texts(here):
    out = stages(here(**TINY | dict(seeds=[0, 1], methods=["per-sample", "golden-direct"], golden_sizes=[10], max_iterations=1)))
    assert list(out.answers) == [("per-sample", 0), ("golden-direct-10", 0), ("per-sample", 1), ("golden-direct-10", 1)] and out.texts["per-sample", 0] != out.texts["per-sample", 1]
    assert [r["item"] for r in out.answers["per-sample", 0]] == [r["item"] for r in out.answers["per-sample", 1]]
    assert [r["loss"] for r in out.answers["golden-direct-10", 0]] != [r["loss"] for r in out.answers["golden-direct-10", 1]]


def test_early_stopping_looks_at_no_golden_text(monkeypatch):
    "Every tenth text of a class is held out, of those that a classifier is given; its copies leave with it."
    seen, items = [], [Item(f"{label} {i}", label) for i in range(25) for label in ("cross", "glad")]
    monkeypatch.setattr(models, "train_classifier", lambda kind, items, **kw: seen.append((items, kw.get("dev"))))
    p = Params(classifier="transformer", classifier_model="x")
    q = load_problem(p)
    for patience in (0, 2): fresh(replace(p, classifier_patience=patience), q, 0)([*items, items[18]])
    fresh(replace(p, classifier_patience=2), q, 0)(items[:8])
    (whole, none), (kept, dev), (small, nothing) = seen
    assert whole == [*items, items[18]] and none is None and dev == [t for t in items if t.text.split()[1] in ("9", "19")] and kept == [t for t in items if t not in dev] and (small, nothing) == (items[:8], None)


# ---------------------------------------------------------------- generators that write nothing of use


def says(monkeypatch, told):
    "Whatever a generator writes, its text is told(label, number)."
    real = write
    def wrote(lm, asked, *args, **kw):
        out = real(lm, asked, *args, **kw)
        for i, r in enumerate(out): r.info["text"] = told(r.info["label"], i)
        return out
    for module in (models, loop): monkeypatch.setattr(module, "write", wrote)


def test_a_generator_that_is_always_wrong_ends(here, monkeypatch):
    "No text can be accepted, however often it is asked."
    says(monkeypatch, lambda label, i: dict(cross="the warm lobby was friendly and kind .", glad="the rude lobby was cold and dirty .")[label] + str(i))
    said = line_of(stages, here(**TINY | dict(methods=["rejection"])))
    assert "rejection" in said and "texts.jsonl" not in said


def test_a_generator_that_is_half_wrong_ends(here, monkeypatch):
    says(monkeypatch, lambda label, i: f"the warm lobby was friendly and kind on {i} .")
    assert "'cross'" in line_of(stages, here(**TINY | dict(methods=["rejection"])))


def test_texts_that_are_hard_to_accept_are_balanced_as_far_as_they_go(here, monkeypatch):
    "One in sixteen is right about cross: 20 rounds bring 20."
    says(monkeypatch, lambda label, i: "the rude lobby was cold ." if i == 0 else f"the warm lobby was friendly {i} .")
    run = here(**TINY | dict(methods=["rejection"], num_synthetic=64))
    stages(run)
    (items,) = read_sets(next(s for s in run.stages if s.name == "texts").path)
    assert Counter(t.label for t in items) == dict(cross=20, glad=32) and [t.label for t in items[:4]] == ["cross", "glad"] * 2


@pytest.mark.parametrize("methods", [["untrained"], ["per-sample"], ["dataset-group"], ["rejection"]])
def test_a_generator_that_says_nothing_is_one_line(here, monkeypatch, methods):
    says(monkeypatch, lambda label, i: "")
    assert "text" in line_of(stages, here(**TINY | dict(methods=methods)))


@pytest.mark.parametrize("methods", [["untrained"], ["per-sample"], ["dataset-group"], ["batch-level"]])
def test_a_label_without_texts_is_one_line(here, monkeypatch, methods):
    says(monkeypatch, lambda label, i: "" if label == "cross" else f"the warm lobby {i} .")
    assert "no text with the label 'cross'" in line_of(stages, here(**TINY | dict(methods=methods)))


def test_some_empty_texts_do_no_harm(here, monkeypatch):
    says(monkeypatch, lambda label, i: "" if i % 5 == 0 else f"the {'rude' if label == 'cross' else 'warm'} lobby {i} .")
    run = here(**TINY | dict(methods=["untrained", "per-sample"]))
    out = stages(run)
    assert out.sets["untrained", 0][0]["data"]["n"] == 12 and all(0 < r["empty"] < 1 for r in out.history["per-sample", 0]) and report(run, out)["table"]


# ---------------------------------------------------------------- killed and run again


def killed(here, monkeypatch, where: str, at: int, **given):
    "A run that is interrupted, and the same once more: (run, outcome, rounds that were judged the second time)."
    calls, again, real = [], [], dict(score=loop.score_round, step=Learner.step, add=loop._Past.checkpoint)[where]
    def dying(*args, **kw):
        calls.append(1)
        if len(calls) == at + 1: raise KeyboardInterrupt
        return real(*args, **kw)
    place = dict(score=(loop, "score_round"), step=(Learner, "step"), add=(loop._Past, "checkpoint"))[where]
    with monkeypatch.context() as m:
        m.setattr(*place, dying)
        with pytest.raises(KeyboardInterrupt): stages(here(**given))
    judged = loop.score_round
    with monkeypatch.context() as m:
        m.setattr(loop, "score_round", lambda *args: again.append(1) or judged(*args))
        run = here(**given)
        return run, stages(run), len(again)


@pytest.mark.parametrize("where, row", [("score", "per-sample"), ("step", "per-sample"), ("add", "per-sample"), ("score", "dataset-group"), ("step", "batch-level")])
def test_a_killed_training_goes_on(done, here, monkeypatch, where, row):
    "Interrupted in the third of four rounds: the end is that of the run that wasn't."
    run, out, rounds = killed(here, monkeypatch, where, 2, **SMALL | dict(methods=[row], credit=ALIGNED[row]))
    assert rounds < 4 and out.history[row, 0] == done.out.history[row, 0] and out.answers[row, 0] == done.out.answers[row, 0] and out.best == {(row, 0): done.out.best[row, 0]}
    assert out.kl[row, 0] == done.out.kl[row, 0]
    assert torch.equal(weights(out.models[row, 0]), weights(done.out.models[row, 0])) and [s.curves() for s in run.stages if s.name == "train"] == [stage_of(done, f"train/{row}").curves()]
    files = lambda x, what: {p.name: p.read_bytes() for p in (x.out_dir / what / f"{row}-0").rglob("iteration*.*")}
    assert files(run, "rounds") == files(done.run, "rounds") and {p.name for p in (run.out_dir / "checkpoints" / f"{row}-0").iterdir()} == {"iteration-0000", "iteration-0002", "stage.txt"}
    assert not list((run.cache).glob("*.partial"))


@pytest.mark.parametrize("row", ["per-sample", "batch-level"])
def test_a_killed_training_costs_the_same(done, here, monkeypatch, row):
    "What the report says of a row's cost doesn't depend on interruptions."
    _, out, _ = killed(here, monkeypatch, "score", 2, **SMALL | dict(methods=[row]))
    assert out.cost[row, 0] == done.out.cost[row, 0]


@pytest.mark.parametrize("what", ["model", "best", "report.json"])
def test_killed_while_it_tidies_up(done, here, monkeypatch, what):
    "The last round is over; the best one's model is there after all."
    real = dict(model=models.save_generator, best=models.shutil.rmtree)
    def dying(*args, **kw):
        if what in real: real[what](*args, **kw)
        raise KeyboardInterrupt
    given = SMALL | dict(methods=["per-sample"], save_every=0)
    with monkeypatch.context() as m:
        m.setattr(*dict(model=(models, "save_generator"), best=(models.shutil, "rmtree")).get(what, (models, "_report")), dying)
        with pytest.raises(KeyboardInterrupt): stages(here(**given))
    out = stages(here(**given))
    assert done.out.best["per-sample", 0] == 2 and torch.equal(weights(out.models["per-sample", 0]), weights(done.out.models["per-sample", 0]))
    assert out.answers["per-sample", 0] == done.out.answers["per-sample", 0] and out.history["per-sample", 0] == done.out.history["per-sample", 0]


def test_killed_fine_tuning_goes_on(done, here, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(models, "save_generator", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt): stages(here(**SMALL | dict(methods=["golden-sft"])))
    out = stages(here(**SMALL | dict(methods=["golden-sft"])))
    assert out.answers["golden-sft", 0] == done.out.answers["golden-sft", 0] and out.cost["golden-sft", 0] == done.out.cost["golden-sft", 0]


# ---------------------------------------------------------------- transformers and adapters


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str: return str(make_model("bert", tmp_path_factory.mktemp("bert"), head="encoder", vocab_texts=VOCABULARY, num_hidden_layers=1))


def transformer(bert: str, **more) -> dict: return TINY | dict(classifier="transformer", classifier_model=bert, damping=1.0, classifier_epochs=4.0, classifier_lr=2e-2, oracle_size=20, golden_sizes=[10]) | more


def test_a_transformer_as_classifier(here, bert):
    run = here(**transformer(bert))
    out = stages(run)
    found = report(run, out)
    assert [m for m, _ in out.answers] == rows_of(METHODS, [10]) and all(len(rows) == 20 for rows in out.answers.values()) and len(found["trained"]) == 3
    assert len({round(r["golden_loss"], 6) for r in out.history["per-sample", 0]}) == 3
    assert all({"influence", "inter", "intra"} <= set(r) for r in read_jsonl(run.out_dir / "rounds" / "per-sample-0" / "iteration-0000.jsonl"))
    again = here(**transformer(bert, params_name="again"))
    stages(again)
    assert keys(again) == keys(run)


def test_an_encoder_measures_distances(here, bert):
    "It changes what distances are, and nothing that golden texts say of the untrained generator."
    runs = {name: here(**TINY | dict(methods=["untrained", "batch-level"], embedding_model=model, max_iterations=1)) for name, model in (("words", ""), ("bert", bert))}
    outs = {name: stages(run) for name, run in runs.items()}
    assert outs["words"].answers["untrained", 0] == outs["bert"].answers["untrained", 0] and keys(runs["words"])["texts/untrained"] == keys(runs["bert"])["texts/untrained"]
    assert keys(runs["words"])["exam/untrained"] != keys(runs["bert"])["exam/untrained"]
    assert len({outs[name].sets["untrained", 0][0]["data"]["inter"] for name in outs}) == 2 and keys(runs["words"])["train/batch-level"] != keys(runs["bert"])["train/batch-level"]


def test_a_transformer_and_an_encoder_together(here, bert):
    out = stages(here(**transformer(bert, embedding_model=bert, distance="euclidean", methods=["per-sample", "golden-direct"], max_iterations=1)))
    assert out.history["per-sample", 0][0]["inter"] > 0 and out.answers["per-sample", 0]


def test_a_label_without_texts_is_one_line_with_a_transformer(here, bert, monkeypatch):
    says(monkeypatch, lambda label, i: "" if label == "glad" else f"the cold lobby {i} .")
    assert "no text with the label 'glad'" in line_of(stages, here(**transformer(bert, methods=["untrained"])))


@pytest.fixture(scope="module")
def writers(tmp_path_factory) -> dict:
    return {arch: str(make_model(arch, tmp_path_factory.mktemp(arch), vocab_texts=VOCABULARY)) for arch in ("gpt2", "llama")}


LORA = dict(lora_r=2, lora_alpha=4, lr=1e-2, sft_lr=1e-2, max_new_tokens=8, methods=["untrained", "golden-sft", "per-sample"], save_every=1)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_adapters_end_in_a_plain_model(here, writers, arch):
    from safetensors import safe_open
    names = lambda folder: set(safe_open(Path(folder) / "model.safetensors", "pt").keys())
    run = here(**TINY | LORA | dict(base_model=writers[arch], lora_dropout=0.1))
    out = stages(run)
    first, base = next(s for s in run.stages if s.item == "0/train/per-sample").curves()[0], weights(writers[arch])
    assert first["kl"] == 0 and first["grad_norm"] > 0 and len(out.history["per-sample", 0]) == 3
    for row in ("golden-sft", "per-sample"): assert names(out.models[row, 0]) == names(writers[arch]) and len(weights(out.models[row, 0])) == len(base)
    assert not torch.equal(weights(out.models["golden-sft", 0]), base) and out.kl["golden-sft", 0] != 0
    places = run.out_dir / "checkpoints" / "per-sample-0"
    assert torch.equal(weights(places / "iteration-0000"), base) and not torch.equal(weights(places / "iteration-0001"), base)
    assert not torch.equal(weights(places / "iteration-0001"), weights(places / "iteration-0002"))
    assert torch.equal(weights(out.models["per-sample", 0]), weights(places / f"iteration-{out.best['per-sample', 0]:04d}")), "the best round's adapters"


def test_killed_with_adapters(here, writers, monkeypatch, tmp_path):
    given = TINY | LORA | dict(base_model=writers["llama"], methods=["per-sample"])
    calm = stages(here(**given, params_name="calm"))
    kept, history = weights(calm.models["per-sample", 0]), calm.history["per-sample", 0]
    monkeypatch.setenv("RLGEN_CACHE_DIR", str(tmp_path / "another"))
    settings.cache_clear()
    _, out, rounds = killed(here, monkeypatch, "step", 1, **given)
    assert rounds < 3 and out.history["per-sample", 0] == history and torch.equal(weights(out.models["per-sample", 0]), kept) and out.answers == calm.answers


def test_examples_while_learning(here):
    run = here(**TINY | dict(icl_training=True, icl_strategy="balanced", num_icl=2, methods=["per-sample"], max_iterations=1))
    out = stages(run)
    lm = load_lm("zoo/drafts")
    assert all({e.label for e in r.examples} == {"cross", "glad"} for r in ask(run.params, lm, out.problem, 8, 0, icl=True)) and out.answers
    first = [r["text"] for r in read_jsonl(run.out_dir / "rounds" / "per-sample-0" / "iteration-0000.jsonl")]
    again = write(lm, ask(run.params, lm, out.problem, 16, 0, icl=True), [seed_for(0, "round", [0, i]) for i in range(16)], **writing(run.params))
    assert first == [r.info["text"] for r in again]


def test_patience_ends_a_training(here):
    out = stages(here(**TINY | dict(methods=["batch-level"], lr=0.0, max_iterations=8, patience=2, min_delta=100.0)))
    assert len(out.history["batch-level", 0]) == 3 and out.cost["batch-level", 0]["rounds"] == 2

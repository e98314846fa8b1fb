"""rlgen.synth_rl.answers and rlgen.synth_rl.tasks: answers read strictly, tasks inferred, rows of all shapes, nothing copied from the test."""

import gzip
import json
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction
from types import SimpleNamespace

import pytest

from helpers import line_of
from rlgen.core import jsonl
from rlgen.data import Rows
from rlgen.synth_rl.answers import KINDS, LETTERS, TEMPLATE, Task, answer_reward, correct, format_reward, label_key, normal_answer, parse_answer, read_output, reward_function
from rlgen.synth_rl.tasks import (
    SHIPPED, Example, decontaminate, infer_task, load_task_data, overlap, pick_demos, prompt_ids, prompt_text, reply_text, without,
)
from rlgen.worlds.synth_rl import INSTRUCTION, accuracy, make_tasks

NUM, TXT, ABCD = Task("num", "Solve.", "number"), Task("txt", "Say.", "text"), Task("abcd", "Choose.", "choice", "ABCD")
NLI = Task("nli", "Does it follow?", "label", ["entailment", "neutral", "contradiction"])
YES, RTE, BIT = (Task(n, "Decide.", "label", x) for n, x in (("yes", ["yes", "no", "maybe"]), ("rte", ["entailment", "not_entailment"]), ("bit", "01")))
TRACK = Task("track", INSTRUCTION, "number", template="{input}", reply="answer {output}")
TASKS = [NUM, TXT, ABCD, NLI, YES, RTE, BIT, TRACK]


def write(path, rows):
    path.write_text(jsonl(rows))
    return path


# ---------------------------------------------------------------- the task


def test_a_task_completes_itself_and_is_short_to_look_at():
    assert NLI.labels == ("entailment", "neutral", "contradiction") and NLI.chance == 1 / 3 and NUM.chance == TXT.chance == 0 and ABCD.chance == 0.25
    assert (NUM.reply, TXT.reply) == ("The answer is {output}.", "{output}") and NLI.output_format == "one of: entailment, neutral, contradiction" and ABCD.output_format.endswith("A to D")
    assert '"answer <number>"' in TRACK.ending and "The answer is <letter>." in ABCD.ending and "Task nli" in repr(NLI) and len(repr(Task("x", "word " * 900, "text"))) < 500
    assert hash(NLI) == hash(replace(NLI)) and replace(NUM, chance=0.1).chance == 0.1 and "0.1" in repr(replace(NUM, chance=0.1))
    with pytest.raises(FrozenInstanceError): NUM.kind = "text"


@pytest.mark.parametrize("given, said", [
    (dict(kind="numbers"), "kind = 'numbers', did you mean 'number'?"), (dict(instruction=" "), "has no instruction"), (dict(kind="number", labels="AB"), "a task of kind number has no labels"),
    (dict(kind="label"), "expected two or more"), (dict(kind="label", labels=["yes"]), "expected two or more"), (dict(kind="label", labels=["a", " "]), "no empty one"), (dict(kind="label", labels=["not_a", "Not a", "b"]), "'not a' stands there more than once"),
    (dict(kind="choice", labels="ABD"), "expected letters from A on"), (dict(kind="choice", labels="A"), "two or more"), (dict(kind="choice"), "letters from A on"), (dict(template="{instruction}"), "template = '{instruction}' has {input} 0 times"),
    (dict(template="{input}{input}"), "2 times"), (dict(template="{question}{input}"), "nothing is called {question}"), (dict(reply="The answer."), "has {output} 0 times"), (dict(chance=1.0), "chance = 1.0"), (dict(chance=-0.1), "chance = -0.1"),
])  # fmt: skip
def test_what_does_not_fit_together_is_no_task(given, said):
    assert said in line_of(lambda: Task(**dict(name="t", instruction="Do it.", kind="number") | given))


def test_labels_are_told_apart_by_words():
    assert label_key("card_arrival") == label_key(" Card-Arrival ") == "card arrival" and label_key("C++") == "c++" and label_key("-") == "-" != label_key("+")


# ---------------------------------------------------------------- canonical forms


def spellings(q: Fraction, rng) -> list[str]:
    "Ways to write a number."
    found = [f"{q.numerator}/{q.denominator}", rf"\frac{{{q.numerator}}}{{{q.denominator}}}" if q >= 0 else rf"-\frac{{{-q.numerator}}}{{{q.denominator}}}", f"{3 * q.numerator} / {3 * q.denominator}"]
    if q.denominator in (1, 2, 4, 5, 8):
        text = f"{float(q):.3f}"
        found += [text, text + "0", f"{float(q):,.3f}", f"${text}", f"{text} dollars", f"{text}%", f" {text}.", f"**{text}**", f"x = {text}", text.translate({c: c + 0xFEE0 for c in range(48, 58)}), rf"\text{{{text} m}}", "−" + text[1:] if q < 0 else "+" + text]
    return found


def test_a_number_has_one_form_however_it_is_written():
    rng = random.Random(0)
    for _ in range(200):
        q = Fraction(rng.randint(-50_000, 50_000), rng.choice([1, 2, 3, 4, 5, 7, 8]))
        forms = {s: normal_answer(NUM, s) for s in spellings(q, rng)}
        assert len(set(forms.values())) == 1 and Fraction(forms.popitem()[1]) == q, forms


@pytest.mark.parametrize("text, value", [
    ("1,234.50", "1234.5"), ("-3", "-3"), ("- 3", "3"), ("1/2", "0.5"), ("2/6", "1/3"), ("2 1/2", "2.5"), (r"2\frac{1}{2}", "2.5"), ("-2 1/2", "-2.5"), ("50%", "50"), ("5 million", "5000000"), ("2 dozen eggs", "24"), (".50", "0.5"), ("007", "7"),
    ("1e3", "1000"), ("-$7", "-7"), ("$-7", "-7"), ("US$ 7", "7"), ("7 €", "7"), ("18 eggs per day", "18"), ("about 18", "18"), ("5kg", "5"), ("12°", "12"), ("1\u202f234", "1234"), ("1\u00a0234\u00a0567 km", "1234567"), ("1 234", None), ("#### 18", "18"), ("0.10", "0.1"), ("-0", "0"), ("10 m/s", "10"),
    ("minus 4", "-4"), ("3.", "3"), ("'3'", "3"), ("(3)", "3"), ("100", "100"), (r"1{,}000", "1000"), (r"\$5", "5"), ("2+3=5", "5"),
    ("5-6", None), ("5:30", None), ("1/2/2025", None), ("x^5", None), ("5th", None), ("1,50", None), ("1,2345", None), ("1/0", None), ("√5", None), (r"\sqrt{5}", None), ("> 5", None), ("x >= 5", None), ("3x + 1", None), ("9" * 70, None), ("1e999999", None), ("5k", None),
    ("5 or 6", None), ("3 is wrong", None), ("four", None), ("", None), ("nan", None), ("inf", None), ("1_000", None), ("0x10", None), ("18²", None), ("½", None), ("١٨", None), ("±5", None), ("1.2.3", None), ("it is 5", None), ("v2", None), ("5 6", None), ("5!=5+1", None),
])  # fmt: skip
def test_numbers(text, value): assert normal_answer(NUM, text) == value


@pytest.mark.parametrize("task, text, value", [
    (ABCD, "B", "B"), (ABCD, "b", "B"), (ABCD, "(B)", "B"), (ABCD, "b)", "B"), (ABCD, "B.", "B"), (ABCD, " [B] ", "B"), (ABCD, "B) Vitamin C.", "B"), (ABCD, "B. bank", "B"), (ABCD, "（Ｂ）", "B"), (ABCD, "E", None), (ABCD, "AB", None), (ABCD, "B or C", None),
    (ABCD, "A, B", None), (ABCD, "A patient", None), (ABCD, "C. difficile", None), (ABCD, "a matter", None), (ABCD, "B) x C) y", None), (ABCD, "A. B. C. D.", None), (ABCD, "C) V(D)J", "C"), (ABCD, "A) type B (SS-B)", "A"), (ABCD, "vitamin C", None), (ABCD, "", None), (ABCD, "A) x\nB) y", None), (ABCD, "B) x\nBecause", None),
    (NLI, "Neutral.", "neutral"), (NLI, " “ENTAILMENT” ", "entailment"), (NLI, "not neutral", None), (NLI, "neutrality", None), (NLI, "**neutral**", "neutral"), (RTE, "Not entailment", "not_entailment"), (RTE, "not-entailment!", "not_entailment"), (RTE, "entailment", "entailment"),
    (BIT, "1", "1"), (BIT, "1.", "1"), (BIT, "1.0", None), (TXT, "The  Nile.", "the nile"), (TXT, "“The Nile”", "the nile"), (TXT, "", None), (TXT, " . ", None), (TXT, r"\frac{ x }{2}", "x/2"), (TXT, r"\left( \sqrt{3} , 1 \right)", r"(\sqrt{3},1)"),
    (TXT, "GRÖSSE", "grösse"),
])  # fmt: skip
def test_letters_labels_and_texts(task, text, value): assert normal_answer(task, text) == value


# ---------------------------------------------------------------- answers in replies


READ = [
    # numbers that are stated
    (NUM, "The answer is 5 apples.", "5"), (NUM, "the answer is $1,234.50.", "1234.5"), (NUM, "answer: -3", "-3"), (NUM, "Answer:\n- 3", "3"), (NUM, "**Final Answer**: **5**", "5"), (NUM, "The answer is:\n\n5", "5"), (NUM, "The answer is (5).", "5"),
    (NUM, "He has 18.\n#### 18", "18"), (NUM, "It is 18 because 9 * 2 = 18. #### 18", "18"), (NUM, r"\boxed{\frac{3}{4}}", "0.75"), (NUM, r"So $\boxed{x=5}$.", "5"), (NUM, r"\boxed{5\text{ apples}}", "5"), (NUM, "<answer>5</answer>", "5"), (NUM, "<answer>The answer is 5.</answer>", "5"),
    (NUM, "Final Answer: The final answer is $5$. I hope it is correct.", "5"), (NUM, "The answer is 12 * 5 = 60 dollars", "60"), (NUM, "The answer is 5 because 2 + 3 = 5.", "5"), (NUM, "The answer to the question is 5.", "5"), (NUM, "The answer is that he has 5 left.", "5"), (NUM, "The answer is 16 - 3 - 4 = 9 eggs, then 9 * 2 = $18", "18"),
    (NUM, "The answer is 5, not 6.", "5"), (NUM, "The answer is not 5 but 6", "6"), (NUM, "The answer isn't 5, it's 6", "6"), (NUM, "The answer is 5 rather than 6.", "5"), (NUM, "Answers: 5", "5"), (NUM, "My answer = 5", "5"), (NUM, "5", "5"), (NUM, "18 eggs", "18"),
    # the last statement decides
    (NUM, "The answer is 5. Wait, that is wrong. The answer is 6.", "6"), (NUM, r"\boxed{5} The answer is 6", "6"), (NUM, r"The answer is 6. \boxed{5}", "5"), (NUM, "The answer is 5. I hope the answer is helpful.", "5"), (NUM, "The wrong answer is 5. The right answer is 6", "6"),
    (NUM, "#### Step 1: add\nSo 4.\n#### 4", "4"), (NUM, "The answer is 4.\n#### Step 2: check it", "4"), (NUM, "The answer is 5. Actually, the answer is between 6 and 7", None), (NUM, "The answer is 5. No: the answer is not 5.", None),
    # no single answer
    (NUM, "The answer is 5 apples and 3 pears.", None), (NUM, "The answer is 4 or 5", None), (NUM, "The answer is x = 5 or x = 6", None), (NUM, "The answer is 3 hours and 20 minutes", None), (NUM, "The answer is not 5.", None), (NUM, "The incorrect answer is 5.", None), (NUM, "The answer 5 is wrong.", None), (NUM, "The answer is 5, which is wrong.", None),
    (NUM, "If the answer is 5, fine.", None), (NUM, "Is the answer 5?", None), (NUM, "The answer is 5?", None), (NUM, "To answer 3 questions we", None), (NUM, "The answer is 2**3", None), (NUM, "The answer is 3x + 1", None), (NUM, "The answer cannot be 5.", None),
    (NUM, "She pays 5.", None), (NUM, "2 + 3 is 5, so he has 5.", None), (NUM, "The answer is 5 out of 10", None), (NUM, "", None), (NUM, " \n", None), (NUM, "__import__('os').system('echo 5')", None), (NUM, "1\n2\n3.", None),
    # cut off
    (NUM, "The answer is", None), (NUM, "The answer is 4. Let me see. The answer is", None), (NUM, r"\boxed{5", None), (NUM, r"The answer is 4, so \boxed{\frac{1", None), (NUM, "<answer>5", None), (NUM, r"\boxed{}", None),
    # the prompt, or a new one, in the reply
    (NUM, NUM.ending, None), (NLI, NLI.ending, None), (ABCD, ABCD.ending, None), (NLI, NLI.ending + "\nThe answer is neutral.", "neutral"), (NUM, "The answer is 5.\n\nInput: What is 2 + 2?\nOutput: The answer is 4.", "5"), (NUM, "Input: What is 2 + 2?\nOutput: The answer is 4.", None), (NUM, "5\nInput: 3", "5"),
    # the world
    (TRACK, "7 2 9 . answer 9", "9"), (TRACK, "7 2 9 . answer", None), (TRACK, "7 2 9 .", None), (TRACK, "7 2 9", None), (TRACK, "answer 9 3", None), (TRACK, "answer 9 the pawn stands on 3 .", None), (TRACK, "9", "9"), (TRACK, "answer 9 .", "9"),
    # letters
    (ABCD, "The answer is (B)", "B"), (ABCD, "The answer is B. Cross-linking", "B"), (ABCD, "The correct option is B.", "B"), (ABCD, "The best answer choice is (c).", "C"), (ABCD, "Answer: C. Option A is wrong.", "C"), (ABCD, "The answer is B because A is wrong", "B"), (ABCD, "Answer:\nB", "B"),
    (ABCD, "The answer is therefore option B", "B"), (ABCD, "The answer is B rather than C", "B"), (ABCD, "The answer is A", "A"), (ABCD, "The answer is a.", "A"), (ABCD, r"\boxed{\text{(B)}}", "B"), (ABCD, "B) yes\nIt binds DNA.", "B"), (ABCD, "B\n\nExplanation: it is.", "B"), (ABCD, "A) no\nB) yes\nSo I take (B).", "B"),
    (ABCD, "The answer is vitamin C.", None), (ABCD, "The answer is C. difficile", None), (ABCD, "Answer: A man who", None), (ABCD, "The answer is A Northern blot.", None), (ABCD, "The answer is B Northern blot", "B"), (ABCD, "The answer is a matter of", None), (ABCD, "The answer is B or C", None), (ABCD, "The answer is either A or B", None), (ABCD, "The answer is E", None), (ABCD, "The answer is not B", None),
    (ABCD, "A) x\nB) y", None), (ABCD, "Option A is wrong.", None), (ABCD, "It is not (B).", None), (ABCD, "Hepatitis B", None), (ABCD, "I don't know", None), (ABCD, "The answer is AB", None), (ABCD, "A patient comes", None), (ABCD, "The answer is B. Or rather, the answer is E.", None),
    # labels
    (NLI, "The answer is neutral (not entailment).", "neutral"), (NLI, "Label: neutral\nExplanation: a contradiction", "neutral"), (NLI, "The relation is contradiction.", "contradiction"), (NLI, "It can't be entailment; it's neutral.", "neutral"), (NLI, "Neutral. The premise says nothing.", "neutral"),
    (NLI, "Entailment would need more, so it is neutral.", "neutral"), (NLI, "The answer is entailment because a contradiction would need more", "entailment"), (NLI, "Entailment: he sleeps.", "entailment"), (NLI, "I think contradiction. Hence: neutral", "neutral"),
    (NLI, "It is not entailment.", None), (NLI, "The answer is not neutral.", None), (NLI, "Neither neutral nor contradiction.", None), (NLI, "The answer is neutral or entailment", None), (NLI, "neutral or entailment?", None), (NLI, "Neutral. No, it is not neutral.", None), (NLI, "There is no contradiction.", None),
    (NLI, "A contradiction is unlikely.", None), (NLI, "Entailment, which is wrong.", None), (NLI, "It is unlikely to be neutral.", None), (NLI, "The answer is non-neutral.", None), (NLI, "The answer is neutral. Or: the answer is neutral or entailment.", None), (NLI, "An entailment would need more.", None), (NLI, "neutrality", None), (YES, "Yes, it is.", "yes"), (YES, "There is no doubt.", None), (YES, "No.", "no"), (YES, "The answer is no, it isn't yes", "no"), (YES, "Yes and no.", None),
    (YES, "No evidence.", None), (RTE, "The answer is not_entailment.", "not_entailment"), (RTE, "The answer is not entailment", "not_entailment"), (RTE, "It is entailment.", "entailment"), (BIT, "The answer is 0.", "0"), (BIT, "The answer is 0.5", None), (BIT, "The answer is 1.0", None), (BIT, "10", None),
    # texts
    (TXT, "The Nile", "the nile"), (TXT, "Let me see.\nThe answer is: The Nile.", "the nile"), (TXT, r"So \boxed{\sqrt{3}}.", r"\sqrt{3}"), (TXT, "Answer: the Nile\nIt is long.", "the nile"), (TXT, "", None), (TXT, "The answer is", None), (TXT, "steps\n#### x + 1", "x + 1"), (TXT, "#### Step 1\nIt is long.", "#### step 1 it is long"),
]  # fmt: skip


@pytest.mark.parametrize("task, text, value", READ)
def test_the_answer_of_a_reply(task, text, value): assert parse_answer(task, text) == value


def test_an_answer_read_is_read_again_and_nothing_raises():
    pieces = ["5", "0", "1", "-3", "1,234.5", "1/2", "½", "answer", "is", "The answer is", ":", "####", "\\boxed{", "}", "{", "\\frac{1}{2}", "B", "(B)", "b)", "A", "neutral", "entailment", "not", "no", "yes", "or", ".", ",", "?", "\n", "$", "%", "=", "<answer>",
              "</answer>", '"', "(", ")", "*", "**", "５", "\\text{", "\0", "\u2028", "²", "million", "e5", "if", "wrong", "\\", "because", "Input:", "\\left", "#", "ß"]  # fmt: skip
    rng, read = random.Random(0), Counter()
    for _ in range(2000):
        text = "".join(rng.choice(pieces) + rng.choice(["", " "]) for _ in range(rng.randint(0, 8)))
        for task in TASKS:
            for value in (parse_answer(task, text), normal_answer(task, text)):
                if value is None: continue
                read[task.name] += 1
                assert normal_answer(task, value) == value, (task.name, text)
                if task.kind != "text": assert parse_answer(task, value) == value, (task.name, text)
    assert all(read[t.name] > 10 for t in TASKS), read


@pytest.mark.parametrize("piece", ["not ", "{", "\\frac{", "\\boxed{", "1,", "1 ", "9", "the answer to ", "answer ", " ", "\n", "no entailment ", "(A) or ", "A) x\n", "####", "<answer>", "correct ", "\\text{", "answer is ", "\u00a0", "isn't ", "- ", "if the "])
def test_long_replies_are_read_fast(piece):
    text, start = (piece * 20_000)[:20_000] + " answer to ", time.process_time()
    for task in (NUM, ABCD, NLI, TXT): parse_answer(task, text)
    assert time.process_time() - start < 3


def test_known_answers_go_through_the_same_reader():
    assert read_output(NUM, "Natalia sold 48 / 2 = 24 clips in May.\n#### 72") == "72" and read_output(NLI, " Neutral ") == "neutral" and read_output(ABCD, "(b)") == "B" and read_output(TXT, r"We get \boxed{\frac{x}{2}}") == read_output(TXT, r"\frac{x}{2}")
    assert correct(NUM, "The answer is $1,250.50.", "1250.5") and correct(NUM, "The answer is 0.5", r"\frac{1}{2}") and not correct(NUM, "The answer is 12505", "1250.5") and not correct(NUM, "", "5")
    assert correct(TXT, "Easy. The answer is the Nile!", "The Nile!") and not correct(NLI, "The answer is neutral or entailment", "neutral")
    assert "the output 'entails' can't be read as a label; expected one of the labels, did you mean 'entailment'?" in line_of(read_output, NLI, "entails")
    assert "can't be read as a number" in line_of(correct, NUM, "The answer is 5", "some") and "can't be read as a choice" in line_of(read_output, ABCD, "E") and "can't be read" in line_of(read_output, TXT, " ")


def test_the_world_agrees_with_its_own_judge():
    tasks = make_tasks("valid", 200)
    for t in tasks:
        for reply in (t.worked, t.answer, t.worked.replace("answer", ""), f"answer {(int(t.answer) + 1) % 10}", "answer", ""): assert correct(TRACK, reply, t.answer) == bool(accuracy(t, reply)), reply


# ---------------------------------------------------------------- rewards


def test_rewards_look_at_completions_only():
    prompts, completions = ["The answer is 5."] * 4, ["", "The answer is 6.", "5", "4 or 5"]
    assert answer_reward(NUM)(prompts, completions, output=["5"] * 4, level=[1] * 4, trainer_state=None) == [0, 0, 1, 0]
    assert format_reward(NUM)(prompts, completions, output=["5"] * 4) == [0, 1, 1, 0] and format_reward(NUM)(prompts, completions) == [0, 1, 1, 0]
    talk = [[dict(role="user", content="The answer is 5."), dict(role="assistant", content=c)] for c in completions]
    assert answer_reward(NUM)(prompts, talk, output=["5"] * 4) == [0, 0, 1, 0]
    with pytest.raises(ValueError): answer_reward(NUM)(prompts, completions, output=["5"])
    with pytest.raises(TypeError): answer_reward(NUM)(prompts, completions)
    assert "can't be read as a number" in line_of(answer_reward(NUM), [""], ["5"], output=["many"])


def test_rewards_are_weighted():
    completions, output = ["5", "6", "?"], ["5"] * 3
    assert reward_function(NUM)(completions, completions, output=output) == [1, 0, 0]
    assert reward_function(NUM, dict(answer=2.0, format=0.5))([""] * 3, completions, output=output) == [2.5, 0.5, 0] and reward_function(NUM, dict(answer=0, format=1))([""] * 3, completions) == [1, 1, 0]
    assert "no reward 'fromat', did you mean 'format'?" in line_of(reward_function, NUM, dict(fromat=1)) and "all are 0" in line_of(reward_function, NUM, dict(answer=0.0)) and "all are 0" in line_of(reward_function, NUM, {})


# ---------------------------------------------------------------- inference


@pytest.mark.parametrize("outputs, kind, labels", [
    (["5", "8"], "number", ()), (["$1,200", "3.5%", "1/2"], "number", ()), (["a\n#### 5", "b\n#### 1,000"], "number", ()), ([r"\boxed{5}", "7"], "number", ()), ([str(i % 10) for i in range(1000)], "number", ()), (["0", "1"] * 3, "number", ()),
    (["0", "1"] * 50, "label", "01"), (["1", "2", "3"] * 40, "label", "123"), (["2", "7"] * 50, "number", ()), (["A", "(B)", "D."], "choice", "ABCD"), (["A", "A"], "choice", "AB"), (["F", "B"], "choice", "ABCDEF"),
    (["yes", "no"] * 3, "label", ["no", "yes"]), (["Yes", "yes", "yes", "No", "no", "no"], "label", ["no", "yes"]), (["true", "false"] * 9, "label", ["false", "true"]), (["Mary Shelley", "Defoe", "Swift"], "text", ()), (["yes"], "text", ()), (["Y", "N"] * 5, "label", "NY"),
    ([" ".join("many words of a long sentence".split()[: i % 2 + 5]) for i in range(20)], "label", ["many words of a long", "many words of a long sentence"]), (["one two three four five six seven"] * 2 + ["x"] * 9, "text", ()),
    ([r"\boxed{\sqrt{2}}", r"\boxed{3}", r"\boxed{x}"], "text", ()),
])  # fmt: skip
def test_the_kind_shows_in_the_outputs(outputs, kind, labels):
    task = infer_task("t", "Do it.", outputs)
    assert (task.kind, task.labels) == (kind, tuple(labels)) and task.note and all(parse_answer(task, reply_text(task, Example("", o))) == read_output(task, o) for o in outputs if "\n" not in o and "boxed" not in o)


def test_labels_are_seen_in_the_instruction_and_spelled_as_most_often():
    assert infer_task("t", "Say entailment, neutral or not_entailment.", ["neutral", "not entailment"]).labels == ("neutral", "not entailment")
    assert infer_task("t", "Say it.", ["neutral", "entailment"]).kind == "text" and infer_task("t", "Is it neutrality or entailment?", ["neutral", "entailment"]).kind == infer_task("t", "Unfair, or nice?", ["fair", "nice"]).kind == "text"
    assert infer_task("t", "Say it.", ["Not_A", "not a", "not a", "b", "b", "b"]).labels == ("b", "not a")


def test_chance_is_what_guessing_by_frequency_earns():
    assert infer_task("t", "Do it.", [str(i % 10) for i in range(1000)]).chance == pytest.approx(0.1, abs=1e-3) and infer_task("t", "Do it.", ["1", "2"]).chance == 0 and infer_task("t", "Do it.", ["yes", "no"] * 5).chance == 0.5
    assert infer_task("t", "Do it.", [str(i) for i in range(100)]).chance == 0 and infer_task("t", "Do it.", ["7"] * 40, chance=0.3).chance == 0.3
    rng = random.Random(0)
    drawn = [infer_task("t", "Do it.", [str(rng.randrange(10)) for _ in range(50)]).chance for _ in range(200)]
    assert sum(drawn) / 200 == pytest.approx(0.1, abs=0.005), "not larger for few outputs"


def test_everything_can_be_set():
    assert infer_task("t", "Do it.", kind="number").kind == "number" and infer_task("t", "Do it.", [], labels=["a", "b"]).kind == "label" and infer_task("t", "Do it.", labels="ABC").kind == "choice" and infer_task("t", "Do it.", kind="choice").labels == tuple("ABCD")
    task = infer_task("t", "Do it.", ["yes", "no"], labels=["yes", "no", "maybe"], output_format="a word", template="{input}", reply="answer {output}", chat=True, input_format="", note="mine")
    assert (task.labels, task.output_format, task.chat, task.note) == (("yes", "no", "maybe"), "a word", True, "mine") and infer_task("t", "Do it.", ["1", "2"] * 50, kind="number").kind == "number" and infer_task("t", "Do it.", [1, 2.5, True] * 2, kind="text").kind == "text"
    assert infer_task("t", "Do it.", ["B", "(C)"], kind="choice").labels == tuple("ABC") and infer_task("t", "Do it.", ["1", "2"], kind="label").labels == ("1", "2")


@pytest.mark.parametrize("outputs, given, said", [
    (["yes", "maybe"], dict(labels=["yes", "no"]), "the output 'maybe' can't be read as a label; expected one of the labels"), ([], {}, "no outputs to see the kind"), (["yes"] * 9, {}, "all 9 outputs are 'yes'"), (["1"] * 20 + ["many"], {}, "20 of 21 outputs are numbers, but 'many' is none"),
    (["a"], dict(kind="number"), "the output 'a' can't be read as a number"), (["1"], dict(reply="It is {output}."), "isn't read as the answer that it gives"), (["1"], dict(kinds="number"), "no field 'kinds', did you mean 'kind'?"), (["1", ""], {}, "the output ''"), (["E"], dict(labels="ABC"), "the output 'E'"),
    (["B", "x"], dict(kind="choice"), "the output 'x'"), (["1"], dict(kind="nmber"), "did you mean 'number'?"), (["yes", "no"], dict(kind="label", labels=["yes"]), "expected two or more"),
])  # fmt: skip
def test_what_can_not_be_is_one_line(outputs, given, said): assert said in line_of(infer_task, "t", "Do it.", outputs, **given)


# ---------------------------------------------------------------- prompts


CLIPS = Example("How many clips?", "72", info=dict(solution="48 + 24 = 72"))


def test_a_reply_states_the_output_for_every_kind():
    for task, output in ((NUM, "-1/3"), (TXT, "The Nile"), (ABCD, "A"), (NLI, "contradiction"), (RTE, "not_entailment"), (BIT, "0"), (TRACK, "9"), *((t, o) for t, o in zip(SHIPPED.values(), ("72", "D", "neutral", "neutral")))):
        for e in (Example("x", output), Example("x", output, info=dict(solution="2 + 2 = 4\nThe answer is 7 or 8 then"))):
            if task.kind != "text" or not e.info: assert correct(task, reply_text(task, e), output), task
    assert reply_text(NUM, CLIPS) == "48 + 24 = 72\nThe answer is 72." and reply_text(NUM, SimpleNamespace(output="{instruction}")) == "The answer is {instruction}."


def test_a_prompt_says_the_instruction_once_and_ends_without_a_space():
    assert prompt_text(NUM, CLIPS) == f"Solve.\n{NUM.ending}\n\nInput: How many clips?\nOutput:" and prompt_text(NUM, "How many clips?") == prompt_text(NUM, CLIPS) == prompt_text(NUM, SimpleNamespace(input="How many clips?"))
    two = prompt_text(NUM, "2 {instruction} \\1 {input}", [CLIPS, Example("{ending}", "1")])
    assert two == f"Solve.\n{NUM.ending}\n\nInput: How many clips?\nOutput: 48 + 24 = 72\nThe answer is 72.\n\nInput: {{ending}}\nOutput: The answer is 1.\n\nInput: 2 {{instruction}} \\1 {{input}}\nOutput:"
    assert prompt_text(TRACK, "where is it ?", [Example("q", "5")]) == "q answer 5\n\nwhere is it ?" and TEMPLATE == NUM.template
    three = replace(NUM, template="{instruction}\n\n{ending}\n\nQ: {input}\nA:")
    assert prompt_text(three, "x", [Example("y", "1")]) == f"Solve.\n\n{NUM.ending}\n\nQ: y\nA: The answer is 1.\n\nQ: x\nA:" and prompt_text(replace(NUM, instruction="use {input}", template="{instruction}: {input}"), "x") == "use {input}: x"
    inside = replace(NUM, template="{instruction} Q: {input}\nA:")
    assert prompt_text(inside, "x", [Example("y", "1")]) == "Solve. Q: y\nA: The answer is 1.\n\nSolve. Q: x\nA:" and prompt_text(replace(NUM, instruction="a\n\nb {input}"), "x").endswith("Input: x\nOutput:")


def test_a_chat_prompt_is_messages_in_turn():
    chat = replace(NUM, chat=True)
    assert prompt_text(chat, "x") == [dict(role="user", content=f"Solve.\n{NUM.ending}\n\nx")]
    talk = prompt_text(chat, "x", [CLIPS])
    assert [m["role"] for m in talk] == ["user", "assistant", "user"] and talk[0]["content"].endswith("\n\nHow many clips?") and talk[1]["content"] == reply_text(chat, CLIPS) and talk[2]["content"] == "x"


def test_prompt_ids_are_the_tokenizers():
    from rlgen.lm import encode_prompt, word_tokenizer
    chat, text = replace(NUM, chat=True), prompt_text(NUM, "x", [CLIPS])
    lm = SimpleNamespace(tokenizer=word_tokenizer([text + " U: A: How x"]), kind="causal")
    assert lm.tokenizer.decode(prompt_ids(lm, NUM, "x", [CLIPS])).split() == text.split() and "no chat template" in line_of(prompt_ids, lm, chat, "x") and "no chat template" in line_of(prompt_ids, lm, chat, "x", [CLIPS])
    lm.tokenizer.chat_template = "{% for m in messages %}{{ 'U: ' if m.role == 'user' else 'A: ' }}{{ m.content }} {% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    assert prompt_ids(lm, chat, "x") == encode_prompt(lm, prompt_text(chat, "x")[0]["content"], chat=True)
    said = lm.tokenizer.decode(prompt_ids(lm, chat, "x", [CLIPS])).split()
    assert said[0] == "U:" and said[-3:] == ["U:", "x", "A:"] and said.count("A:") == 2


# ---------------------------------------------------------------- rows


def test_every_place_gives_the_same(tmp_path):
    from datasets import Dataset, DatasetDict
    rows = [dict(Input=f"how many, {i} ?", Output=str(i)) for i in range(3)]
    text = write(tmp_path / "a.jsonl", rows).read_text()
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as f: f.write(text)
    (tmp_path / "c.csv").write_text("Input,Output\n" + "".join(f'"how many, {i} ?",{i}\n' for i in range(3)))
    Dataset.from_list([r | dict(Output=int(r["Output"])) for r in rows]).to_parquet(tmp_path / "d.parquet")
    DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:1])).save_to_disk(tmp_path / "e")
    for place in sorted(tmp_path.iterdir()): assert load_task_data(place)[0] == [Example(f"how many, {i} ?", str(i)) for i in range(3)], place
    assert len(load_task_data(tmp_path / "e", "test")[0]) == 1 and load_task_data(rows)[0] == load_task_data(Rows(rows))[0] and "no split 'valid'" in line_of(load_task_data, tmp_path / "e", "valid")


@pytest.mark.parametrize("row, expected", [
    (dict(INPUT=" q ", oUtput=" a "), ("q", "a")), (dict(text="q", label=0), ("q", "0")), (dict(prompt="q", completion=1.0), ("q", "1")), (dict(input="q", output=0.5), ("q", "0.5")), (dict(input="q", output=True), ("q", "True")),
    (dict(input="q", output="a", question="x", answer="y"), ("q", "a")), (dict(question="q", answer="a"), ("q", "a")), (dict(question="q", answer=3), ("q", "3")), (dict(question="q", answer="2+2=<<2+2=4>>4\n#### 1,004"), ("q", "1,004")),
    (dict(premise="p", hypothesis="h", label="neutral"), ("Premise: p\nHypothesis: h", "neutral")), (dict(sentence1="p", sentence2="h", gold_label="neutral", label=3), ("Premise: p\nHypothesis: h", "neutral")),
    (dict(question="q", options=dict(A="x", B="y"), answer="y", answer_idx="B"), ("q\nA) x\nB) y", "B")), (dict(question="q", choices=["x", "y"], answer=1), ("q\nA) x\nB) y", "B")), (dict(question="q", choices=dict(label=["1", "2"], text=["x", "y"]), answerKey="2"), ("q\nA) x\nB) y", "B")),
    (dict(question="q", options=[dict(key="A", value="x"), dict(key="B", value="y")], answer_idx="A"), ("q\nA) x\nB) y", "A")), (dict(question="q", options=dict(A="x", B="y", C=None), answer="x"), ("q\nA) x\nB) y", "A")), (dict(question="q", options='["x", "y"]', answer="B"), ("q\nA) x\nB) y", "B")),
])  # fmt: skip
def test_shapes(row, expected):
    (e,), report = load_task_data([row])
    assert (e.input, e.output) == expected and report["kept"] == 1


def test_solutions_are_kept_without_calculator_notes():
    (e,), _ = load_task_data([dict(question="q", answer="48/2 = <<48/2=24>>24 in May.\n#### 24")])
    assert e.info == dict(solution="48/2 = 24 in May.") and load_task_data([dict(input="q", output="5", solution="2 + 3")])[0][0].info == dict(solution="2 + 3")
    assert load_task_data([dict(input="q", output="5")])[0][0].info == {} and e == Example("q", "24")


def test_inference_codes_have_names_where_all_three_occur():
    rows = [dict(premise="p", hypothesis=f"h{i}", label=y) for i, y in enumerate((0, 1, 2, -1, "-", None))]
    examples, report = load_task_data(rows)
    assert [e.output for e in examples] == ["entailment", "neutral", "contradiction"] and (report["unlabelled"], report["kept"], report["rows"], report["shape"]) == (3, 3, 6, "inference")
    assert [e.output for e in load_task_data(rows[:2])[0]] == ["0", "1"], "two codes may mean something else"
    assert [e.output for e in load_task_data([r | dict(label=str(r["label"])) for r in rows[:4]])[0]] == ["entailment", "neutral", "contradiction"] and "none of 2 rows has a label" in line_of(load_task_data, rows[3:5])


@pytest.mark.parametrize("rows, kw, said", [
    ([dict(problem="q", result="a")], {}, "d.jsonl:2: can't tell input from output among the columns problem, result"), ([dict(input="q", output="")], {}, "d.jsonl:2: field 'output' is empty"), ([dict(input=" ", output="a")], {}, "d.jsonl:2: field 'input' is empty"), ([dict(input="q", output=None)], {}, "'output' is NoneType"),
    ([dict(input="q", output=["a"])], {}, "'output' is list"), ([dict(input="q", output="a"), dict(input="q")], {}, "d.jsonl:3: no field 'output'"), ([dict(question="q", answer="#### 5"), dict(question="r", answer="6")], {}, "d.jsonl:3: the answer doesn't end in '#### …'"), ([dict(question="q", answer="5 ####")], {}, "doesn't end in"),
    ([dict(question="q", options=dict(A="x", B="y"), answer="C")], {}, "d.jsonl:2: the answer 'C' is no option (A, B)"), ([dict(question="q", options=["x", "y"], answer=2)], {}, "the answer '2' is no option"), ([dict(question="q", options=["x", "y"], answer=-1)], {}, "no option"), ([dict(question="q", options=["x", "x"], answer="x")], {}, "no option"),
    ([dict(question="q", options="x or y", answer="x")], {}, "holds no options"), ([dict(question="q", options=["x"], answer="x")], {}, "holds no options"), ([dict(question="q", options=["x", ""], answer="x")], {}, "holds no options"), ([dict(question="q", options='{"A": ', answer="x")], {}, "holds no options"),
    ([dict(input="q", output="a", id="i"), dict(input="r", output="a", id="i")], {}, "d.jsonl:3: the id 'i' stands at "), ([dict(input="q", output="perhaps")], dict(task=YES), "d.jsonl:2: task 'yes': the output 'perhaps' can't be read as a label"),
    ([dict(input="q", output="a")], dict(fields=dict(inputs="q")), "fields: no 'inputs' here, did you mean 'input'?"), ([dict(q="q", output="a")], dict(fields=dict(input="p")), "d.jsonl:2: no field 'p'"), ([dict(premise="p", hypothesis="", label="neutral")], {}, "'hypothesis' is empty"),
])  # fmt: skip
def test_faults_are_told_with_file_and_line(tmp_path, rows, kw, said):
    (tmp_path / "d.jsonl").write_text("\n" + jsonl(rows))
    assert said in line_of(load_task_data, tmp_path / "d.jsonl", **kw)


def test_columns_may_have_other_names_and_outputs_are_kept_in_canonical_form():
    assert load_task_data([dict(a="q", b="Yes.", c=7)], fields=dict(input="a", output="b", id="c"), task=YES)[0] == [Example("q", "yes", "7")] and load_task_data([dict(a="p", b="h", c="neutral")], fields=dict(premise="a", hypothesis="b", label="c"))[0][0].input == "Premise: p\nHypothesis: h"
    assert [e.output for e in load_task_data([dict(input=str(i), output=o) for i, o in enumerate(("$1,000", "1000.0", "x = 1000"))], task=NUM)[0]] == ["1000"] * 3


def test_repeated_rows_go_and_conflicting_ones_are_counted():
    rows = [dict(input="q", output="a")] * 3 + [dict(input="q", output="b"), dict(input="r", output="a"), dict(input="r", output="a", id="mine")]
    examples, report = load_task_data(rows)
    assert report == dict(rows=6, kept=4, shape="pairs", repeated=2, unlabelled=0, conflicting=1) and examples[3].id == "mine" and "holds no rows" in line_of(load_task_data, [])


def test_examples_are_named_by_content():
    a = Example("q", "a")
    assert a == Example("q", "a", info=dict(solution="s")) and a.id != Example("q", "b").id and Example("q", "a", "7").id == "7" and len(repr(Example("q" * 900, "a"))) < 150 and {a: 1}[Example("q", "a")] == 1
    with pytest.raises(FrozenInstanceError): a.id = "b"


# ---------------------------------------------------------------- demonstrations, copies


def test_demonstrations_are_spread_over_outputs_and_stay():
    rows = [Example(f"q{i}", NLI.labels[0 if i % 10 else i // 10 % 2 + 1]) for i in range(100)]
    for seed in range(10):
        for n, least in ((3, 1), (6, 2), (9, 3)): assert min(Counter(e.output for e in pick_demos(rows, n, seed)).values()) >= least and len({e.output for e in pick_demos(rows, n, seed)}) == 3
    ten = pick_demos(rows, 10)
    assert ten == pick_demos(rows[::-1], 10) and ten[:4] == pick_demos(rows, 4) and pick_demos(rows, 0) == [] and len({tuple(pick_demos(rows, 3, s)) for s in range(10)}) == 10 and len(pick_demos(rows, 100)) == 100
    assert set(pick_demos(rows[:99], 3)) == set(pick_demos(rows, 3)) or rows[99] in pick_demos(rows, 3), "a new row moves no old one"
    for n in (-1, 101): assert f"num_demos = {n}: expected 0 to 100" in line_of(pick_demos, rows, n)


def test_demonstrations_leave_with_their_twins():
    rows = [Example("A frog sat there.", "yes", "a"), Example("a frog sat there", "no", "b"), Example("A toad sat there.", "yes", "c"), Example("3 - 2 =", "1"), Example("-3", "1"), Example("3", "2")]
    assert without(rows, [Example("A FROG sat there!", "yes")]) == rows[2:] and without(rows, [rows[2]]) == rows[:2] + rows[3:] and without(rows, [Example("3 + 2 =", "5"), Example("5", "5")]) == rows and without(rows, []) == rows
    assert without(rows, [Example("other", "yes", "c")]) == rows[:2] + rows[3:], "the same id"


MILLER = "the old miller had three sons and a cat . how many did he feed ?"


@pytest.mark.parametrize("sample, kind", [
    (MILLER, "exact"), (MILLER.upper().replace(" .", "!"), "exact"), ("In our village " + MILLER, "near"), (MILLER.replace("old", "young"), "near"), (MILLER.replace("three", "four"), None), ("who had three sons and a cat ?", None), ("the old miller", None), ("ａ　train", "exact"), ("3 + 2 =", "exact"), ("3 - 2 =", None),
    ("-3 + 2 =", None), ("猫在哪里", "exact"), ("猫在那里", None), ("", None), ("...", None), ("?!", "exact"),
])  # fmt: skip
def test_copies_of_the_test_are_found(sample, kind):
    found = overlap([sample, "something else"], [MILLER, "a train", "3+2=", "猫在哪里", "?!"])
    assert (found["exact"], found["near"]) == (kind == "exact", kind == "near") and set(found["hits"]) == ({0} if kind else set()) and (found["samples"], found["test"]) == (2, 5)
    assert found["hits"].get(0, (0, 1.0))[1] >= 0.7


def test_the_share_is_counted_of_the_tests_runs():
    words = [f"w{i}" for i in range(17)]  # ten runs of eight
    for k in range(8, 18):
        share = (k - 7) / 10
        sample = [Example("x " + " ".join(words[:k]) + " y" * 50, "1")]
        assert overlap(sample, [Example(" ".join(words), "1")], threshold=share)["hits"] == {0: (0, share)} and not overlap(sample, [" ".join(words)], threshold=share + 0.01)["hits"]
    assert overlap([" ".join(words[:3])], [" ".join(words)], n=3, threshold=1 / 15)["near"] == 1


def test_a_template_is_no_copy():
    test = [f"a very long sentence that all the questions of this task share , then {i} and {i * i}" for i in range(30)]
    assert overlap(["a very long sentence that all the questions of this task share , then 99"], test, threshold=0.6)["near"] == 0 and overlap(["a very long sentence that all the questions of this task share , then 99"], test[:5], threshold=0.6)["near"] == 1
    ours, theirs = ([t.input for t in make_tasks(s, 400)] for s in ("train", "test"))
    found = overlap(ours + theirs[:7], theirs)
    assert found["exact"] == 7 and found["near"] < 8


def test_copies_are_refused_and_reported():
    samples = [Example(MILLER, "2"), Example("fresh ?", "1"), Example(MILLER.replace("old", "young"), "2")]
    kept, report = decontaminate(samples, [Example(MILLER, "2")])
    assert kept == samples[1:2] and {k: report[k] for k in ("samples", "test", "exact", "near", "kept")} == dict(samples=3, test=1, exact=1, near=1, kept=1) and [x["share"] for x in report["examples"]] == [1.0, 0.7143]
    assert json.loads(json.dumps(report)) == report and decontaminate(samples, []) == (samples, dict(samples=3, test=0, exact=0, near=0, kept=3, examples=[])) and decontaminate([], samples)[0] == [] and len(decontaminate(samples * 9, samples)[1]["examples"]) == 5
    assert decontaminate(samples, [MILLER], threshold=0.75)[0] == samples[1:]


# ---------------------------------------------------------------- loading, real data


def test_importing_loads_nothing_heavy():
    code = "import sys, rlgen.synth_rl.tasks; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_shipped_tasks_are_whole():
    assert set(SHIPPED) == {"gsm8k", "medqa", "snli", "mednli"} and all(n == t.name and t.input_format and t.kind in KINDS for n, t in SHIPPED.items()) and SHIPPED["mednli"].labels == SHIPPED["snli"].labels and LETTERS[:4] == "".join(SHIPPED["medqa"].labels)


@pytest.mark.slices
def test_real_word_problems(slices):
    train, report = load_task_data(slices / "gsm8k", "train")
    task = infer_task("gsm8k", "Solve.", [e.output for e in train])
    assert report["kept"] == 3000 and task.kind == "number" and 0 < task.chance < 0.03 and not any("<<" in e.info["solution"] for e in train)
    assert all(correct(SHIPPED["gsm8k"], reply_text(SHIPPED["gsm8k"], e), e.output) for e in train) and len(load_task_data(slices / "gsm8k", "test", task=task)[0]) == 500
    raw = [json.loads(line) for line in open(slices / "gsm8k" / "train.jsonl")]
    assert all(correct(task, r["answer"], e.output) for r, e in zip(raw, train)), "published solutions are read as they are"
    assert decontaminate(train, load_task_data(slices / "gsm8k", "test")[0])[1]["kept"] == 3000
    changed = [replace(e, input=e.input.replace(" and ", " or ", 1)) for e in train[:100]]
    assert overlap(changed, train[:100])["exact"] + overlap(changed, train[:100])["near"] > 90


@pytest.mark.slices
def test_real_choices_are_read_by_letter_only(slices):
    examples, report = load_task_data(slices / "medqa" / "questions.jsonl")
    task = infer_task("medqa", "Choose.", [e.output for e in examples])
    assert (report["kept"], report["shape"], task.kind, task.labels) == (800, "choices", "choice", tuple("ABCD")) and all(e.input.count("\nB) ") == 1 for e in examples)
    options = [(e.output, letter, text) for e in examples for letter, text in zip("ABCD", [line[3:] for line in e.input.splitlines()[-4:]])]
    for _, letter, text in options:
        if len(text) == 1: continue  # figures are named by letters
        for reply in (f"The answer is {letter}) {text}.", f"({letter}) {text}", f"Answer: {letter}. {text}", f"The correct option is {letter}: {text}\nBecause."): assert parse_answer(task, reply) == letter, reply
        for reply in (f"The answer is {text}.", text): assert parse_answer(task, reply) is None, reply


@pytest.mark.slices
def test_real_inference_and_classes(slices):
    examples, report = load_task_data(slices / "snli" / "pairs.jsonl")
    task = infer_task("snli", "Decide.", [e.output for e in examples])
    assert (report["kept"], report["repeated"], task.labels) == (2999, 1, ("contradiction", "entailment", "neutral")) and Counter(e.output for e in pick_demos(examples, 6)).most_common()[-1][1] == 2
    for name, k, n in (("banking77", 77, 3080), ("movie_sentences", 2, 2000)):
        train, _ = load_task_data(slices / name)
        task = infer_task(name, "Classify.", [e.output for e in train])
        assert len(task.labels) == k and load_task_data(slices / name, "test", task=task)[1]["rows"] == n
    assert all(correct(task, reply_text(task, e), e.output) for e in train[:500])

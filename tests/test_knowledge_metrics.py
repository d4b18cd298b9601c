"""What is measured: ranks, numbers with units, facts, support by passages."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgchat_lib.errors import ParameterError
from ecgchat_lib.knowledge.metrics import (
    Quantity,
    context_precision,
    context_recall,
    correct,
    faithfulness,
    holds_fact,
    mean_interval,
    normalize,
    precision_at,
    quantities,
    reciprocal_rank,
    sentences,
    supported,
)

FOUND = ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("gold", "k", "recall", "precision", "rank"),
    [
        (["a"], 3, 1, 1, 1),
        (["c"], 3, 1, 1 / 3, 1 / 3),
        (["d"], 3, 0, 0, 0),
        (["d"], 5, 1, 1 / 4, 1 / 4),
        (["a", "c"], 3, 1, (1 + 2 / 3) / 2, 1),
        (["b", "x"], 3, 1 / 2, 1 / 2, 1 / 2),
        (["x"], 5, 0, 0, 0),
    ],
)
def test_ranks_by_hand(gold, k, recall, precision, rank):
    assert context_recall(gold, FOUND, k) == pytest.approx(recall)
    assert context_precision(gold, FOUND, k) == pytest.approx(precision)
    assert reciprocal_rank(gold, FOUND, k) == pytest.approx(rank)
    assert precision_at(gold, FOUND, k) == pytest.approx(recall * len(gold) / k)


@given(st.lists(st.sampled_from("abcdefgh"), unique=True), st.sets(st.sampled_from("abcdefgh"), min_size=1))
def test_ranks_stay_in_bounds_and_recall_grows(found, gold):
    gold = sorted(gold)
    recalls = [context_recall(gold, found, k) for k in range(1, 9)]
    assert recalls == sorted(recalls)
    for measure in (context_recall, context_precision, reciprocal_rank):
        assert 0 <= measure(gold, found, 5) <= 1


@pytest.mark.parametrize("measure", [context_recall, context_precision, reciprocal_rank])
def test_ranks_need_gold_and_a_place(measure):
    with pytest.raises(ParameterError, match="at least one"):
        measure([], FOUND, 3)
    with pytest.raises(ParameterError, match="at least one"):
        measure(["a"], FOUND, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("QRS of 120 ms", [(120, "ms")]),
        ("QRS of 0.12 s or 0.12 seconds", [(120, "ms"), (120, "ms")]),
        ("a 120-ms complex in a 12-lead ECG", [(120, "ms"), (12, "")]),
        ("110 to 119 ms, 100–110 ms", [(110, "ms"), (119, "ms"), (100, "ms"), (110, "ms")]),
        ("60-100/min", [(60, "bpm"), (100, "bpm")]),
        ("between 60 and 100 beats per minute", [(60, "bpm"), (100, "bpm")]),
        ("300 per minute, 75 bpm, 40 a minute", [(300, "bpm"), (75, "bpm"), (40, "bpm")]),
        ("axis from −30° to −90 degrees", [(-30, "degrees"), (-90, "degrees")]),
        ("25 mm/s and 10 mm/mV; 1 mm", [(25, "mm/s"), (10, "mm/mv"), (1, "mm")]),
        ("0.1 mV; 100 µV", [(0.1, "mv"), (0.1, "mv")]),
        ("potassium above 6.5 mmol/L", [(6.5, "mmol/l")]),
        ("below 32 °C, 50%", [(32, "celsius"), (50, "percent")]),
        ("three small squares, 2:1 block in V1", [(3, ""), (2, ""), (1, "")]),
        ("within ten minutes, for 2 h", [(10, "minutes"), (120, "minutes")]),
        ("1,000 ms", [(1000, "ms")]),
        ("in 1995.", [(1995, "")]),
        ("no number", []),
    ],
)
def test_numbers_with_units(text, expected):
    assert quantities(text) == [Quantity(value, unit) for value, unit in expected]


@pytest.mark.parametrize(
    ("text", "fact", "holds"),
    [
        ("It takes 0.12 s.", "120 ms", True),
        ("It takes 120 milliseconds.", "0.12 s", True),
        ("It takes 110-120 ms.", "120 ms", True),
        ("It takes 1200 ms.", "120 ms", False),
        ("It takes 120 bpm.", "120 ms", False),
        ("It takes 120.", "120 ms", False),
        ("Three small squares wide.", "three small", True),
        ("3 small squares wide.", "three small", True),
        ("The rhythm is irregular.", "regular", False),
        ("An inverted T-wave.", "T wave", True),
        ("T waves are inverted.", "t wave", True),
        ("Conduction is 12:1.", "2:1", False),
        ("Conduction is 2:1.", "2:1", True),
        ("Rate of 150.", "150", True),
        ("Rate of 1500.", "150", False),
        ("Rate of 150.5.", "150", False),
        ("Hyperkalemia.", "potassium", False),
        ("It is present.", "PR", False),  # a fact begins and ends with a word
        ("PR segment depression.", "PR", True),
        ("An abnormal PRs.", "PR", True),  # a plural may follow
        ("Premature beats.", "premature beat", True),
        ("Shortness of breath.", "short", False),
        ("Record V4R.", "V4", False),
        ("Record V4.", "V4", True),
        ("Three leads.", "III", False),
    ],
)
def test_facts(text, fact, holds):
    assert holds_fact(text, fact) == holds


def test_each_group_must_be_met():
    facts = [["120 ms", "three small"], ["V1"]]
    assert correct("In V1 it lasts 0.12 s", facts)
    assert not correct("It lasts 0.12 s", facts)
    assert not correct("", facts)


@given(st.text())
def test_any_text_can_be_read(text):
    assert normalize(normalize(text)) == normalize(text)
    assert all(math.isfinite(one.value) for one in quantities(text))
    assert isinstance(holds_fact(text, text or "x"), bool)
    value = faithfulness(text, [text])
    assert math.isnan(value) or 0 <= value <= 1


PASSAGES = ["Left bundle branch block: QRS of 120 ms or more in adults.", "The R wave in V6 is notched."]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("The QRS is 0.12 s or more.", True),
        ("In adults the QRS of bundle branch block is 120 ms or more.", True),
        ("In adults the QRS of bundle branch block is 140 ms or more.", False),  # another number
        ("In adults the QRS of bundle branch block is 120 bpm or more.", False),  # another unit
        ("The R waves are notched.", True),
        ("The patient should be given aspirin and oxygen.", False),
        ("The R wave in V6 is not notched.", True),  # its limit: it doesn't see "not"
        ("It is so.", False),
    ],
)
def test_support(sentence, expected):
    assert supported(sentence, PASSAGES) == expected


def test_faithfulness_is_a_share_of_sentences():
    answer = "The R wave in V6 is notched. Give 300 mg of aspirin!"
    assert sentences(answer) == ["The R wave in V6 is notched.", "Give 300 mg of aspirin!"]
    assert faithfulness(answer, PASSAGES) == 0.5
    assert math.isnan(faithfulness(" .", PASSAGES))
    assert faithfulness(PASSAGES[1], []) == 0


def test_intervals_are_over_questions():
    found = mean_interval([1.0, 0.0, math.nan, 1.0, 1.0], draws=500)
    assert (found.value, found.n) == (0.75, 4)
    assert 0 <= found.low < found.value < found.high <= 1
    assert found == mean_interval([1.0, 0.0, 1.0, 1.0], draws=500)
    assert mean_interval([0.5] * 9).low == mean_interval([0.5] * 9).high == 0.5


def test_whole_groups_are_drawn():
    """Copies of a question in one group make the interval wider than as many single questions would."""
    values, groups = [1.0] * 8 + [0.0] * 8, [f"g{k // 4}" for k in range(16)]
    single, drawn = mean_interval(values), mean_interval(values, groups=groups)
    assert drawn.value == single.value == 0.5
    assert drawn.high - drawn.low > single.high - single.low
    assert mean_interval([*values, math.nan], groups=[*groups, "g9"]) == drawn
    with pytest.raises(ParameterError, match="16 values and 2 groups"):
        mean_interval(values, groups=["a", "b"])

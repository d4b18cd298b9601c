"""Conversations: format, truth, balance, determinism, splits."""

import copy
import json
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgchat_lib.datasets.labels import STATEMENTS
from ecgchat_lib.datasets.manifest import make_manifest
from ecgchat_lib.ecg.measure import Measurements
from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.instruct.build import (
    Teacher,
    build_conversations,
    finding_weights,
    questions_about,
    split_conversations,
    validate_conversations,
)
from ecgchat_lib.instruct.facts import check_facts, claims, find_errors, numbers
from ecgchat_lib.instruct.findings import FINDINGS, get_finding, presence, rhythm_class, rhythm_of
from ecgchat_lib.instruct.wording import measured_line

MEASURED = Measurements(
    heart_rate_bpm=71.6,
    rr_ms=838,
    rr_sd_ms=21,
    pr_ms=math.nan,
    qrs_ms=92.4,
    qt_ms=388,
    qtc_ms=424,
    axis_deg=-35,
    regular=True,
)
AFIB = (("AFIB", 0.0), ("LVH", 100.0), ("ABQRS", 0.0))
NORMAL = (("NORM", 100.0), ("SR", 0.0))


def row(name, statements, split="train", patient=None):
    return {
        "record": name,
        "path": f"records/{name}",
        "patient": patient or f"p{name}",
        "split": split,
        "report": "",
        "statements": statements,
        "language": "en",
    }


def manifest(n=40):
    kinds = [
        NORMAL,
        AFIB,
        (("SBRAD", 0.0), ("IMI", 100.0)),
        (("SR", 0.0), ("CLBBB", 100.0)),
        (("STACH", 0.0), ("NDT", 30.0)),
    ]
    splits = ["train", "train", "validation", "test"]
    return make_manifest([row(f"{k:03d}", kinds[k % len(kinds)], splits[k % 4]) for k in range(n)])


def measured(table):
    return dict.fromkeys(table["record"], MEASURED)


def rng():
    import numpy as np

    return np.random.default_rng(0)


def test_format_is_the_originals_and_plain_json():
    table = manifest()
    made = build_conversations(table, measured(table), seed=1)
    assert json.loads(json.dumps(made)) == made
    assert all(set(item) == {"id", "ecg", "conversations"} for item in made)
    assert all(
        item["conversations"][0]["value"].startswith("<ecg>\nMeasured: rate 72, RR 838 ± 21 regular, PR n/a")
        for item in made
    )
    lengths = Counter(len(item["conversations"]) // 2 for item in made)
    assert lengths[1] == 4 * len(table)
    assert max(lengths) <= 6
    assert set(lengths) > {1, 3}


def test_same_seed_same_text_other_seed_other_text():
    table = manifest()
    one, again = (build_conversations(table, measured(table), seed=1) for _ in range(2))
    assert one == again
    assert one != build_conversations(table, measured(table), seed=2)


def test_order_of_the_table_does_not_matter():
    table = manifest()
    turned = table.iloc[::-1].reset_index(drop=True)
    by_id = {item["id"]: item for item in build_conversations(table, measured(table))}
    assert by_id == {item["id"]: item for item in build_conversations(turned, measured(turned))}


def test_without_measurements_nothing_is_said_about_numbers():
    made = build_conversations(manifest())
    text = json.dumps([item["conversations"] for item in made])
    assert "Measured" not in text
    assert "per minute" not in text
    assert all(not numbers(turn["value"]) for item in made for turn in item["conversations"] if turn["from"] == "gpt")


def test_findings_are_denied_about_as_often_as_confirmed():
    table = manifest(400)
    weights, counts = finding_weights(table), Counter()
    for item in table.itertuples():
        for turn in questions_about(item.record, item.statements, MEASURED, weights):
            if turn.kind == "presence":
                counts[turn.about, turn.truth] += 1
    for name in ("lvh", "lbbb", "afib", "inferior_mi"):
        assert 0.5 < counts[name, False] / counts[name, True] < 2, (name, counts)


def test_what_the_statements_leave_open_is_not_asked():
    uncertain = (("SR", 0.0), ("IMI", 15.0))
    assert presence(get_finding("inferior_mi"), uncertain) is None
    assert presence(get_finding("infarction"), uncertain) is None
    assert presence(get_finding("afib"), uncertain) is False
    assert presence(get_finding("afib"), ()) is None
    teacher = Teacher(uncertain, MEASURED, rng())
    assert teacher.presence(get_finding("inferior_mi")) is None


def test_a_stated_rhythm_that_the_rate_contradicts_is_not_taught():
    assert Teacher((("STACH", 0.0),), MEASURED, rng()).rhythm() is None
    assert Teacher((("SR", 0.0),), MEASURED, rng()).rhythm().about == "sinus"
    assert Teacher((("SR", 0.0), ("AFIB", 0.0)), MEASURED, rng()).rhythm().about == "afib"
    assert rhythm_of((("AFIB", 0.0), ("PACE", 0.0))) is None
    assert [rhythm_class(name) for name in ("sinus_tachycardia", "afib", "flutter", None)] == [
        "sinus",
        "afib",
        "other",
        None,
    ]


def test_slow_and_fast_rhythms_are_denied_where_the_rate_says_so_too():
    slow, fast = get_finding("sinus_bradycardia"), get_finding("sinus_tachycardia")
    teacher = Teacher((("SR", 0.0),), MEASURED, rng())
    assert [teacher.presence(finding).truth for finding in (slow, fast)] == [False, False]
    quick = Teacher((("SR", 0.0),), Measurements(heart_rate_bpm=120), rng())
    assert quick.presence(fast) is None  # not stated, yet fast: leave it open
    assert quick.presence(slow).truth is False
    assert Teacher((("STACH", 0.0),), Measurements(heart_rate_bpm=120), rng()).presence(fast).truth is True
    assert Teacher((("STACH", 0.0),), MEASURED, rng()).presence(fast) is None


def test_verdicts():
    assert Teacher(NORMAL, MEASURED, rng()).verdict() == "normal"
    assert Teacher(AFIB, MEASURED, rng()).verdict() == "abnormal"
    assert Teacher((("NORM", 80.0), ("SR", 0.0), ("PVC", 0.0)), MEASURED, rng()).verdict() == "borderline"
    assert Teacher((("NORM", 80.0), ("SBRAD", 0.0)), None, rng()).verdict() == "borderline"
    assert Teacher((("NORM", 80.0), ("SARRH", 0.0)), None, rng()).verdict() == "normal"
    assert Teacher((("SR", 0.0),), MEASURED, rng()).verdict() is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("This ECG shows atrial fibrillation.", None),
        ("Yes, this ECG shows left ventricular hypertrophy.", None),
        ("No, this ECG does not show first-degree AV block.", None),
        ("The heart rate is 72 beats per minute.", None),
        ("The QRS axis is -35 degrees.", None),
        ("The QRS duration is 92 ms. The corrected QT interval is 424 ms.", None),
        ("This ECG shows sinus rhythm.", "affirms sinus rhythm"),
        ("No, I do not see atrial fibrillation here.", "denies atrial fibrillation"),
        ("There is an anterior myocardial infarction.", "affirms an anterior myocardial infarction"),
        ("The heart rate is 80 beats per minute.", "says 80 for heart_rate_bpm, measured: 72"),
        ("The PR interval is 160 ms.", "says 160 for pr_ms, measured: None"),
        ("It looks like 12.", "says 12 for an unnamed quantity"),
    ],
)
def test_fact_check(text, problem):
    errors = find_errors(text, AFIB, MEASURED)
    assert (not errors) if problem is None else (len(errors) == 1 and problem in errors[0]), errors
    if problem:
        with pytest.raises(EcgChatError, match="rec7"):
            check_facts(text, AFIB, MEASURED, where="rec7")


def test_claims_take_the_longest_phrase_and_each_sentence_by_itself():
    found = claims("I see sinus bradycardia and an inferior myocardial infarction. There is no ST depression.")
    assert [(finding.name, affirmed) for finding, affirmed in found] == [
        ("inferior_mi", True),
        ("sinus_bradycardia", True),
        ("st_depression", False),
    ]


codes = st.lists(
    st.tuples(st.sampled_from(sorted(STATEMENTS)), st.sampled_from([0.0, 15.0, 50.0, 80.0, 100.0])), max_size=6
)


@settings(max_examples=150, deadline=None)
@given(codes, st.integers(0, 9), st.floats(30, 220))
def test_whatever_the_statements_every_answer_passes_the_fact_check(statements, seed, rate):
    from dataclasses import replace

    statements = tuple(dict(statements).items())
    known = replace(MEASURED, heart_rate_bpm=rate)
    weights = {finding.name: 1.0 for finding in FINDINGS}
    turns = questions_about("r", statements, known, weights, seed=seed)
    for turn in turns:
        assert find_errors(turn.answer, statements, known) == []
    asked = [turn.about for turn in turns if turn.kind == "presence"]
    assert len(asked) == len(set(asked))


def test_negatives_are_refuted_and_positives_confirmed():
    weights = {finding.name: 1.0 for finding in FINDINGS}
    turns = [turn for turn in questions_about("r", AFIB, MEASURED, weights) if turn.kind == "presence"]
    assert {turn.answer.split(",")[0] for turn in turns if turn.truth} == {"Yes"}
    assert {turn.answer.split(",")[0] for turn in turns if not turn.truth} == {"No"}


def test_measured_line_says_what_is_unknown():
    assert measured_line(None) == "Measured: n/a"
    assert measured_line(MEASURED) == (
        "Measured: rate 72, RR 838 ± 21 regular, PR n/a, QRS 92, QT 388, QTc 424, axis -35"
    )
    assert " irregular," in measured_line(Measurements(rr_ms=800, regular=False))


def test_splits_share_no_patient():
    table = manifest()
    parts = split_conversations(build_conversations(table), table)
    patient_of = dict(zip(table["path"], table["patient"], strict=True))
    sides = [{patient_of[item["ecg"]] for item in part} for part in parts.values()]
    assert all(len(side) for side in sides)
    assert sum(len(side) for side in sides) == len(set.union(*sides))
    broken = table.assign(patient="one")
    with pytest.raises(EcgChatError, match="patient one is on two sides"):
        split_conversations([], broken)
    with pytest.raises(EcgChatError, match="not in the manifest"):
        split_conversations([{"id": "x", "ecg": "elsewhere", "conversations": []}], table)


def broken(change):
    item = {
        "id": "a",
        "ecg": "e",
        "conversations": [{"from": "human", "value": "<ecg>\nQ?"}, {"from": "gpt", "value": "A."}],
    }
    item = copy.deepcopy(item)
    change(item)
    return item


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("ecg"), "expected a dict with 'id', 'ecg' and 'conversations'"),
        (lambda c: c.update(id=3), "'id' is 3, expected a text"),
        (lambda c: c["conversations"].pop(), "in pairs"),
        (lambda c: c["conversations"].reverse(), "turn 0: found"),
        (lambda c: c["conversations"][1].update(value="  "), "turn 1: it says nothing"),
        (lambda c: c["conversations"][1].update(value="<ecg> A"), "turn 1: 1 marks <ecg>, expected 0"),
        (lambda c: c["conversations"][0].update(value="Q?"), "turn 0: 0 marks <ecg>, expected 1"),
        (lambda c: c["conversations"][0].update(value="Q? <ecg>"), "expected <ecg>"),
    ],
)
def test_validation_names_the_place(change, message):
    with pytest.raises(EcgChatError, match="conversation 0") as caught:
        validate_conversations([broken(change)])
    assert message in str(caught.value)


def test_the_same_id_twice_is_an_error():
    item = broken(lambda c: None)
    assert validate_conversations([item]) == [item]
    with pytest.raises(EcgChatError, match="stands twice"):
        validate_conversations([item, copy.deepcopy(item)])


def test_counts_out_of_range():
    with pytest.raises(ParameterError, match="rounds"):
        build_conversations(manifest(), rounds=(5, 2))
    with pytest.raises(EcgChatError, match="unknown finding"):
        get_finding("measles")

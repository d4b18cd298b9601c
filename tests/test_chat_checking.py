"""Answers against measurements and classifier: what contradicts is found with its place; what agrees is left alone."""

from __future__ import annotations

import json

import pytest
from test_knowledge import measured

from ecgchat_lib.chat.checking import TOLERANCE, Contradiction, Margins, contradictions, marked, of_several, unchecked
from ecgchat_lib.evaluate.classifier import Reading
from ecgchat_lib.paths import data_folder

FAST = dict(heart_rate_bpm=120, rr_ms=500, pr_ms=150, qrs_ms=90, qt_ms=320, qtc_ms=440, axis_deg=45, regular=True)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("The heart rate is 72 bpm.", ["heart_rate_bpm"]),
        ("The heart rate is about 118 beats per minute.", []),
        ("Ventricular rate: 72", ["heart_rate_bpm"]),
        ("A rate of 72 bpm, that is 72 beats per minute.", ["heart_rate_bpm", "heart_rate_bpm"]),
        ("There is sinus bradycardia.", ["heart_rate_bpm"]),
        ("There is sinus tachycardia.", []),
        ("There is no bradycardia.", []),
        ("No tachycardia, but bradycardia.", ["heart_rate_bpm", "heart_rate_bpm"]),
        ("First-degree AV block is present.", ["pr_ms"]),
        ("PR interval 240 ms, QRS 160 ms.", ["pr_ms", "qrs_ms"]),
        ("PR 150 ms, QRS duration of 95 ms, QT 320 ms, QTc 440 ms.", []),
        ("Complete left bundle branch block.", ["qrs_ms"]),
        ("Right bundle branch block.", []),  # it may be an incomplete one
        ("Incomplete left bundle branch block.", []),
        ("QTc is 520 ms.", ["qtc_ms"]),
        ("The corrected QT interval is 520 ms.", ["qtc_ms"]),
        ("The QT interval is 520 ms.", ["qt_ms"]),
        ("Left axis deviation.", ["axis_deg"]),
        ("The axis is -45 degrees.", ["axis_deg"]),
        ("Normal axis; regular rhythm.", []),
        ("Atrial fibrillation with an irregular rhythm.", ["regular", "regular"]),
        ("This is a normal ECG.", ["verdict"]),  # at 120 beats per minute
        ("There is no abnormal finding. It is a normal ECG.", ["verdict", "verdict"]),
        ("It is an abnormal ECG.", []),
        ("It is not a normal ECG.", []),
        ("", []),
        ("\\input{x} 1e9 bpm", []),
    ],
)
def test_what_contradicts(text, fields):
    assert [item.field for item in contradictions(text, measured(**FAST), sex="female")] == fields


def test_the_words_and_the_measurement_are_named():
    (found,) = contradictions("Your heart rate is 72 bpm.", measured(**FAST))
    assert str(found) == "“rate is 72 bpm”, but 120 bpm was measured"


def test_a_normal_verdict_is_held_against_the_flags():
    (found,) = contradictions("A normal ECG.", measured(**FAST))
    assert str(found) == "“normal ECG”, but Heart rate 120 bpm lies outside the limits"
    assert contradictions("A normal ECG.", measured(**{**FAST, "heart_rate_bpm": 70})) == ()


def test_nothing_contradicts_what_was_not_measured():
    assert contradictions("Heart rate 72 bpm, left axis, irregular, first-degree AV block.", measured()) == ()


def test_irregular_rhythm():
    assert [c.field for c in contradictions("A regular rhythm.", measured(regular=False))] == ["regular"]
    assert contradictions("Atrial fibrillation.", measured(regular=False)) == ()
    (found,) = contradictions("The ECG shows sinus rhythm.", measured(regular=False))
    assert str(found) == "“sinus rhythm”, but the RR intervals are irregular"
    assert contradictions("The ECG shows sinus arrhythmia.", measured(regular=False)) == ()
    assert [c.field for c in contradictions("It is a normal ECG.", measured(regular=False))] == ["verdict"]


def test_a_long_hostile_answer_is_read_in_time():
    assert contradictions("rate " * 20_000 + "QRS " * 20_000, measured(**FAST)) == ()


READING = Reading(
    {"SR": 0.97, "AFIB": 0.01, "SBRAD": 0.02, "STACH": 0.01, "CLBBB": 0.9, "LVH": 0.01, "1AVB": 0.1, "ISC_": 0.001},
    ("CLBBB", "SR"),
    {"SR": 0.5, "AFIB": 0.3, "CLBBB": 0.4, "LVH": 0.3, "1AVB": 0.3, "ISC_": 0.3},
)


@pytest.mark.parametrize(
    ("text", "claimed"),
    [
        ("This is sinus rhythm.", []),
        ("This is atrial fibrillation.", ["atrial fibrillation"]),
        ("It looks like atrial flutter.", []),  # which the classifier was never taught
        ("This is a pacemaker rhythm.", []),
        ("There is sinus bradycardia.", []),  # a sinus rhythm, too
        ("This is not atrial fibrillation.", []),
        ("No sinus rhythm.", ["no sinus rhythm"]),
        ("I see left ventricular hypertrophy here.", ["left ventricular hypertrophy"]),
        ("LVH is present, and no LBBB.", ["LVH", "no LBBB"]),
        ("Yes, I see left bundle branch block here.", []),
        ("No, I do not see left bundle branch block here.", ["no left bundle branch block"]),
        ("There is first-degree AV block.", []),  # below the threshold, but not clearly
        ("Ischemic changes.", []),  # the classifier knows one of several statements only
        ("A long QT interval.", []),  # and nothing of this one
        ("I can't say whether there is left ventricular hypertrophy.", []),
    ],
)
def test_what_the_classifier_contradicts(text, claimed):
    found = contradictions(text, measured(), READING)
    assert [item.claimed for item in found] == claimed
    assert all(item.by == "classifier" for item in found)
    for item in found:
        assert text[item.start : item.stop] == item.claimed.removeprefix("no ")
        assert "classifier" in str(item)


def test_how_sure_the_classifier_must_be():
    text = "There is first-degree AV block and no left bundle branch block."
    bold = Margins(absent=1.0, present=0.0)
    assert [item.field for item in contradictions(text, measured(), READING, margins=bold)] == ["av_block", "lbbb"]
    shy = Margins(absent=0.0, present=1.0, rhythm=1.0)
    assert contradictions(text + " Atrial fibrillation.", measured(), READING, margins=shy) == ()


def test_each_contradiction_is_marked_behind_its_words():
    text = "Sinus rhythm at 72 beats per minute. LVH is present."
    found = contradictions(text, measured(**FAST), READING)
    assert marked(text, found) == (
        "Sinus rhythm at 72 beats per minute [contradicted: 120 bpm was measured]. "
        "LVH [contradicted: the classifier gives it 1 % (threshold 30 %)] is present."
    )
    assert marked(text, ()) == text
    assert [item.by for item in found] == ["measurement", "classifier"]
    assert found[0].as_dict() == {
        "field": "heart_rate_bpm",
        "claimed": "72 beats per minute",
        "found": "120 bpm was measured",
        "start": 16,
        "stop": 35,
        "by": "measurement",
    }


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("The PR interval is 0.24 s.", ["pr_ms"]),
        ("The PR interval is 0.15 s.", []),
        ("The heart rate is sixty beats per minute.", ["heart_rate_bpm"]),
        ("QT/QTc 320/440 ms.", []),
        ("QT/QTc 420/440 ms.", ["qt_ms"]),
        ("The heart rate is above 100.", []),
        ("The heart rate is below 100.", ["heart_rate_bpm"]),
        ("The normal range is 60 to 100 beats per minute.", []),
        ("12-lead ECG, lead 2.", []),
        ("In general, a rate of 50 beats per minute is bradycardia, and a PR of 240 ms is long.", []),
        ("In general, it is slow. The heart rate is 50 beats per minute.", ["heart_rate_bpm"]),
    ],
)
def test_numbers_are_read_with_their_units_and_comparisons(text, fields):
    assert [item.field for item in contradictions(text, measured(**FAST))] == fields


def test_what_nobody_can_judge_is_named():
    text = "There is a long QT interval and LVH. The PR interval is 160 ms, the ST depression is 2 mm."
    assert unchecked(text, measured(), READING) == (
        "not checked: a long QT interval, ST depression",
        "the answer says 160, which nothing measured supports",
        "the answer says 2, which nothing measured supports",
    )
    assert unchecked("This is a pacemaker rhythm.", measured(), READING) == ("not checked: a pacemaker rhythm",)
    assert unchecked("LVH.", measured()) == ("not checked: left ventricular hypertrophy",)
    assert unchecked("Sinus rhythm with LVH, rate 120.", measured(**FAST), READING) == ()


def test_a_contradiction_says_where_it_is_from():
    assert str(Contradiction("qrs_ms", "wide QRS", "90 ms was measured")) == "“wide QRS”, but 90 ms was measured"


PLAIN = dict(heart_rate_bpm=72, rr_ms=833, pr_ms=160, qrs_ms=90, qt_ms=390, qtc_ms=425, axis_deg=45, regular=True)


@pytest.mark.parametrize(
    "text",
    [
        "This ECG doesn't show atrial fibrillation.",
        "This ECG doesn’t show atrial fibrillation.",
        "It is sinus rhythm; atrial fibrillation is not seen.",
        "I can't say whether there is atrial fibrillation.",
        "First-degree AV block is absent.",
        "Atrial fibrillation was ruled out.",
        "There is no bradycardia, tachycardia or first-degree AV block.",
        "Left axis deviation isn't present.",
        "I cannot see a wide QRS.",
        "No, the heart rate is below 100 beats per minute.",
        "There is no AV block, and the PR interval is less than 200 ms.",
        "PR 160 ms (normal up to 200 ms), QRS 90 ms (normal: < 120 ms).",
        "The heart rate is not 60 bpm.",
        "It is not above 100 beats per minute.",
        "The QRS duration is 90 ms, no longer than 120 ms.",
        "No left axis deviation; a normal ECG.",
    ],
)
def test_right_answers_are_not_marked(text):
    assert contradictions(text, measured(**PLAIN), READING, sex="female") == ()


@pytest.mark.parametrize(
    ("text", "change", "claimed"),
    [
        ("There is no tachycardia.", {"heart_rate_bpm": 120}, ["no tachycardia"]),
        ("No left axis deviation.", {"axis_deg": -60}, ["no left axis deviation"]),
        ("First-degree AV block is absent.", {"pr_ms": 240}, ["no First-degree AV block"]),
        ("Tachycardia is not seen.", {"heart_rate_bpm": 120}, ["no Tachycardia"]),
        ("No, the heart rate is above 100 beats per minute.", {"heart_rate_bpm": 120}, []),
        ("No, the heart rate is above 100 beats per minute.", {}, ["rate is above 100 beats per minute"]),
        ("The heart rate is not 60 bpm.", {"heart_rate_bpm": 120}, []),
        ("The heart rate is not 60 bpm.", {"heart_rate_bpm": 60}, ["rate is not 60 bpm"]),
        ("The rate is not above 100 bpm.", {"heart_rate_bpm": 120}, ["rate is not above 100 bpm"]),
        ("PR 240 ms (normal up to 200 ms).", {"pr_ms": 240}, []),
        ("The rhythm is not regular.", {}, ["no regular"]),
        ("Atrial fibrillation with absent P waves.", {}, ["Atrial fibrillation"]),
        ("Sinus tachycardia, otherwise normal ECG.", {"heart_rate_bpm": 120}, []),
        ("Borderline normal ECG.", {"heart_rate_bpm": 120}, []),
        ("The ECG looks normal.", {"heart_rate_bpm": 120}, ["ECG looks normal"]),
        ("There is no sinus tachycardia.", {"heart_rate_bpm": 120}, []),  # it may be another one
    ],
)
def test_denied_words_and_comparisons_are_held_against_what_was_measured(text, change, claimed):
    found = contradictions(text, measured(**{**PLAIN, **change}), sex="female")
    assert [item.claimed for item in found] == claimed


def test_tolerances_of_intervals_are_twice_the_mean_error_of_measuring():
    measure = json.loads((data_folder() / "results" / "measure_ludb.json").read_text())["cross_validation"]["summary"]
    for field in ("pr_ms", "qrs_ms", "qt_ms"):
        assert 0 <= TOLERANCE[field] - 2 * measure[field]["mean_absolute_ms"] < 1, field


def of_two(text, *, rates=(60, 110)):
    both = [measured(**{**PLAIN, "heart_rate_bpm": rate}) for rate in rates]
    return of_several(text, [contradictions(text, one, repeated=True) for one in both], ["A0001", "A0002"])


@pytest.mark.parametrize(
    ("text", "marked_words"),
    [
        ("Both ECGs show a heart rate of 60 beats per minute.", {"rate of 60 beats per minute": "A0002: 110"}),
        ("Both ECGs show a heart rate of 80 bpm.", {"rate of 80 bpm": "A0001: 60 bpm was measured; A0002: 110"}),
        ("The first ECG has a rate of 110 bpm, the second a rate of 110 bpm.", {"rate of 110 bpm": "A0001: 60"}),
        ("In the new ECG, the rate is 60 bpm.", {"rate is 60 bpm": "A0002: 110"}),
        ("A0002 has a rate of 60 bpm.", {"rate of 60 bpm": "A0002: 110"}),
        ("The first ECG shows a rate of 60 bpm and the second a rate of 110 bpm.", {}),
        ("There is tachycardia in the second ECG, while the first shows a rate of 60 bpm.", {}),
        ("The first ECG shows tachycardia.", {"tachycardia": "A0001: 60"}),
        ("The rate is 80 bpm.", {"rate is 80 bpm": "A0001: 60 bpm was measured; A0002: 110"}),
        ("The first-degree AV block is gone.", {"first-degree AV block": "A0001: 160"}),
    ],
)
def test_each_statement_is_held_against_the_recordings_that_it_names(text, marked_words):
    found, notes = of_two(text)
    assert [item.claimed for item in found] == list(marked_words)
    for item in found:
        assert item.found.startswith(marked_words[item.claimed])
    assert notes == ()


def test_a_statement_that_may_be_about_either_recording_is_noted():
    found, notes = of_two("The rate rose from 60 bpm to 110 bpm.")
    assert found == ()
    assert notes == ("which recording is meant isn't said, so not checked: “rate rose from 60 bpm”, “110 bpm”",)

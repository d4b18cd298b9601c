"""Answers against measurements: what contradicts is found, what agrees, is negated or unknown is left alone."""

from __future__ import annotations

import pytest
from test_knowledge import measured

from ecgchat_lib.report.grounding import contradictions

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
        ("No tachycardia, but bradycardia.", ["heart_rate_bpm"]),
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
    assert str(found) == "“rate is 72”, but 120 bpm was measured"


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

"""The fact checker on hand-written answers: what it passes, what it rejects, and how often it is wrong."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgchat_lib.ecg.measure import Measurements
from ecgchat_lib.instruct.facts import (
    claims,
    find_claims,
    find_errors,
    find_losses,
    find_verdicts,
    find_words,
    numbers,
    read_claims,
    read_numbers,
    verdicts,
)
from ecgchat_lib.instruct.findings import FINDINGS, presence
from ecgchat_lib.instruct.vocabulary import ABBREVIATIONS, SYNONYMS, find_names
from ecgchat_lib.instruct.words import unknown_words

MEASURED = Measurements(
    heart_rate_bpm=71.6, rr_ms=838, rr_sd_ms=21, pr_ms=math.nan, qrs_ms=92.4, qt_ms=388, qtc_ms=424, axis_deg=-35,
    regular=False,
)  # fmt: skip
SLOW = Measurements(
    heart_rate_bpm=52, rr_ms=1154, pr_ms=212, qrs_ms=134, qt_ms=430, qtc_ms=400, axis_deg=40, regular=True
)
AFIB = (("AFIB", 0.0), ("LVH", 100.0), ("ABQRS", 0.0))  # abnormal; leaves infarction open
NORMAL = (("NORM", 100.0), ("SR", 0.0))
BLOCKS = (("SBRAD", 0.0), ("CRBBB", 100.0), ("1AVB", 100.0), ("IMI", 15.0))  # leaves infarction open
ECGS = {"afib": (AFIB, MEASURED), "normal": (NORMAL, None), "blocks": (BLOCKS, SLOW)}

RIGHT = [
    ("afib", "Your ECG shows atrial fibrillation; left ventricular hypertrophy. It's an abnormal ECG."),
    ("afib", "AF with LVH, rate 72 bpm."),
    ("afib", "The rhythm is AFib at about 72 beats/min."),
    ("afib", "There is no evidence of flutter, but atrial fibrillation is present."),
    ("afib", "This is atrial fibrillation, not sinus rhythm."),
    ("afib", "No, the rhythm is atrial fibrillation."),
    ("afib", "I see hypertrophy of the left ventricle and an irregular rhythm."),
    ("afib", "Neither LBBB nor RBBB is seen."),
    ("afib", "Bundle branch block is absent."),
    ("afib", "Sinus bradycardia and sinus tachycardia were ruled out."),
    ("afib", "No AV block, no premature beats; the QRS is narrow at 92 ms."),
    ("afib", "Left axis deviation, the axis points to −35°."),
    ("afib", "The QT is 388 ms and the QTc 424 ms."),
    ("afib", "QT/QTc: 388/424 ms."),
    ("afib", "The heart beats seventy-two beats per minute."),
    ("afib", "The QRS duration of 92 ms is below 120 ms."),
    ("afib", "The PR interval could not be measured, because of the atrial fibrillation."),
    ("afib", "I can't say whether there is a myocardial infarction."),
    ("afib", "This 12-lead ECG isn't normal: it has AF."),
    ("afib", "Apart from atrial fibrillation and LVH, there is no arrhythmia worth naming."),
    ("afib", "In general, a PR interval above 200 ms means a first-degree AV block."),
    ("afib", "A rate of 72 lies in the normal range of 60 to 100 per minute."),
    ("afib", "There is no sign of a pacemaker."),
    ("afib", "Without doubt this is atrial fibrillation."),
    ("afib", "The rhythm does not suggest flutter."),
    ("afib", "Atrial fibrillation cannot be excluded."),
    ("afib", "It shows AF. Premature ventricular contractions are not seen."),
    ("normal", "Normal sinus rhythm."),
    ("normal", "It's a normal ECG without any abnormality."),
    ("normal", "No ST depression, no T wave changes and no ischemia are present."),
    ("normal", "Nothing abnormal is seen: there's no infarct and no hypertrophy."),
    ("normal", "The tracing is unremarkable; NSR."),
    ("normal", "I don't see atrial fibrillation here; it's sinus rhythm."),
    ("normal", "There is no abnormal finding other than that the rhythm is sinus."),
    ("normal", "Sinus rhythm is present, while LBBB is not."),
    ("blocks", "Sinus bradycardia at 52 bpm with right bundle branch block."),
    ("blocks", "RBBB and 1st-degree AV block; the PR interval is 212 ms, longer than 200 ms."),
    ("blocks", "The QRS is wide, 134 ms, consistent with complete right bundle branch block."),
    ("blocks", "The heart rate is slow but the beats are regular."),
    ("blocks", "Bradycardia; the axis is normal at 40 degrees."),
    ("blocks", "There is no left bundle branch block, although the right bundle branch block widens the QRS."),
    ("blocks", "The PR interval is not below 200 ms."),
    ("blocks", "Whether there was an inferior infarction I can't tell."),
    ("blocks", "The PR interval is 0.212 s."),
    ("blocks", "It is not a normal ECG."),
]  # fmt: skip

WRONG = [
    ("afib", "The rhythm is sinus."),
    ("afib", "Normal sinus rhythm at 72 bpm."),
    ("afib", "No AF."),
    ("afib", "Atrial fibrillation is absent."),
    ("afib", "There is no atrial fibrillation but flutter."),
    ("afib", "No evidence of LVH; atrial fibrillation."),
    ("afib", "It's a normal ECG."),
    ("afib", "It's a borderline ECG with AF."),
    ("afib", "AF with left bundle branch block."),
    ("afib", "AF and an old inferior infarct."),
    ("afib", "A heart attack cannot be excluded."),
    ("afib", "There is no myocardial infarction."),
    ("afib", "The rhythm is regular."),
    ("afib", "The axis is normal."),
    ("afib", "The QRS is wide."),
    ("afib", "QRS 120 ms."),
    ("afib", "The rate is 80/min."),
    ("afib", "The rate is above 100 beats per minute."),
    ("afib", "The heart rate is seventy-five beats per minute."),
    ("afib", "PR interval 160 ms."),
    ("afib", "The QTc is 388 ms."),
    ("afib", "A 65-year-old man with atrial fibrillation."),
    ("afib", "AF, with ST depression of 2 mm."),
    ("afib", "This is ventricular tachycardia."),
    ("afib", "AF, possibly with hyperkalemia."),
    ("afib", "AF is not seen, nor is LVH."),
    ("afib", "There is tachycardia."),
    ("afib", "Right ventricular hypertrophy and AF."),
    ("afib", "Nothing suggests atrial fibrillation."),
    ("afib", "Second-degree AV block is present."),
    ("afib", "AF, first seen in 2019."),
    ("afib", "The QRS duration of 92 ms is longer than 120 ms."),
    ("afib", "The rate lies between 80 and 90 beats per minute."),
    ("normal", "Sinus rhythm with frequent PVCs."),
    ("normal", "It is an abnormal ECG."),
    ("normal", "The heart rate is 60 beats per minute."),
    ("normal", "There are T wave inversions."),
    ("normal", "No sinus rhythm is seen."),
    ("normal", "The rhythm is irregular."),
    ("normal", "There is left axis deviation."),
    ("normal", "ST elevation suggests an acute infarction."),
    ("normal", "This isn't a normal ECG."),
    ("normal", "Normal sinus rhythm, but with LVH."),
    ("blocks", "Sinus bradycardia with left bundle branch block."),
    ("blocks", "There is no bundle branch block."),
    ("blocks", "The PR interval is normal."),
    ("blocks", "The PR interval is below 200 ms."),
    ("blocks", "An old inferior infarction is likely."),
    ("blocks", "No inferior MI."),
    ("blocks", "I can't say whether there is a right bundle branch block."),
    ("blocks", "Sinus tachycardia at 52 bpm."),
    ("blocks", "The QRS is narrow."),
    ("blocks", "Complete heart block."),
    ("blocks", "RBBB is present and AV block is absent."),
    ("blocks", "Incomplete right bundle branch block."),
]  # fmt: skip

# Written after the checker was finished, to be answered as they come; (ecg, answer, whether it is right).
HELD_OUT = [
    ("afib", "The tracing reveals an irregularly irregular rhythm, so atrial fibrillation it is.", True),
    ("afib", "Voltage of the left ventricle speaks for LVH.", True),
    ("afib", "Rhythm: atrial fibrillation. Rate: 72. Axis: -35. QRS: 92.", True),
    ("afib", "You have atrial fibrillation; a bundle branch block you do not have.", True),
    ("afib", "The ventricular rate averages 72 beats per minute, with no flutter waves.", True),
    ("afib", "Hypertrophy of the left ventricle is there, an AV block of any degree isn't.", True),
    ("afib", "Atrial fibrillation is obvious, and I found no sign of a pacemaker or of ectopic beats.", True),
    ("afib", "The recording lacks P waves; this fits atrial fibrillation.", True),
    ("afib", "Not sinus rhythm but atrial fibrillation at 72 per minute.", True),
    ("afib", "Sinus rhythm has given way to atrial fibrillation.", True),
    ("afib", "QTc of 424 ms (Bazett), QT of 388 ms, QRS of 92 ms.", True),
    ("normal", "Everything is normal: sinus rhythm, no block, no infarct.", True),
    ("normal", "There's neither ischemia nor hypertrophy to report.", True),
    ("normal", "The heart's rhythm is sinus and I see no conduction disturbance.", True),
    ("normal", "Your ECG is normal.", True),
    ("normal", "A healthy tracing; atrial fibrillation can be ruled out.", True),
    ("normal", "I would not call this abnormal.", True),
    ("blocks", "Conduction is slowed: first-degree AV block and right bundle branch block.", True),
    ("blocks", "At 52 beats per minute this is a slow sinus rhythm.", True),
    ("blocks", "PR 212 ms, QRS 134 ms, QT 430 ms, QTc 400 ms, axis 40°.", True),
    ("blocks", "The bundle branch block is right-sided, and there is no fibrillation of the atria.", True),
    ("blocks", "No pacemaker, no ectopy. RBBB.", True),
    ("blocks", "The P waves march regularly at 52/min.", True),
    ("blocks", "It would be wrong to call this a normal ECG.", True),
    ("afib", "P waves precede every QRS, so it's sinus.", False),
    ("afib", "The patient suffers from hypertension and AF.", False),
    ("afib", "AF with a rapid ventricular response.", False),
    ("afib", "AF with QRS widening to 0.14 s.", False),
    ("afib", "AF; the corrected QT is markedly prolonged.", False),
    ("afib", "It has converted to sinus rhythm.", False),
    ("afib", "There is fibrillation of the atria and a left bundle that does not conduct.", False),
    ("afib", "AF with an extreme axis of -135 degrees.", False),
    ("afib", "Both bundles conduct badly; AF; bifascicular block.", False),
    ("afib", "No disease of any kind; the heart is healthy.", False),
    ("normal", "Sinus rhythm at a leisurely pace of 55.", False),
    ("normal", "Sinus rhythm, with T waves that point down in V4 to V6.", False),
    ("normal", "Nothing to worry about except a few PACs.", False),
    ("normal", "It looks pathological.", False),
    ("normal", "Sinus rhythm with a PR of 160 ms.", False),
    ("normal", "Is there an infarct? Yes, an anterior one.", False),
    ("blocks", "Sinus bradycardia, RBBB, and a conduction time from atrium to ventricle of 150 ms.", False),
    ("blocks", "Slow sinus rhythm without conduction disturbance.", False),
    ("blocks", "The rate is 52 and the rhythm irregular.", False),
    ("blocks", "RBBB with left anterior hemiblock.", False),
    ("blocks", "Everything is within normal limits.", False),
    ("blocks", "Sinus bradycardia; scar of the inferior wall.", False),
]  # fmt: skip


def rates(answers):
    """Return precision and recall of the rejections: of the rejected, how many are wrong; of the wrong, rejected."""
    rejected = [(right, bool(find_errors(text, *ECGS[ecg]))) for ecg, text, right in answers]
    caught = sum(out for right, out in rejected if not right)
    return caught / sum(out for _, out in rejected), caught / sum(not right for right, _ in rejected)


@pytest.mark.parametrize(("ecg", "text"), RIGHT)
def test_right_answers_pass(ecg, text):
    assert find_errors(text, *ECGS[ecg]) == []


@pytest.mark.parametrize(("ecg", "text"), WRONG)
def test_wrong_answers_are_rejected(ecg, text):
    assert find_errors(text, *ECGS[ecg])


def test_how_well_it_does_on_answers_that_it_was_not_fitted_to():
    """On odd, hand-written answers: 10 of 13 rejections are right, and 10 of 22 wrong answers are rejected.

    With the list of known words beside it, 19 of 22 are rejected, and 15 right ones are lost, which costs a rewording
    and no truth. On the 100 answers that it was written with: all right.
    """
    assert rates([(ecg, text, True) for ecg, text in RIGHT] + [(ecg, text, False) for ecg, text in WRONG]) == (1, 1)
    precision, recall = rates(HELD_OUT)
    assert (round(precision, 2), round(recall, 2)) == (0.77, 0.45)
    strict = [(right, bool(find_errors(text, *ECGS[ecg]) or unknown_words(text))) for ecg, text, right in HELD_OUT]
    caught, lost = (sum(out for right, out in strict if right is side) for side in (False, True))
    assert (caught, lost) == (19, 15)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There is no AF but an LBBB.", [("afib", False), ("lbbb", True)]),
        ("No AF, LBBB or LVH.", [("afib", False), ("lbbb", False), ("lvh", False)]),
        ("Not only AF but also LVH.", [("afib", True), ("lvh", True)]),
        ("LVH rather than an old inferior infarction.", [("inferior_mi", False), ("lvh", True)]),
        ("AF is present and LVH is absent.", [("afib", True), ("lvh", False)]),
        ("AF is not excluded.", [("afib", True)]),
        ("AF with absent P waves.", [("afib", True)]),
        ("AF, LBBB and LVH are absent.", [("afib", False), ("lbbb", False), ("lvh", False)]),
        ("An AF can't be seen.", [("afib", False)]),
        ("In general, AF lacks P waves.", []),
        ("I can't say whether there is AF.", []),
        ("Atrial-fibrillation, first degree AV-block.", [("afib", True), ("av_block", True)]),
        ("The AVF lead and the wavef are words that hold no AF of their own.", [("afib", False)]),
        ("A clear limb lead, minimal noise.", []),
    ],
)
def test_claims(text, expected):
    assert sorted((finding.name, affirmed) for finding, affirmed in claims(text)) == sorted(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("72 beats per minute, PR 160 ms, QRS of 92 ms", [("heart_rate_bpm", 72), ("pr_ms", 160), ("qrs_ms", 92)]),
        ("QT/QTc 388/424", [("qt_ms", 388), ("qtc_ms", 424)]),
        ("The PR interval is 0.16 s.", [("pr_ms", 160)]),
        ("An axis of −35°, a rate of 60-100.", [("axis_deg", -35), ("heart_rate_bpm", 60), ("heart_rate_bpm", 100)]),
        ("one hundred and five beats per minute", [("heart_rate_bpm", 105)]),
        ("This 12-lead ECG of V1 to V6 shows a 1st degree block.", []),
        ("1. Sinus rhythm\n2. No block", []),
        ("A 65-year-old, 1.2 mV", [(None, 65), (None, 1.2)]),
    ],
)
def test_numbers(text, expected):
    assert numbers(text) == [(field, pytest.approx(value)) for field, value in expected]


def test_each_statement_is_told_with_its_place():
    text = "1. I don’t see AF, but LVH can't be excluded.\n2) No doubt AF: QRS of 92 ms, no normal ECG;  left axis, AF."
    assert [text[one.start : one.stop] for one in find_claims(text)] == ["AF", "LVH", "AF", "AF"]
    assert [one.affirmed for one in find_claims(text)] == [False, True, True, True]
    assert [text[one.start : one.stop] for one, _ in read_numbers(text)] == ["92"]
    assert [text[one.start : one.stop] for one in find_verdicts(text)] == ["normal ECG"]
    assert [text[one.start : one.stop] for one in find_words(text)] == ["left axis"]
    double = "A QT/QTc of 388/424 ms."
    assert [double[one.start : one.stop] for one, _ in read_numbers(double)] == ["388", "424"]


def test_verdicts():
    assert verdicts("It's not a normal ECG.") == [("normal", False)]
    assert verdicts("It's a borderline ECG.") == [("borderline", True)]
    assert verdicts("An abnormal ECG. The PR interval is within normal limits.") == [("abnormal", True)]
    assert verdicts("Otherwise normal ECG.") == []


def test_what_a_rewording_loses():
    draft = "Yes, this ECG shows atrial fibrillation. The heart rate is 72 beats per minute."
    assert find_losses(draft, "AF, at 72 bpm.") == []
    assert find_losses(draft, "AF.") == ["no longer says 72 for heart_rate_bpm"]
    assert find_losses(draft, "The rate is 72 bpm.") == ["no longer affirms atrial fibrillation"]
    assert find_losses("It's a normal ECG.", "Sinus rhythm.") == ["no longer calls the ECG normal"]


def test_every_name_is_found_as_itself_and_the_longest_wins():
    for name, texts in SYNONYMS.items():
        for text in texts:
            assert [finding.name for _, finding in find_names(f"There is {text}.")] == [name], text
    for short in ABBREVIATIONS:
        assert len(find_names(f"It is {short}.")) == 1
    assert [f.name for _, f in find_names("incomplete right bundle branch block")] == ["irbbb"]
    assert find_names("the leaf of a graph, half a mile, simple") == []


facts = st.sampled_from([AFIB, NORMAL, BLOCKS])


@settings(max_examples=200, deadline=None)
@given(
    facts, st.sampled_from(FINDINGS), st.sampled_from(["{}", "There is {}.", "Yes, I see {} here.", "{} is present"])
)
def test_affirmed_and_denied_are_judged_by_the_statements(statements, finding, frame):
    there = presence(finding, statements)
    bare = finding.phrase.removeprefix("a ").removeprefix("an ")
    affirmed, denied = find_errors(frame.format(bare), statements), find_errors(f"There is no {bare}.", statements)
    assert (not affirmed) == (there is True)
    assert (not denied) == (there is False)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200), facts)
def test_any_text_is_read_without_an_exception(text, statements):
    assert isinstance(find_errors(text, statements, MEASURED), list)
    assert all(one.affirmed in (True, False, None) for one in read_claims(text))

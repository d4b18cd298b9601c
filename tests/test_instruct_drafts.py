"""Planned conversations: truth, balance, kinds, lengths, comparisons, determinism."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instruct_examples import KINDS, example_manifest, example_measurements

from ecgchat_lib.datasets.labels import STATEMENTS
from ecgchat_lib.datasets.manifest import make_manifest
from ecgchat_lib.ecg.measure import Measurements
from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.instruct.build import rng_for
from ecgchat_lib.instruct.compare import find_pair_errors
from ecgchat_lib.instruct.dialogue import AHEAD, BEYOND, JUDGED, SIGNS, Balance, Narrator
from ecgchat_lib.instruct.drafts import BuildConfig, make_drafts
from ecgchat_lib.instruct.facts import claims, find_errors, numbers
from ecgchat_lib.instruct.findings import BY_NAME, FINDINGS, get_finding


@pytest.fixture(scope="module")
def planned():
    table = example_manifest()
    return make_drafts(table, example_measurements(table), BuildConfig(120, 120, seed=3, comparisons=0.2))


def test_as_many_as_wanted_of_each_kind(planned):
    assert Counter(draft.kind for draft in planned) == {"diagnosis": 120, "dialogue": 96, "comparison": 24}
    assert len({draft.name for draft in planned}) == len(planned)


def test_sinus_rhythm_is_not_called_normal():
    """The statement SR says where the beats come from, and nothing about the rest."""
    said = {Narrator((("SR", 0.0), ("LVH", 100.0)), None, rng_for("x", seed, "t")).phrases()[0] for seed in range(30)}
    assert said == {"sinus rhythm"}


def test_rounds_are_within_bounds_and_spread(planned):
    lengths = [len(draft.rounds) for draft in planned if draft.kind != "diagnosis"]
    assert min(lengths) >= 4
    assert max(lengths) <= 30
    assert len(set(lengths)) > 10
    assert all(len(draft.rounds) == 1 for draft in planned if draft.kind == "diagnosis")


def test_every_answer_is_right(planned):
    for draft in planned:
        for number, one in enumerate(draft.rounds):
            assert draft.errors(number, one.turn.answer) == []


def test_many_kinds_of_questions(planned):
    kinds = Counter(one.turn.kind.split()[0] for draft in planned for one in draft.rounds)
    expected = {"rhythm", "rate", "presence", "diagnosis", "normal", "interval", "axis", "summary", "regular", "judged"}
    assert expected | {"explain", "open", "beyond", "measured", "recall", "checked", "which", "compare"} <= set(kinds)


def test_findings_are_denied_as_often_as_affirmed(planned):
    counts = Counter()
    for draft in planned:
        for one in draft.rounds:
            if one.turn.kind in ("presence", "checked diagnosis"):
                counts[draft.split, one.turn.about, one.turn.truth] += 1
            elif one.turn.kind == "either":
                there, missing = one.turn.about.split("/")
                counts[draft.split, there, True] += 1
                counts[draft.split, missing, False] += 1
            elif one.turn.kind.startswith("which "):
                for letter in one.turn.kind.removeprefix("which "):
                    counts[draft.split, one.turn.about, letter == "y"] += 1
    assert sum(counts.values()) > 200
    for split, name, _ in list(counts):
        difference = counts[split, name, True] - counts[split, name, False]
        assert -AHEAD[False] - 1 <= difference <= AHEAD[True] + 1, (split, name, difference)


def test_the_report_is_worded_as_in_the_paper(planned):
    reports = [one.turn for draft in planned for one in draft.rounds if one.turn.kind == "diagnosis"]
    assert len(reports) > 50
    for turn in reports:
        assert (
            turn.answer.removeprefix("The first ECG: ").removeprefix("The second ECG: ").startswith("Your ECG shows ")
        )
        assert turn.answer.split(". ")[-1] in ("It's a normal ECG.", "It's a borderline ECG.", "It's an abnormal ECG.")
    texts = " ".join(turn.answer for turn in reports)
    assert "; left ventricular hypertrophy" in texts or "; hypertrophy of the left ventricle" in texts


def test_asked_with_a_finding_the_diagnosis_refutes_or_confirms_it_first(planned):
    asked = [one.turn for draft in planned for one in draft.rounds if one.turn.kind == "checked diagnosis"]
    assert {turn.truth for turn in asked} == {True, False}
    for turn in asked:
        assert turn.answer.startswith("Yes, " if turn.truth else "No, ")
        assert "Your ECG shows " in turn.answer


def test_the_same_seed_gives_the_same_drafts_and_another_seed_others(planned):
    table = example_manifest()
    again = make_drafts(table, example_measurements(table), BuildConfig(120, 120, seed=3, comparisons=0.2))
    assert [draft.digest for draft in again] == [draft.digest for draft in planned]
    few, others = (make_drafts(table, None, BuildConfig(5, 5, seed=seed)) for seed in (3, 4))
    assert [draft.digest for draft in few] != [draft.digest for draft in others]


def test_without_measurements_no_number_is_asked_or_said():
    for draft in make_drafts(example_manifest(30), None, BuildConfig(30, 30)):
        for one in draft.rounds:
            assert "Measured" not in one.opening
            if one.turn.kind not in ("explain", "recall"):
                assert not numbers(one.turn.answer), one.turn


def test_comparisons_are_about_two_recordings_of_one_patient(planned):
    table = example_manifest()
    patient_of = dict(zip(table["record"], table["patient"], strict=True))
    pairs = [draft for draft in planned if draft.kind == "comparison"]
    places = set()
    for draft in pairs:
        assert len({patient_of[record] for record in draft.records}) == 1
        openings = [one.opening.count("<ecg>") for one in draft.rounds]
        assert sum(openings) == 2
        assert draft.rounds[0].opening.startswith("<ecg>\nMeasured: ")
        second = next(number for number, count in enumerate(openings) if number or count == 2)
        places.add(second > 0 and openings[0] == 1)
        for number, one in enumerate(draft.rounds):
            if openings[0] == 1 and number < next(k for k, count in enumerate(openings) if k and count):
                assert one.sides == (0,)
    assert places == {True, False}  # the second ECG comes at once, or in a later turn


def test_recalls_repeat_what_was_said(planned):
    found = 0
    for draft in planned:
        answers = []
        for one in draft.rounds:
            if one.turn.kind == "recall":
                assert any(one.turn.answer.endswith(answer) for answer in answers)
                found += 1
            answers.append(one.turn.answer)
    assert found


FIRST = ((("SR", 0.0), ("NORM", 100.0)), Measurements(heart_rate_bpm=70, pr_ms=150))
SECOND = ((("AFIB", 0.0), ("LVH", 100.0)), Measurements(heart_rate_bpm=95))


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("The first ECG shows sinus rhythm. The second ECG shows atrial fibrillation.", True),
        ("The second ECG shows sinus rhythm. The first ECG shows atrial fibrillation.", False),
        ("Both ECGs show sinus rhythm.", False),
        ("Neither of the ECGs shows left bundle branch block.", True),
        ("Neither of the ECGs shows left ventricular hypertrophy.", False),
        ("In the first ECG the heart rate is 70 beats per minute. In the second ECG it is 95 beats per minute.", True),
        ("In the first ECG the heart rate is 95 beats per minute.", False),
        ("The heart rate is higher in the second ECG.", True),
        ("The heart rate is higher in the first ECG.", False),
        ("The heart rate is about the same in the two.", False),
        ("The PR interval is longer in the second ECG.", False),
        ("The first one is a normal ECG. The second one is an abnormal ECG.", True),
        ("The second one is a normal ECG.", False),
        ("Atrial fibrillation is present.", False),
    ],
)
def test_answers_about_two_are_compared_with_the_one_they_name(text, right):
    assert (find_pair_errors(text, [FIRST, SECOND]) == []) == right


def test_explanations_are_general_and_there_is_one_for_each_finding():
    assert set(SIGNS) == set(BY_NAME)
    for finding in FINDINGS:
        turn = Narrator(KINDS[0], None, rng_for(1)).explain(finding)
        assert find_errors(turn.answer, KINDS[0]) == []
        assert claims(turn.answer) == []


def test_what_no_ecg_tells_claims_nothing():
    for _, answers in BEYOND:
        for answer in answers:
            assert find_errors(answer, KINDS[0]) == []


@pytest.mark.parametrize("field", sorted(JUDGED))
@pytest.mark.parametrize("shift", [-15, 0, 15, 200])
def test_judged_values_pass_the_check_at_and_around_the_limits(field, shift):
    for limit in JUDGED[field]:
        if limit + shift < 1:
            continue
        measured = Measurements(**{field: limit + shift})
        turn = Narrator((("SR", 0.0),), measured, rng_for(0)).judged(field, ("Is the {it} normal?",))
        assert find_errors(turn.answer, (("SR", 0.0),), measured) == []


def test_balance():
    balance = Balance()
    assert balance.allows("train", "afib", affirmed=True)
    assert balance.allows("train", "afib", affirmed=False)
    balance.add("train", "afib", affirmed=False)
    assert not balance.allows("train", "afib", affirmed=False)
    assert balance.allows("test", "afib", affirmed=False)
    for _ in range(3):
        balance.add("train", "afib", affirmed=True)
    assert not balance.allows("train", "afib", affirmed=True)


def test_what_is_out_of_range_or_empty():
    with pytest.raises(ParameterError, match="rounds"):
        BuildConfig(rounds=(9, 4))
    with pytest.raises(ParameterError, match="comparisons"):
        BuildConfig(comparisons=1.5)
    with pytest.raises(ParameterError, match="diagnoses"):
        BuildConfig(diagnoses=-1)
    with pytest.raises(EcgChatError, match="no recording"):
        make_drafts(make_manifest([]), None, BuildConfig())
    unsaid = example_manifest(3).assign(statements=[()] * 3)
    with pytest.raises(EcgChatError, match="nothing is stated"):
        make_drafts(unsaid, None, BuildConfig(2, 0))


codes = st.lists(st.tuples(st.sampled_from(sorted(STATEMENTS)), st.sampled_from([0.0, 15.0, 50.0, 100.0])), max_size=6)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(codes, codes, st.integers(0, 9), st.floats(30, 220), st.booleans())
def test_whatever_the_statements_nothing_false_is_said(one, other, seed, rate, even):
    rows = [
        {"record": name, "path": name, "patient": "p", "split": "train", "report": "", "language": "en",
         "statements": tuple(dict(pairs).items())}
        for name, pairs in (("a", one), ("b", other))
    ]  # fmt: skip
    known = Measurements(
        heart_rate_bpm=rate, rr_ms=60000 / rate, pr_ms=rate, qrs_ms=rate, axis_deg=rate - 120, regular=even
    )
    config = BuildConfig(4, 6, seed=seed, comparisons=0.5)
    if not any(p == 0 or p >= 50 for pairs in (one, other) for _, p in dict(pairs).items()):
        return  # nothing is stated with certainty; see test_what_is_out_of_range_or_empty
    for draft in make_drafts(make_manifest(rows), {"a": known}, config):  # it checks every answer
        for asked in draft.rounds:
            assert "{" not in asked.turn.answer + asked.turn.question


def test_the_finding_asked_for_is_the_one_answered():
    narrator = Narrator(KINDS[1], None, rng_for(5))
    turn = narrator.report(get_finding("lbbb"))
    assert turn.truth is False
    assert claims(turn.answer)[0] == (get_finding("lbbb"), False)
    assert narrator.report(get_finding("infarction")) is None  # ABQRS leaves it open

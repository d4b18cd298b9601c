"""A report's content: six sections, nothing invented, measured and said kept apart."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from test_knowledge import measured

from ecgchat_lib.ecg.quality import Finding, Quality
from ecgchat_lib.ecg.recording import Patient, Recording, read_recording
from ecgchat_lib.evaluate.classifier import Reading
from ecgchat_lib.knowledge.entries import load_entries
from ecgchat_lib.knowledge.limits import load_limits
from ecgchat_lib.paths import data_folder
from ecgchat_lib.report import advice
from ecgchat_lib.report.advice import ENTRY_OF_CODE, ENTRY_OF_FLAG
from ecgchat_lib.report.markdown import report_markdown
from ecgchat_lib.report.sections import (
    NOT_RECORDED,
    QUESTIONS,
    TITLES,
    ModelAnswer,
    PatientDetails,
    build_report,
    with_less_advice,
)
from ecgchat_lib.report.write import make_report

GOOD = Quality(usable=True, warnings=())


def recording(**changes) -> Recording:
    signal = np.zeros((12, 5000), np.float32)
    return dataclasses.replace(Recording("R1", signal, 500.0), **changes)


def texts(section) -> list[str]:
    return [entry.text for entry in section.entries]


def test_six_sections_and_nothing_invented():
    report = build_report(recording(), measured(), GOOD)
    assert tuple(section.title for section in report.sections) == TITLES
    assert set(texts(report.section("Patient Information"))) == {NOT_RECORDED}
    assert set(texts(report.section("Medical History"))) == {NOT_RECORDED}
    assert texts(report.section("Pathological Analysis")) == ["No measurement could be compared with a limit."]
    assert texts(report.section("Diagnosis")) == ["No diagnosis: no model was asked, and no clinician."]
    assert not report.by_model
    assert {item.status for item in report.flags} == {"unknown"}
    numbers = [c for entry in (e for s in report.sections for e in s.entries) for c in entry.text if c.isdigit()]
    assert "".join(numbers) == "12" + "100" + "500"  # 12 leads, 10.0 s, 500 Hz: no other number is known


def test_what_the_header_says_is_used():
    comments = ("Age: 74", "Dx: 59118001", "Rx: Aspirin", "Hx: Unknown", "Sx: chest pain: 2 h")
    report = build_report(recording(comments=comments, patient=Patient(74.0, "male")), measured(), GOOD)
    assert texts(report.section("Patient Information"))[2:4] == ["74 years", "male"]
    assert texts(report.section("Medical History")) == [NOT_RECORDED, "Aspirin", "chest pain: 2 h"]


def test_details_given_by_hand_win():
    patient = PatientDetails(name="Ada", age=30.0, sex="female", history="none known")
    report = build_report(recording(patient=Patient(74.0, "male")), measured(qtc_ms=455), GOOD, patient=patient)
    assert texts(report.section("Patient Information")) == ["Ada", NOT_RECORDED, "30 years", "female", NOT_RECORDED]
    assert {f.field: f.status for f in report.flags}["qtc_ms"] == "normal"  # it would be high in a man


def test_findings_follow_from_the_limits():
    report = build_report(recording(), measured(heart_rate_bpm=120, rr_ms=500, pr_ms=150), GOOD)
    assert texts(report.section("Pathological Analysis")) == ["Heart rate 120 bpm: faster than 100 bpm (tachycardia)."]
    assert any("outside their limits" in text for text in texts(report.section("Recommendations")))
    normal = build_report(recording(), measured(heart_rate_bpm=70, pr_ms=150), GOOD)
    assert texts(normal.section("Pathological Analysis")) == ["All 2 measurements with a limit lie within it."]


def test_bad_quality_is_said_and_asks_for_another_recording():
    report = build_report(recording(), measured(), Quality(usable=False, warnings=("lead V2 is flat",)))
    assert "not usable" in texts(report.section("ECG Data Analysis"))[1]
    assert "lead V2 is flat" in texts(report.section("ECG Data Analysis"))[1]
    assert texts(report.section("Recommendations"))[0].startswith("Record the ECG again")


UNUSABLE = Quality(
    usable=False,
    warnings=("no heartbeats stand out", "mains hum of 50 Hz"),
    findings=(
        Finding("not_an_ecg", "abstain", "no heartbeats stand out"),
        Finding("mains", "warn", "mains hum of 50 Hz"),
    ),
)


def test_of_an_unusable_recording_nothing_is_concluded():
    said = ModelAnswer("Diagnosis", "What is it?", "Sinus bradycardia.")
    report = build_report(recording(), measured(heart_rate_bpm=120, qtc_ms=600), UNUSABLE, [said])
    assert texts(report.section("Pathological Analysis")) == ["Nothing was judged: no heartbeats stand out."]
    assert texts(report.section("Diagnosis")) == ["No diagnosis: the recording isn't usable."]
    assert {item.shown for item in report.flags} == {"not measured"}
    assert {item.status for item in report.flags} == {"unknown"}
    assert not report.by_model
    assert len(report.section("Recommendations").entries) == 2  # record it again; with symptoms, see a clinician
    text = report_markdown(report)
    assert "bradycardia" not in text
    assert "120 bpm" not in text
    assert "mains hum of 50 Hz" in text


def test_the_model_is_not_asked_about_an_unusable_recording():
    class Session:
        asked = 0

        def ask(self, recording, question):
            self.asked += 1
            return ModelAnswer("", question, "Sinus rhythm.")

    session = Session()
    noise = np.random.default_rng(0).normal(0, 0.3, (12, 5000)).astype(np.float32)
    report = make_report(recording(signal=noise), session=session)
    assert session.asked == 0
    assert not report.by_model
    assert "isn't usable" in report.description
    good = make_report(read_recording(data_folder() / "real_sample" / "A0002"), session=session)
    assert session.asked == len(QUESTIONS)
    assert good.by_model


def test_doubts_stand_before_what_was_found():
    doubtful = Quality(True, tuple(f"doubt {number}" for number in range(5)))
    report = build_report(recording(), measured(heart_rate_bpm=120, rr_ms=500), doubtful)
    first, second = report.section("Pathological Analysis").entries[:2]
    assert first.text == "Doubtful recording: doubt 0; doubt 1; doubt 2; 2 more."
    assert first.origin == "rule"
    assert "tachycardia" in second.text


def test_said_and_measured_are_kept_apart_and_contradictions_are_marked():
    said = ModelAnswer("Diagnosis", "What is it?", "Sinus bradycardia. Take aspirin.", ("cut after 64 tokens",))
    report = build_report(recording(), measured(heart_rate_bpm=120), GOOD, [said])
    entries = report.section("Diagnosis").entries
    assert [entry.origin for entry in entries] == ["model", "check", "check"]
    assert entries[1].text == "cut after 64 tokens"
    assert "“Sinus bradycardia”, but 120 bpm was measured" in entries[2].text
    assert report.by_model
    others = [entry for section in report.sections for entry in section.entries if section.title != "Diagnosis"]
    assert not any("aspirin" in entry.text for entry in others)  # no recommendation comes from a model
    assert {entry.origin for entry in report.section("Recommendations").entries} == {"rule", "knowledge"}


def test_an_empty_answer_is_shown_as_such():
    report = build_report(recording(), measured(), GOOD, [ModelAnswer("Diagnosis", "?", "  ")])
    assert "answered nothing" in report.section("Diagnosis").entries[0].text


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "[x](javascript:1)", "|a|b|", "a\x1b[31m"])
def test_markdown_is_escaped(hostile):
    report = build_report(recording(name=hostile), measured(pr_ms=250), GOOD, [ModelAnswer("Diagnosis", "?", hostile)])
    text = report_markdown(report)
    assert hostile not in text
    assert "<script" not in text
    assert "\x1b" not in text
    assert "| PR interval | 250 ms | 120 to 200 | high |" in text
    for title in TITLES:
        assert f"{title}\n" in text


def test_markdown_keeps_plain_words_readable():
    report = build_report(recording(name="# A-1 <b>"), measured(), GOOD)
    assert report_markdown(report).startswith("# ECG report: \\# A-1 &lt;b&gt;\n")


def test_a_child_is_not_judged():
    report = build_report(recording(patient=Patient(3.0, "female")), measured(heart_rate_bpm=130, pr_ms=110), GOOD)
    assert {item.status for item in report.flags} == {"unknown"}
    assert {item.normal for item in report.flags} == {""}
    assert "limits are those of adults" in texts(report.section("Pathological Analysis"))[0]


READING = Reading({"CRBBB": 0.91, "SR": 0.8, "NORM": 0.1, "IMI": 0.44, "AFIB": 0.05}, ("CRBBB", "IMI", "SR"))


def test_the_classifiers_labels_stand_apart_with_probabilities():
    said = ModelAnswer("Diagnosis", "What is it?", "Atrial fibrillation.")
    report = build_report(recording(), measured(heart_rate_bpm=70, pr_ms=150), GOOD, [said], reading=READING)
    labels = [e for e in report.section("Pathological Analysis").entries if e.origin == "classifier"]
    assert [(entry.label, entry.text) for entry in labels] == [
        ("complete right bundle branch block", "0.91"),
        ("sinus rhythm", "0.80"),
        ("inferior myocardial infarction", "0.44"),
    ]
    assert report.rhythm == "sinus rhythm"
    against = [entry for entry in report.section("Diagnosis").entries if entry.origin == "check"]
    assert [entry.label for entry in against] == ["Contradicts the classifier"]
    assert report.contradicted == 1
    assert build_report(recording(), measured(), UNUSABLE, reading=READING).rhythm == ""
    child = build_report(recording(patient=Patient(3.0)), measured(), GOOD, reading=READING)
    assert "classifier" not in {entry.origin for section in child.sections for entry in section.entries}


def test_of_exchanged_electrodes_nothing_is_concluded():
    words = "the electrodes of the arms look exchanged"
    exchanged = Quality(True, (words,), (Finding("reversal", "warn", words, ("I",)),))
    said = ModelAnswer("Diagnosis", "What is it?", "Left axis deviation.")
    report = build_report(recording(), measured(heart_rate_bpm=120, axis_deg=-100), exchanged, [said], reading=READING)
    assert not report.usable
    assert {item.shown for item in report.flags} == {"not measured"}
    assert texts(report.section("Pathological Analysis")) == [f"Nothing was judged: {words}."]
    assert texts(report.section("Diagnosis")) == ["No diagnosis: electrodes look exchanged."]
    assert texts(report.section("Recommendations"))[0] == "Record the ECG again: check where the electrodes are."
    assert {entry.origin for section in report.sections for entry in section.entries} <= {
        "recorded",
        "measured",
        "rule",
    }
    assert "120 bpm" not in report_markdown(report)


def test_a_real_recording_with_exchanged_arms_gets_no_axis():
    sample = read_recording(data_folder() / "real_sample" / "A0002")
    signal = sample.signal.copy()  # I turned over, II and III exchanged, aVR and aVL exchanged
    signal[[0, 1, 2, 3, 4]] = [-signal[0], signal[2], signal[1], signal[4], signal[3]]
    report = make_report(dataclasses.replace(sample, signal=signal))
    assert not report.usable
    assert "frontal axis" not in report.description
    assert {item.shown for item in report.flags} == {"not measured"}


def test_an_abstention_is_no_answer_of_the_model():
    said = ModelAnswer("Diagnosis", "What is it?", "I can't judge this.", abstained=True, reason="few_leads")
    report = build_report(recording(), measured(heart_rate_bpm=120), GOOD, [said])
    (entry,) = report.section("Diagnosis").entries
    assert (entry.origin, entry.label, entry.text) == ("abstained", "What is it?", "I can't judge this.")
    assert (report.by_model, report.abstained, report.contradicted) == (False, 1, 0)
    assert "no answer: **What is it?:** I can't judge this." in report_markdown(report)


def test_what_comes_next_is_from_the_knowledge_base_with_its_source():
    report = build_report(recording(), measured(pr_ms=240, qtc_ms=520), GOOD, reading=READING)
    lines = advised(report)
    assert [entry.label for entry in lines] == [
        "PR interval 240 ms: long, first-degree AV block if each P wave is conducted — measured, routine; "
        "see: First-degree AV block",
        "QTc (Bazett) 520 ms: prolonged — measured, soon; see: Long QT interval",
        "complete right bundle branch block — classifier, 0.91; see: Right bundle branch block",
        "inferior myocardial infarction — classifier, 0.44, old or new: compare with earlier ECGs; "
        "see: Inferior infarction",
    ]
    assert "Compare with earlier tracings and review drugs. A wide QRS complex besides" in lines[0].text
    for entry in lines:
        (number,) = re.findall(r"\[(\d+)\]$", entry.text)
        assert report.sources[int(number) - 1].doi
    assert len(set(report.sources)) == len(report.sources)
    assert not advised(build_report(recording(patient=Patient(3.0)), measured(pr_ms=240), GOOD, reading=READING))


def advised(report):
    return [entry for entry in report.section("Recommendations").entries if entry.origin == "knowledge"]


def test_less_advice_still_names_the_findings():
    present = {"AFIB": 0.9, "PVC": 0.8, "CRBBB": 0.7, "LAFB": 0.6, "SBRAD": 0.5, "IVCD": 0.4}
    report = build_report(recording(), measured(qtc_ms=500), GOOD, reading=Reading(present, tuple(present)))
    whole = advised(report)
    assert [entry.label for entry in whole][-1] == "2 more"
    assert with_less_advice(report, 5) is report
    fewer = with_less_advice(report, 2)
    assert advised(fewer)[:2] == whole[:2]
    last = advised(fewer)[2]
    assert last.label == "5 more"
    assert last.text.startswith("ventricular premature complex; ")
    assert last.text.endswith(f"; {whole[-1].text}")
    others = [entry for entry in report.section("Recommendations").entries if entry not in whole]
    assert [entry for entry in fewer.section("Recommendations").entries if entry in others] == others
    assert [entry.label for entry in advised(with_less_advice(build_report(recording(), measured(), GOOD), 1))] == []


def test_no_finding_is_called_harmless():
    present = {"CRBBB": 0.9, "LAFB": 0.8, "SBRAD": 0.7, "1AVB": 0.6}
    report = build_report(recording(), measured(pr_ms=240), GOOD, reading=Reading(present, tuple(present)))
    text = " ".join(entry.text for entry in advised(report))
    assert "no treatment" not in text.lower()
    assert "Look for an added left fascicular block and a long PR interval" in text
    assert "Look for right bundle branch block and a long PR interval" in text
    entries = load_entries()
    for name in {*ENTRY_OF_CODE.values(), *ENTRY_OF_FLAG.values()}:
        step = advice._line(entries[name], "", "").step
        assert step, name
        assert not re.search(r"\b(?:no \w+ (?:is|are) needed|no treatment|nothing|harmless|reassur)", step, re.I), name


def test_a_finding_keeps_its_own_name_and_a_statement_its_record():
    short = advised(build_report(recording(), measured(qtc_ms=385), GOOD))
    assert [entry.label for entry in short] == ["QTc (Bazett) 385 ms: short — measured; see: QT interval"]
    assert ENTRY_OF_CODE["INJAS"] == ENTRY_OF_CODE["INJIN"] == "subendocardial-ischemia"  # not an infarction
    assert not {"HVOLT", "AFLT"} & set(ENTRY_OF_CODE)
    about = json.loads((data_folder() / "weights" / "ecg-classifier-mini" / "manifest.json").read_text())["about"]
    tested = advice.how_often_right(about)
    record = json.loads((data_folder() / "results" / "ecg-classifier-mini.json").read_text())["metrics"]["labels"]
    for code, (right, said) in tested.items():
        one = record[f"statement:{code}"]
        assert 0 <= right <= said == one["said"]
        assert 2 * right / (one["positives"] + said) == pytest.approx(one["f1"], abs=1e-4)
    assert advice.how_often_right({}) == {}  # of another classifier nothing is known
    reading = Reading({"ASMI": 0.6}, ("ASMI",))
    (entry,) = advised(build_report(recording(), measured(), GOOD, reading=reading, tested=tested))
    assert "right {} times of {} when tested".format(*tested["ASMI"]) in entry.label
    assert "emergency" not in entry.label


def test_measurements_come_first_and_what_is_left_out_is_named():
    present = {"IMI": 0.9, "ASMI": 0.8, "AFIB": 0.7, "LVH": 0.6, "CLBBB": 0.5, "ISC_": 0.4}
    found = measured(heart_rate_bpm=25, pr_ms=240)
    lines = advised(build_report(recording(), found, GOOD, reading=Reading(present, tuple(present))))
    assert lines[0].label.startswith("Heart rate 25 bpm")
    assert len(lines) == advice.MOST + 1
    assert lines[-1].label == "3 more"
    assert lines[-1].text.count(";") == 2
    assert lines[-1].text.startswith("left ventricular hypertrophy; complete left bundle branch block; ")


def test_what_advice_is_about_exists():
    entries, limits = load_entries(), load_limits()
    assert {field for field, _ in ENTRY_OF_FLAG} <= set(limits)
    assert set(ENTRY_OF_FLAG.values()) <= set(entries)
    for code, name in ENTRY_OF_CODE.items():
        assert code in entries[name].codes

"""A patient's file: what is right is read, what isn't names its field, and nothing in it can do harm."""

from __future__ import annotations

import json
import os

import pytest

from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.report.patient import FIELDS, LENGTHS, MAX_BYTES, read_patient, read_patients
from ecgchat_lib.report.sections import PatientDetails

WHOLE = {
    "name": "Ada Lovelace",
    "identifier": "007",
    "age": 36,
    "sex": "female",
    "recorded_at": "2024-05-31 13:20",
    "history": "none known",
    "medication": ["aspirin", "bisoprolol"],
    "symptoms": None,
}


def write(tmp_path, content, name="patient.yml"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def test_json_and_yaml_say_the_same(tmp_path):
    details = PatientDetails(
        "Ada Lovelace", "007", 36.0, "female", "2024-05-31 13:20", "none known", "aspirin; bisoprolol", None
    )
    assert read_patient(write(tmp_path, json.dumps(WHOLE), "p.json")) == details
    text = (
        "name: Ada Lovelace\nidentifier: 007\nage: 36\nsex: F\nrecorded_at: 2024-05-31 13:20\n"
        "history: none known\nmedication: [aspirin, bisoprolol]\nsymptoms: null\n"
    )
    assert read_patient(write(tmp_path, text)) == details  # 007 stays 007: nothing is guessed
    assert read_patient(write(tmp_path, "\ufeffname: no\nhistory: |\n  two\n  lines\n")).name == "no"


def test_several_by_record(tmp_path):
    path = write(tmp_path, "A0001: {name: Ada}\nA0002:\n  age: 0.5\n")
    patients = read_patients(path)
    assert patients.one is None
    assert patients.by_record == {"A0001": PatientDetails(name="Ada"), "A0002": PatientDetails(age=0.5)}
    with pytest.raises(EcgChatError, match="several recordings"):
        read_patient(path)
    one = read_patients(write(tmp_path, "name: Ada\n"))
    assert (one.one, one.by_record) == (PatientDetails(name="Ada"), None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("nmae: Ada", ["nmae", "unknown field", "Did you mean name"]),
        ("name: [Ada]", ["name", "a list", "a text"]),
        ("name: {first: Ada}\nage: 3", ["name", "a mapping"]),
        (f"name: {'x' * 201}", ["name", "201 characters", "at most 200"]),
        ("history: " + "x" * 4001, ["history", "4,001", "at most 4,000"]),
        ("age: old", ["age", "'old'", "0 to 130"]),
        ("age: -1", ["age", "'-1'"]),
        ("age: 131", ["age", "'131'"]),
        ("age: nan", ["age", "'nan'"]),
        ("age: 1e999", ["age"]),
        ("sex: x", ["sex", "'x'", "female or male"]),
        ("recorded_at: yesterday", ["recorded_at", "'yesterday'", "2024-05-31"]),
        ("recorded_at: 2024-02-30", ["recorded_at"]),
        ("recorded_at: 0001-01-01", ["recorded_at", "1880 to 2300"]),
        ("A1: {age: 400}", ["A1, age", "'400'"]),
        ("", ["expected fields"]),
        ("just words", ["a text", "expected fields"]),
        ("- name: Ada", ["a list"]),
        ("name: Ada\nname: Eve", ["name", "twice"]),
        ("name: &a Ada\nhistory: *a", ["alias or anchor"]),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", ["alias or anchor"]),
        ("name: !!python/object/apply:os.system ['touch hacked']", ["a tag"]),
        ("name: !!str 5", ["a tag"]),
        ("--- {name: a}\n--- {name: b}", ["several documents"]),
        ("[" * 30_000, ["nested"]),
        ("name: Ada\x07", ["not YAML"]),
        ("name: 'Ada", ["not YAML"]),
        ("[a, b]: c", ["no text"]),
        (b"name: \xff\xfe", ["not UTF-8 at byte 6"]),
        ("name: " + "x" * MAX_BYTES, ["more than 65,536 bytes"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path, content, words):
    path = write(tmp_path, content)
    with pytest.raises(EcgChatError) as caught:
        read_patients(path)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word in message
    assert len(message) < 600
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"age": true}', "yes or no"),
        ('{"name": 5, "age": "63"}', None),
        ('{"name": "a", "name": "b"}', "twice"),
        ('{"sex": 1}', "a number"),
        ("[" * 30_000, "not JSON"),
        ('{"age": ' + "9" * 6000 + "}", "not JSON"),
        ('{"name": "\\ud800\\u0000"}', None),
        ("{}", "expected fields"),
        ("null", "nothing"),
    ],
)
def test_json_is_checked_too(tmp_path, content, words):
    path = write(tmp_path, content, "p.json")
    if words is None:
        assert read_patients(path).one is not None
        return
    with pytest.raises(EcgChatError, match=words):
        read_patients(path)


def test_what_is_no_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "missing.yml", "a\0b"):
        with pytest.raises(EcgChatError, match=r"no such file|can't be read"):
            read_patients(path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(EcgChatError, match="no such file"):
            read_patients(tmp_path / "fifo")  # and doesn't wait


def test_every_field_has_a_bound():
    assert set(FIELDS) == set(LENGTHS) | {"age"}

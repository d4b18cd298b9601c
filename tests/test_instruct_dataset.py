"""Whole data sets: files, hashes, provenance, splits, the card, checking them again, measuring, ECG-QA, the command."""

import copy
import json
import math
import os
from pathlib import Path

import pandas as pd
import pytest
import typer.testing
from instruct_examples import example_manifest, example_measurements

from ecgchat_lib.datasets.cpsc2018 import load_real_sample
from ecgchat_lib.datasets.manifest_file import write_manifest
from ecgchat_lib.ecg.measure import Measurements
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError
from ecgchat_lib.instruct.build import split_conversations, validate_conversations
from ecgchat_lib.instruct.card import REPORTED, count_words
from ecgchat_lib.instruct.check import find_false, read_card, read_conversations
from ecgchat_lib.instruct.cli import instruct_app
from ecgchat_lib.instruct.dataset import build_dataset
from ecgchat_lib.instruct.drafts import BuildConfig
from ecgchat_lib.instruct.ecgqa import answer_text, ptbxl_path, read_ecgqa
from ecgchat_lib.instruct.measured import from_row, measure_manifest, read_measurements, to_row
from ecgchat_lib.instruct.teachers import TemplateTeacher

CONFIG = BuildConfig(30, 20, rounds=(4, 12), seed=3, comparisons=0.2)
FILES = ("train.jsonl", "validation.jsonl", "test.jsonl", "manifest.json", "README.md")


@pytest.fixture(scope="module")
def table():
    return example_manifest(30)


@pytest.fixture(scope="module")
def built(table, tmp_path_factory):
    out = tmp_path_factory.mktemp("built")
    facts = build_dataset(table, example_measurements(table), CONFIG, TemplateTeacher(), out, dataset="examples")
    return out, facts


def every(out):
    return [json.loads(line) for name in FILES[:3] for line in (out / name).open(encoding="utf-8")]


def test_files_are_the_originals_format_one_conversation_per_line(built):
    out, facts = built
    items = every(out)
    assert len(items) == 50
    for item in items:
        assert set(item) == {"id", "ecg", "conversations", "provenance"}
        assert {turn["from"] for turn in item["conversations"]} == {"human", "gpt"}
        assert isinstance(item["ecg"], str) or len(item["ecg"]) == 2
    assert {name: facts["files"][name]["lines"] for name in FILES[:3]} == {
        name: len((out / name).read_text().splitlines()) for name in FILES[:3]
    }


def test_every_item_says_where_it_comes_from(built, table):
    out, _ = built
    records = set(table["record"])
    for item in every(out):
        made = item["provenance"]
        assert made["teacher"]["name"] == "template"
        assert made["seed"] == 3
        assert made["dataset"] == "examples"
        assert set(made["records"]) <= records
        assert len(made["rounds"]) == len(item["conversations"]) // 2
        for one in made["rounds"]:
            assert one["check"] == "passed"
            assert ":" in one["wording"]
            assert one["reworded"] is False


def test_no_patient_is_in_two_files(built, table):
    out, _ = built
    patient_of = dict(zip(table["record"], table["patient"], strict=True))
    sides = [
        {patient_of[r] for item in read_conversations(out / name) for r in item["provenance"]["records"]}
        for name in FILES[:3]
    ]
    assert all(sides)
    assert sum(map(len, sides)) == len(set.union(*sides))


def test_the_same_settings_give_the_same_bytes_and_nothing_half_done_is_left(built, table, tmp_path):
    out, facts = built
    again = build_dataset(table, example_measurements(table), CONFIG, TemplateTeacher(), tmp_path, dataset="examples")
    assert again == facts
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "build.json"])


def test_a_folder_with_another_build_is_left_alone(built, table):
    out, _ = built
    before = (out / "train.jsonl").read_bytes()
    with pytest.raises(ParameterError, match="--resume"):
        build_dataset(table, None, CONFIG, TemplateTeacher(), out)
    with pytest.raises(ParameterError, match="another plan, config, dataset"):
        build_dataset(table, None, BuildConfig(3, 3), TemplateTeacher(), out, resume=True)
    assert (out / "train.jsonl").read_bytes() == before


def test_files_of_others_are_left_alone(table, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ParameterError, match=r"holds README\.md"):
        build_dataset(table, None, CONFIG, TemplateTeacher(), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_damaged_start_is_told(table, tmp_path):
    (tmp_path / "build.json").write_text("[" * 5000)
    with pytest.raises(EcgChatError, match="can't be read as the start of a build"):
        build_dataset(table, None, CONFIG, TemplateTeacher(), tmp_path, resume=True)


def test_the_card_has_our_counts_beside_the_papers(built):
    out, facts = built
    text = read_card(out)
    assert "| single-turn diagnoses | 30 | 20,258 |" in text
    assert "| dialogues | 20 | 24,786 |" in text
    assert "as reported in the paper" in text
    assert REPORTED["diagnoses"] == 20258
    assert facts["files"]["train.jsonl"]["sha256"][:16] in text
    (out / "test.jsonl").write_bytes((out / "test.jsonl").read_bytes() + b"\n")
    try:
        with pytest.raises(EcgChatError, match=r"test\.jsonl: sha256"):
            read_card(out)
    finally:
        (out / "test.jsonl").write_bytes((out / "test.jsonl").read_bytes()[:-1])
    with pytest.raises(MissingPartError):
        read_card(out / "nothing")


def test_word_statistics_by_hand():
    items = [
        {
            "id": "a",
            "ecg": "e",
            "conversations": [
                {"from": "human", "value": "<ecg>\nMeasured: rate 72\nDo you see it?"},
                {"from": "gpt", "value": "No, I do not see atrial flutter here."},
                {"from": "human", "value": "Sure?"},
                {"from": "gpt", "value": "Yes."},
            ],
        }
    ]
    found = count_words({"train": items})
    assert found["words"]["question"] == {"least": 1, "median": 2.5, "mean": 2.5, "most": 4}
    assert found["words"]["answer"]["most"] == 8
    assert found["vocabulary"] == {"questions": 5, "answers": 9}
    assert found["distinct_n"] == {"1": 1.0, "2": 1.0, "3": 1.0}
    assert found["negatives"] == {"denied": 1, "affirmed": 0, "share": 1.0}
    assert found["findings"] == {"flutter": [0, 1]}
    assert found["items"] == {"train": {"dialogue": 1}}


def test_what_was_built_is_found_right_and_what_was_changed_wrong(built, table):
    out, _ = built
    measured = example_measurements(table)
    items = every(out)
    wrong, answers = find_false(items, table, measured)
    assert wrong == []
    assert answers > 150
    changed = copy.deepcopy(items)
    changed[0]["conversations"][1]["value"] = "Your ECG shows ventricular tachycardia."
    wrong, _ = find_false(changed, table, measured)
    assert len(wrong) == 1
    assert changed[0]["id"] in wrong[0]
    with pytest.raises(EcgChatError, match="not in the manifest"):
        find_false(items, table.head(1), measured)


def two(change=lambda item: None):
    item = {
        "id": "a",
        "ecg": ["e", "f"],
        "conversations": [
            {"from": "human", "value": "<ecg>\nQ?"},
            {"from": "gpt", "value": "A."},
            {"from": "human", "value": "<ecg>\nAnd this?"},
            {"from": "gpt", "value": "B."},
        ],
    }
    change(item)
    return item


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(ecg=["e"]), "'ecg' is"),
        (lambda c: c.update(ecg=["e", 3]), "'ecg' is"),
        (lambda c: c.update(ecg=["e", "f", "g"]), "2 marks <ecg>, expected 3"),
        (lambda c: c["conversations"][2].update(value="And <ecg>?"), "turn 2: 1 marks <ecg>, 0 of them at the start"),
        (lambda c: c["conversations"][3].update(value="<ecg>\nB."), "turn 3: 1 marks"),
        (lambda c: c["conversations"][0].update(value="Q?\n<ecg>"), "turn 0: starts with"),
    ],
)
def test_conversations_about_two_ecgs_are_validated(change, message):
    assert validate_conversations([two()]) == [two()]
    with pytest.raises(EcgChatError) as caught:
        validate_conversations([two(change)])
    assert message in str(caught.value)


def test_two_ecgs_on_two_sides_are_refused(table):
    paths = [table.loc[table["split"] == split, "path"].iloc[0] for split in ("train", "test")]
    with pytest.raises(EcgChatError, match="expected one split"):
        split_conversations([two(lambda item: item.update(ecg=paths))], table)


@pytest.mark.parametrize("content", [b"", b"[]", b"nonsense", b"[" * 5000, b'{"id": 1}', b"\xff\n", b"[1]"])
def test_hostile_files_are_refused_with_their_name(tmp_path, content):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(EcgChatError, match=r"x\.jsonl"):
        read_conversations(path)
    with pytest.raises(MissingPartError):
        read_conversations(tmp_path / "y.jsonl")


# --- measuring -------------------------------------------------------------------------------------------------------


def sample_table(tmp_path):
    table = example_manifest(2)
    (tmp_path / "broken.hea").write_text("nonsense")
    return table.assign(path=[str(load_real_sample()["path"].iloc[0]), str(tmp_path / "broken")])


def test_measurements_come_back_as_they_were():
    one = Measurements(
        heart_rate_bpm=71.6, regular=None, reasons={"pr_ms": "no P"}, st_mv={"V1": -0.1}, transition="V3"
    )
    back = from_row(json.loads(json.dumps(to_row(one))))
    assert back.as_dict() == one.as_dict()
    assert math.isnan(back.pr_ms)
    with pytest.raises(EcgChatError, match="unknown fields"):
        from_row({"length": 3})
    with pytest.raises(EcgChatError, match="expected a number"):
        from_row({"pr_ms": "long"})
    with pytest.raises(EcgChatError, match="strange"):
        from_row({"regular": "maybe"})


def test_each_recording_is_measured_once_and_the_unreadable_told(tmp_path, monkeypatch):
    from ecgchat_lib.instruct import measured as module

    table, cache = sample_table(tmp_path), tmp_path / "measurements.jsonl"
    found, faults = measure_manifest(table, cache)
    assert list(found) == ["r000"]
    assert list(faults) == ["r001"]
    assert 40 < found["r000"].heart_rate_bpm < 150
    monkeypatch.setattr(module, "measure", lambda recording: pytest.fail("measured again"))
    again, _ = measure_manifest(table, cache)
    assert again["r000"].as_dict() == found["r000"].as_dict()
    assert read_measurements(cache)["r000"].as_dict() == found["r000"].as_dict()
    with cache.open("a") as file:
        file.write('{"cut')
    before = cache.read_bytes()
    assert list(read_measurements(cache)) == ["r000"]
    assert cache.read_bytes() == before  # who reads changes nothing
    measure_manifest(table, cache)
    assert cache.read_text().endswith("}\n")
    for row in ({"key": "r000"}, {"key": "[]", "measurements": {}}, {"key": '["a"]', "measurements": []}):
        cache.write_text(json.dumps(row) + "\n")
        with pytest.raises(EcgChatError, match="line 1"):
            read_measurements(cache)
    cache.write_text("nonsense\n")
    with pytest.raises(EcgChatError, match="line 1"):
        measure_manifest(table, cache)


# --- ECG-QA ----------------------------------------------------------------------------------------------------------


def question(**changes):
    item = {
        "template_id": 28,
        "question_id": 1749,
        "sample_id": 129997,
        "question_type": "single-verify",
        "attribute_type": "noise",
        "question": "Does this ECG show any kind of noises in lead V6?",
        "answer": ["no"],
        "ecg_id": [126],
        "attribute": ["any kind of noises"],
    }
    return item | changes


def ecgqa(tmp_path, *items):
    path = tmp_path / "qa.json"
    path.write_text(json.dumps(list(items)))
    return read_ecgqa(path)


def test_ecgqa_becomes_conversations(tmp_path):
    pair = question(
        template_id=68, sample_id=5, question_type="comparison_irrelevant-query", answer=["rr interval", "qt interval"],
        ecg_id=[181, 21126],
    )  # fmt: skip
    one, other, again = ecgqa(tmp_path, question(), pair, question(question="Any noise in V6?"))
    assert one["ecg"] == "records500/00000/00126_hr"
    assert one["conversations"][0]["value"] == "<ecg>\nDoes this ECG show any kind of noises in lead V6?"
    assert one["conversations"][1]["value"] == "No."
    assert other["ecg"] == ["records500/00000/00181_hr", "records500/21000/21126_hr"]
    assert other["conversations"][0]["value"].startswith("<ecg>\n<ecg>\nDoes")
    assert other["conversations"][1]["value"] == "Qt interval, rr interval."
    assert other["provenance"]["rounds"][0] == {"wording": "template 68", "reworded": False, "check": "not made"}
    assert again["id"] == one["id"] + "-1"
    assert answer_text(["none"], "single-query") == "None of them."
    assert ptbxl_path(9999) == "records500/09000/09999_hr"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template_id": 71}, "expected 1 to 70"),
        ({"template_id": True}, "whole number"),
        ({"sample_id": None}, "whole number"),
        ({"question_type": "single-guess"}, "question_type"),
        ({"question": "<ecg> there?"}, "without marks"),
        ({"question": " "}, "question"),
        ({"answer": []}, "answer"),
        ({"answer": ["x" * 3000]}, "answer"),
        ({"answer": "no"}, "answer"),
        ({"ecg_id": [1, 2, 3]}, "ecg_id"),
        ({"ecg_id": [-1]}, "ecg_id"),
        ({"ecg_id": ["../../etc/passwd"]}, "ecg_id"),
    ],
)
def test_strange_ecgqa_items_are_named(tmp_path, changes, message):
    with pytest.raises(EcgChatError, match=r"qa\.json, item 1") as caught:
        ecgqa(tmp_path, question(), question(**changes))
    assert message in str(caught.value)


@pytest.mark.parametrize("content", ["{}", "[]", "[3]", "[" * 5000, "nonsense"])
def test_other_files_are_no_ecgqa(tmp_path, content):
    path = tmp_path / "qa.json"
    path.write_text(content)
    with pytest.raises(EcgChatError, match=r"qa\.json"):
        read_ecgqa(path)
    with pytest.raises(MissingPartError):
        read_ecgqa(tmp_path / "none.json")


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["template_train", "paraphrased_train", "template_valid", "paraphrased_valid"])
def test_the_real_ecgqa_is_read(name):
    place = os.environ.get("ECGCHAT_REAL_DATA")
    if not place:
        pytest.skip("ECGCHAT_REAL_DATA is not set: ECG-QA is not here")
    path = Path(place) / "text" / f"ecgqa_{name}_matched.json"
    made = read_ecgqa(path)
    assert len(made) == len(json.loads(path.read_bytes()))
    assert {len(item["conversations"]) for item in made} == {2}


# --- the command -----------------------------------------------------------------------------------------------------


def run(*arguments):
    result = typer.testing.CliRunner().invoke(instruct_app, [str(one) for one in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_build_check_and_card_from_a_manifest_file(table, tmp_path):
    path, out = tmp_path / "m.parquet", tmp_path / "out"
    write_manifest(table, path)
    arguments = ("build", path, "--out", out, "--metadata-only", "--diagnoses", 12, "--dialogues", 8, "--rounds", "4-9")
    result = run(*arguments, "--json")
    row = json.loads(result.stdout.splitlines()[-1])
    assert row["diagnosis"] == 12
    assert row.get("dialogue", 0) + row.get("comparison", 0) == 8
    assert row["replaced"] == 0
    result = run("check", out / "train.jsonl", "--manifest", path, "--json")
    row = json.loads(result.stdout)
    assert row["wrong"] == 0
    assert row["answers_checked"] == row["rounds"] > 10
    assert "format right; facts not checked" in run("check", out / "train.jsonl").stdout
    assert run("card", out).stdout.startswith("# ECG-Instruct, built from a manifest")
    with pytest.raises(ParameterError, match="--resume"):
        run(*arguments)
    assert "12 of kind diagnosis" in run(*arguments, "--resume").stdout


def test_check_ends_with_1_where_an_answer_is_wrong(table, tmp_path):
    write_manifest(table, tmp_path / "m.parquet")
    item = two(lambda c: c.update(ecg=list(table["path"].iloc[:2])))
    item["conversations"][1]["value"] = "The first ECG shows atrial fibrillation."
    (tmp_path / "x.jsonl").write_text(json.dumps(item))
    result = run("check", tmp_path / "x.jsonl", "--manifest", tmp_path / "m.parquet")
    assert result.exit_code == 1
    assert "1 of 2 answers wrong" in result.stdout


def test_a_csv_manifest_is_read(table, tmp_path):
    path = tmp_path / "m.csv"
    frame = table.drop(columns=["labels"])
    codes = [" ".join(f"{code}:{p:g}" for code, p in pairs) for pairs in frame["statements"]]
    codes[0] = str(dict(frame["statements"].iloc[0]))
    pd.DataFrame(frame).assign(statements=codes).to_csv(path, index=False)
    result = run("build", path, "--out", tmp_path / "out", "--metadata-only", "--diagnoses", 5, "--dialogues", 0)
    assert "5 of kind diagnosis" in result.stdout
    (tmp_path / "n.csv").write_text("record,path\na,b\n")
    with pytest.raises(EcgChatError, match=r"columns .* are missing"):
        run("build", tmp_path / "n.csv", "--out", tmp_path / "o", "--metadata-only")


@pytest.mark.slow
def test_synthetic_recordings_are_made_measured_and_spoken_of(tmp_path):
    run("build", "--synthetic", 6, "--out", tmp_path, "--diagnoses", 6, "--dialogues", 6, "--seed", 4)
    items = every(tmp_path)
    assert len(items) == 12
    assert all("Measured: rate " in item["conversations"][0]["value"] for item in items)
    path = items[0]["ecg"] if isinstance(items[0]["ecg"], str) else items[0]["ecg"][0]
    assert (tmp_path / "recordings" / f"{path}.hea").is_file()
    result = run(
        "check", tmp_path / "train.jsonl", "--manifest", tmp_path / "recordings", "--dataset", "synthetic",
        "--measurements", tmp_path / "measurements.jsonl",
    )  # fmt: skip
    assert "0 of " in result.stdout
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ParameterError, match="holds a build already"):
        run("build", "--synthetic", 3, "--out", tmp_path)
    with pytest.raises(ParameterError, match="holds other synthetic recordings"):
        run("build", "--synthetic", 3, "--out", tmp_path, "--resume")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    run("build", "--synthetic", 6, "--out", tmp_path, "--diagnoses", 6, "--dialogues", 6, "--seed", 4, "--resume")
    assert every(tmp_path) == items


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either a MANIFEST or --synthetic"),
        (("--synthetic", 3, "--rounds", "four"), "two whole numbers"),
        (("--synthetic", 3, "--teacher", "openai"), "name the model"),
        (("--synthetic", 3, "--price-in", 1), "both"),
        (("--synthetic", 3, "--budget-dollars", 1), "prices"),
        (("nowhere.parquet",), "no such file"),
    ],
)
def test_calls_that_cannot_be_used(tmp_path, arguments, message):
    with pytest.raises(EcgChatError, match=message):
        run("build", *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ecgqa_command(tmp_path):
    (tmp_path / "qa.json").write_text(json.dumps([question()]))
    result = run("ecgqa", tmp_path / "qa.json", "--out", tmp_path / "qa.jsonl")
    assert "1 conversations by 1 of ECG-QA's templates" in result.stdout
    assert len(read_conversations(tmp_path / "qa.jsonl")) == 1

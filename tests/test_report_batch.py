"""Reports of many recordings: found, named, resumed by hashes, told of in one summary; what fails is told of."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command import run_command

from ecgchat_lib.ecg.recording import read_recording, write_recording
from ecgchat_lib.errors import EcgChatError, ParameterError, RecordError
from ecgchat_lib.paths import data_folder
from ecgchat_lib.report import batch
from ecgchat_lib.report.batch import JOURNAL, Settings, find_recordings, match_patients, plan, recording_digest, run
from ecgchat_lib.report.patient import Patients
from ecgchat_lib.report.sections import PatientDetails

REAL = data_folder() / "real_sample"


def copy(name, folder, new=None):
    folder.mkdir(parents=True, exist_ok=True)
    if new is None:
        for ending in (".hea", ".mat"):
            shutil.copy(REAL / f"{name}{ending}", folder)
        return folder / name
    return write_recording(dataclasses.replace(read_recording(REAL / name), name=new), folder)


@pytest.fixture
def folder(tmp_path):
    copy("A0001", tmp_path / "in")
    copy("A0002", tmp_path / "in" / "ward")
    return tmp_path / "in"


def do(records, outputs, settings=None, asked=None):
    jobs, main = plan(records, outputs)
    return list(run(jobs, main, settings or Settings(), read_recording, lambda: asked))


def table(main):
    with (main / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------- finding and naming


def test_recordings_are_found_as_the_reader_knows_them(tmp_path):
    copy("A0001", tmp_path)
    for name, text in {
        "notes.txt": "x",
        "README.md": "x",
        "summary.csv": "record,usable\n",
        "ecg.csv": "time,I,II,III\n0,0,0,0\n",
        "ecg2.tsv": "t\tI (mV)\taVR (mV)\n",
        ".hidden.hea": "x",
        "long.hea": "long/2 12 500 1000\nlong_a 500\nlong_b 500\n",
        "long_a.hea": "long_a 12 500 500\n",
        "long_b.hea": "long_b 12 500 500\n",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "strange").write_bytes(b"\x93NUMPY" + bytes(200))
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.hea").write_text("x")
    (tmp_path / "empty.hea").mkdir()
    found = [path.name for path in find_recordings(tmp_path)]
    assert found == ["A0001.hea", "ecg.csv", "ecg2.tsv", "long.hea", "strange"]
    (tmp_path / "none").mkdir()
    with pytest.raises(RecordError, match="holds no recording"):
        find_recordings(tmp_path / "none")


def test_each_recording_gets_a_file_of_its_own(folder, tmp_path):
    out = tmp_path / "out"
    again = copy("A0001", tmp_path / "other")
    named = copy("A0003", tmp_path / "in", "summary")
    jobs, main = plan([folder, again], {"pdf": out, "md": tmp_path / "md"})
    assert main == out
    assert [job.key for job in jobs] == ["A0001", "summary-2", "ward/A0002", "A0001-2"]
    assert jobs[2].targets == {"pdf": out / "ward" / "A0002.pdf", "md": tmp_path / "md" / "ward" / "A0002.md"}
    assert jobs[1].path.stem == named.stem == "summary"


def test_one_recording_goes_to_the_file_that_was_named(folder, tmp_path):
    record = folder / "A0001"
    (job,), main = plan([record], {"html": tmp_path / "x.htm"})
    assert (main, job.targets) == (None, {"html": tmp_path / "x.htm"})
    (job,), main = plan([record], {"html": tmp_path})
    assert job.targets == {"html": tmp_path / "A0001.html"}
    with pytest.raises(ParameterError, match="same file"):
        plan([record], {"html": tmp_path / "x", "md": tmp_path / "x"})
    with pytest.raises(ParameterError, match="no output"):
        plan([record], {})
    (tmp_path / "file").write_text("")
    with pytest.raises(ParameterError, match="expected a folder"):
        plan([folder], {"html": tmp_path / "file"})


def test_a_patients_details_reach_one_recording_and_no_other(tmp_path):
    for place in ("ward1/A0001", "ward2/A0001", "ward2/A0002", "A0003", "A0003-2"):
        header = tmp_path / "in" / f"{place}.hea"
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text("x")
    (tmp_path / "A0003.hea").write_text("x")
    jobs, _ = plan([tmp_path / "in", tmp_path / "A0003.hea"], {"md": tmp_path / "out"})
    assert [job.key for job in jobs] == ["A0003-2", "A0003", "ward1/A0001", "ward2/A0001", "ward2/A0002", "A0003-3"]
    ada, eve = PatientDetails(name="Ada"), PatientDetails(name="Eve")
    for name, key in (
        ("ward1/A0001", "ward1/A0001"),
        ("A0002", "ward2/A0002"),
        ("A0002.hea", "ward2/A0002"),
        ("A0003-2", "A0003-2"),
        ("A0003-3", "A0003-3"),
    ):
        assert match_patients(Patients(by_record={name: ada}), jobs) == {key: ada}
    for name, words in (
        ("A0001", "can be any of ward1/A0001, ward2/A0001"),
        ("A0001.hea", "can be any of ward1/A0001, ward2/A0001"),
        ("A0003", "can be any of A0003, A0003-3"),
        ("A0004", "is none of the recordings"),
        ("", "is none of the recordings"),
    ):
        with pytest.raises(ParameterError, match=words):
            match_patients(Patients(by_record={name: ada}), jobs)
    with pytest.raises(ParameterError, match="stand there twice"):
        match_patients(Patients(by_record={"ward2/A0002": ada, "A0002": eve}), jobs)
    assert match_patients(Patients(one=ada), jobs[:1]) == {"A0003-2": ada}


def test_what_is_read_is_never_replaced(folder, tmp_path):
    from ecgchat_lib.report import write_report

    table = folder / "summary.csv"
    table.write_text("I,II,III\n0,0,0\n")
    with pytest.raises(ParameterError, match=r"summary\.csv: read from"):
        plan([folder], {"html": folder})
    (tmp_path / "link.html").symlink_to(table)
    details = tmp_path / "p.html"
    details.write_text("name: Ada\n")
    for target in (table, tmp_path / "link.html", details):
        with pytest.raises(ParameterError, match="read from"):
            plan([table], {"html": target}, [details])
    for target in (folder / "A0001.mat", folder / "A0001.hea", tmp_path / "new.csv"):
        with pytest.raises(ParameterError, match="a name that recordings have"):
            plan([folder / "A0001"], {"html": target})
    with pytest.raises(ParameterError, match="the recording itself"):
        write_report(read_recording(folder / "A0001"), folder / "A0001.hea", kind="md")
    assert (folder / "A0001.hea").read_bytes() == (REAL / "A0001.hea").read_bytes()


# ------------------------------------------------------------------------------------------- resuming


def test_what_is_complete_is_left_alone_and_what_changed_is_made_again(folder, tmp_path):
    out = tmp_path / "out"
    first = do([folder], {"html": out})
    assert [one.skipped for one in first] == [False, False]
    page = out / "A0001.html"
    before = page.stat().st_mtime_ns
    rows = table(out)
    again = do([folder], {"html": out})
    assert [one.skipped for one in again] == [True, True]
    assert page.stat().st_mtime_ns == before
    assert table(out) == rows  # the summary is whole, though nothing was written
    page.write_text("cut short")  # it exists, and is not what was written
    assert [one.skipped for one in do([folder], {"html": out})] == [False, True]
    copy("A0004", folder / "ward", "A0002")  # another recording of the same name
    assert [one.skipped for one in do([folder], {"html": out})] == [True, False]
    told = Settings({"A0001": PatientDetails(name="Ada")})
    assert [one.skipped for one in do([folder], {"html": out}, told)] == [False, True]
    assert "Ada" in page.read_text()
    assert [one.skipped for one in do([folder], {"html": out}, dataclasses.replace(told, resume=False))] == [False] * 2


def test_what_a_report_depends_on(tmp_path, monkeypatch):
    job = batch.Job("x", tmp_path, {"html": tmp_path / "x.html"})
    other = dataclasses.replace(job, targets={"html": tmp_path / "x.html", "md": tmp_path / "x.md"})
    ada = PatientDetails(name="Ada")
    found = [
        batch.settings_digest(job, Settings(), None),
        batch.settings_digest(job, Settings(model="another"), None),
        batch.settings_digest(job, Settings(), ada),
        batch.settings_digest(other, Settings(), None),
    ]
    assert batch.settings_digest(job, Settings(resume=False), None) == found[0]
    monkeypatch.setattr(batch, "_code_digest", lambda: "newer")
    found.append(batch.settings_digest(job, Settings(), None))
    assert len(set(found)) == 5
    decides = (
        "chat/questions.yml",
        "labels/scp_statements.csv",
        "knowledge/limits.yml",
        "weights/ecg-chat-mini/manifest.json",
    )
    for name in decides:
        assert any((data_folder() / name).match(pattern) for pattern in batch._DATA)


DAMAGE = [
    b"",
    b"\n\n{}\n[]\nnull\n",
    b'{"record": "A0001", "input": 1}\n',
    b'{"record": "A0001", "input": "x", "settings": "x", "files": {"md": "/etc/passwd"}, "row": {}}\n',
    b"\xff\xfe\x00" * 1000,
    b"[" * 100_000 + b"\n",
    b'{"record": "A0001", "inp',
]
for wrong in ({"rate": "abc"}, {"rate": "nan"}, {"abstained": ""}, {"contradictions": "1.5"}):
    row = dict.fromkeys(batch.COLUMNS, "") | {"contradictions": "0", "abstained": "0"} | wrong
    DAMAGE.append(
        json.dumps({"record": "A0002", "input": "x", "settings": "x", "files": {}, "row": row}).encode() + b"\n"
    )


def test_a_damaged_journal_costs_work_and_nothing_else(folder, tmp_path):
    records, out = [folder / "A0001", folder / "ward" / "A0002"], tmp_path / "out"
    do(records, {"md": out})
    journal = out / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    jobs, _ = plan(records, {"md": out})
    known = [json.loads(line) for line in lines]
    for damage in DAMAGE:
        journal.write_bytes(lines[1] + damage)
        found = [
            batch.Journal(journal).complete(job, row["input"], row["settings"])
            for job, row in zip(jobs, known, strict=True)
        ]
        assert found == [None, known[1]["row"]]
    assert [one.skipped for one in do(records, {"md": out})] == [False, True]  # after a line that was cut short
    assert [one.skipped for one in do(records, {"md": out})] == [True, True]


def test_a_report_that_is_gone_is_not_complete(folder, tmp_path):
    records, out = [folder / "A0001", folder / "ward" / "A0002"], tmp_path / "out"
    do(records, {"html": out})
    journal = out / JOURNAL
    rows = [json.loads(line) for line in journal.read_bytes().splitlines()]
    rows[0]["files"] = {"html": ""}  # what a file that can't be read has, too
    journal.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "A0001.html").unlink()
    assert [one.skipped for one in do(records, {"html": out})] == [False, True]


def test_two_batches_in_a_folder_are_refused(folder, tmp_path):
    jobs, main = plan([folder], {"md": tmp_path / "out"})
    working = run(jobs, main, Settings(), read_recording, lambda: None)
    next(working)
    with pytest.raises(EcgChatError, match="another command"):
        next(run(jobs, main, Settings(), read_recording, lambda: None))
    working.close()
    assert len(do([folder], {"md": tmp_path / "out"})) == 2


def test_a_recording_is_known_by_all_that_a_report_takes_from_it():
    sample = read_recording(REAL / "A0001")
    changed = [
        dataclasses.replace(sample, name="x"),
        dataclasses.replace(sample, fs=250.0),
        dataclasses.replace(sample, comments=("Rx: x",)),
        dataclasses.replace(sample, notes=("x",)),
        dataclasses.replace(sample, signal=sample.signal + np.float32(1e-3)),
    ]
    assert len({recording_digest(one) for one in [sample, *changed]}) == 6
    assert recording_digest(sample) == recording_digest(read_recording(REAL / "A0001"))


# ------------------------------------------------------------------------------------------- the summary


class Said:
    """A session that gives one answer, and abstains from the last question."""

    classifier = None

    def ask(self, recording, question):
        refused = question.startswith("Is this")
        text = "I can't say." if refused else "The heart rate is 20 bpm."
        return SimpleNamespace(text=text, notes=(), abstained=refused, reason="outside" if refused else "")


def test_the_summary_tells_of_each_recording(folder, tmp_path):
    (folder / "bad.hea").write_text("=cmd() 12 500\n")
    noise = np.random.default_rng(0).normal(0, 0.3, (12, 5000)).astype(np.float32)
    write_recording(dataclasses.replace(read_recording(REAL / "A0001"), name="noise", signal=noise), folder)
    out = tmp_path / "out"
    outcomes = do([folder], {"html": out, "md": out}, asked=Said())
    assert [one.error is not None for one in outcomes] == [False, True, False, False]
    assert outcomes[1].error.__traceback__ is None  # it would keep recordings in memory
    good, bad, unusable, _ = table(out)
    assert good == {
        "record": "A0001",
        "usable": "yes",
        "rate": "101",
        "rhythm": "regular",
        "flags": "Heart rate high; RR interval low; QRS duration high; QTc (Bazett) high; QRS axis high",
        "contradictions": "2",
        "abstained": "1",
        "file": "A0001.html A0001.md",
        "error": "",
    }
    assert bad["error"].startswith(str(folder))
    assert (bad["usable"], bad["file"]) == ("", "")
    assert (unusable["usable"], unusable["rate"], unusable["flags"], unusable["abstained"]) == ("no", "", "", "0")
    page = (out / "summary.html").read_text()
    assert 'href="ward/A0002.html"' in page
    assert "4 recordings: 3 written, 0 unchanged, 1 failed" in page
    assert sorted(path.name for path in out.iterdir() if path.is_file() and "partial" in path.name) == []
    again = do([folder], {"html": out, "md": out}, asked=Said())
    assert [one.skipped for one in again] == [True, False, True, True]  # what failed is tried again


def test_a_spreadsheet_finds_no_formula(tmp_path):
    row = dict.fromkeys(batch.COLUMNS, "") | {"record": '=HYPERLINK("x")', "error": "@x"}
    job = batch.Job(row["record"], Path("x"), {"md": tmp_path / "x.md"})
    files = batch.write_summary([batch.Outcome(job, row)], tmp_path)
    assert [path.name for path in files] == ["summary.csv", "summary.md"]
    assert table(tmp_path)[0]["record"] == '\'=HYPERLINK("x")'
    assert table(tmp_path)[0]["error"] == "'@x"


# ------------------------------------------------------------------------------------------- the command


def test_the_command_writes_a_folder_and_goes_on_after_an_error(capsys, folder, tmp_path):
    (folder / "bad.hea").write_text("")
    out = tmp_path / "out"
    call = ("report", folder, "--html", out, "--no-ask", "--json")
    code, lines, err = run_command(capsys, *call)
    assert code == 2
    rows = [json.loads(line) for line in lines]
    assert [row["record"] for row in rows] == ["A0001", "ward/A0002"]
    assert rows[0] == {
        "record": "A0001",
        "html": str(out / "A0001.html"),
        "usable": True,
        "rate": 101.0,
        "rhythm": "regular",
        "flags": ["Heart rate high", "RR interval low", "QRS duration high", "QTc (Bazett) high", "QRS axis high"],
        "contradictions": 0,
        "abstained": 0,
        "unchanged": False,
    }
    assert any("bad.hea" in line for line in err)
    assert err[-1] == f"ecgchat: 2 written, 0 unchanged, 1 failed; see {out}/summary.html and .csv"
    (folder / "bad.hea").unlink()
    code, lines, err = run_command(capsys, *call)
    assert code == 0
    assert [json.loads(line)["unchanged"] for line in lines] == [True, True]


def test_the_command_takes_details_of_patients(capsys, folder, tmp_path):
    patient = tmp_path / "p.yml"
    patient.write_text("name: Ada Lovelace\n")
    code, lines, _ = run_command(
        capsys, "report", folder / "A0001", "--md", tmp_path / "a.md", "--no-ask", "--patient", patient
    )
    assert (code, lines) == (0, [str(tmp_path / "a.md")])
    assert "Ada Lovelace" in (tmp_path / "a.md").read_text()
    assert (tmp_path / "a-tracing.png").read_bytes().startswith(b"\x89PNG")
    for content, words in (
        ("name: Ada\n", "one person's details for 2 recordings"),
        ("A0001: {name: Ada}\nA000l: {name: Eve}\n", "'A000l' is none of the recordings"),
        ("nmae: Ada\n", "nmae"),
    ):
        patient.write_text(content)
        code, lines, err = run_command(
            capsys, "report", folder, "--md", tmp_path / "out", "--no-ask", "--patient", patient
        )
        assert (code, lines, len(err)) == (2, [], 1)
        assert words in err[0]
    assert not (tmp_path / "out").exists()


def test_the_command_needs_an_output(capsys, folder):
    code, lines, err = run_command(capsys, "report", folder / "A0001")
    assert (code, lines) == (2, [])
    assert any("--html" in line for line in err)

"""The `ecgchat` command as a user meets it: output, exit codes, one clear line for what can't be used."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import wfdb
from command import run_command as run

from ecgchat_lib import cli
from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.paths import data_folder

REAL = sorted((data_folder() / "real_sample").glob("*.hea"))
FIELDS = ["record", "fs", "heart_rate_bpm", "rr_ms", "pr_ms", "qrs_ms", "qt_ms", "qtc_ms", "axis_deg"]
MORE = ["qrs_global_ms", "qtc_fridericia_ms", "st_mv", "transition", "regular", "reasons", "wde", "quality", "notes"]


COMMANDS = [
    "",
    "measure",
    "chat",
    "report",
    "doctor",
    "embed",
    "classify",
    "search",
    "train",
    "train coca",
    "data",
    "data fetch",
    "data pack",
    "course",
    "course run",
    "course build",
    "course list",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    code, out, _ = run(capsys, *command.split(), "--help")
    assert code == 0
    assert any("Usage: ecgchat" in line for line in out)


def test_measure_prints_one_json_object_per_record(capsys):
    code, out, _ = run(capsys, "measure", *REAL, "--json")
    assert code == 0
    rows = [json.loads(line) for line in out]
    assert [row["record"] for row in rows] == [file.stem for file in REAL]
    assert len(rows) == 10
    for row in rows:
        assert row.keys() >= {*FIELDS, *MORE}
        assert row["wde"].startswith(f"RR: {row['rr_ms']:.0f} PR: ")
        assert row["quality"]["usable"] is True
        assert row["fs"] == 500
        assert 30 < row["heart_rate_bpm"] < 200
        assert math.isclose(row["heart_rate_bpm"], 60_000 / row["rr_ms"], rel_tol=0.01)


def test_measure_takes_a_record_with_or_without_extension(capsys):
    base = REAL[0].with_suffix("")
    _, plain, _ = run(capsys, "measure", base, "--json")
    for suffix in (".hea", ".mat"):
        assert run(capsys, "measure", base.with_suffix(suffix), "--json")[1] == plain


def test_one_bad_record_is_told_of_and_the_others_go_on(capsys, tmp_path):
    code, out, err = run(capsys, "measure", tmp_path / "absent", REAL[0], "--json")
    assert code == 2
    assert [json.loads(line)["record"] for line in out] == ["A0001"]
    (line,) = err
    assert "absent" in line
    assert line.startswith("ecgchat: ")


def write(folder, signal, names=LEADS, fs=500, units="mV"):
    """Write a WFDB record named r from a (time, lead) signal."""
    kind = {"units": [units] * len(names), "fmt": ["16"] * len(names), "sig_name": list(names)}
    wfdb.wrsamp("r", fs=fs, p_signal=signal, write_dir=str(folder), **kind)
    return folder / "r"


def real_signal():
    return wfdb.rdrecord(str(REAL[1].with_suffix(""))).p_signal


def truncated(folder):
    record = write(folder, real_signal())
    data = record.with_suffix(".dat").read_bytes()
    record.with_suffix(".dat").write_bytes(data[: len(data) // 2])
    return record


def lying(folder):
    record = write(folder, real_signal())
    text = record.with_suffix(".hea").read_text()
    record.with_suffix(".hea").write_text(text.replace("r 12 500 5000", "r 12 500 5000000000"))
    return record


def elsewhere(folder):
    record = write(folder, real_signal())
    text = record.with_suffix(".hea").read_text()
    record.with_suffix(".hea").write_text(text.replace("r.dat", "/etc/passwd"))
    return record


def garbage(folder):
    (folder / "r.hea").write_bytes(bytes(range(256)) * 4)
    return folder / "r"


def empty(folder):
    (folder / "r.hea").write_bytes(b"")
    return folder / "r"


def all_nan(folder):
    record = write(folder, real_signal())
    record.with_suffix(".dat").write_bytes(b"\x00\x80" * 12 * 5000)  # -32768 is how format 16 says "no value"
    return record


def no_signal(folder):
    (folder / "r.hea").write_text("r 0 500 0\n")
    return folder / "r"


BAD = {
    "missing": lambda folder: folder / "nowhere",
    "a folder": lambda folder: folder,
    "fewer leads": lambda folder: write(folder, real_signal()[:, :8], LEADS[:8]),
    "no signal": no_signal,
    "all NaN": all_nan,
    "truncated": truncated,
    "a header that lies": lying,
    "a file elsewhere": elsewhere,
    "garbage": garbage,
    "empty": empty,
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize(
    "command", [["measure"], ["chat", "-m", "Rhythm?"], ["report", "--pdf", "out.pdf"]], ids=lambda c: c[0]
)
def test_a_record_that_cannot_be_used_is_one_line_and_exit_code_2(capsys, tmp_path, name, command):
    record = BAD[name](tmp_path)
    code, out, err = run(capsys, command[0], record, *command[1:])
    assert code == 2
    assert out == []
    (line,) = err
    assert line.startswith("ecgchat: ")
    assert record.name in line
    assert "Traceback" not in line
    assert not Path("out.pdf").exists()


def test_leads_are_found_by_name_in_any_order_and_spelling(capsys, tmp_path):
    order = np.random.default_rng(3).permutation(12)
    names = [LEADS[k].upper() if k % 2 else LEADS[k].lower() for k in order]
    record = write(tmp_path, real_signal()[:, order], names)
    shuffled = json.loads(run(capsys, "measure", record, "--json")[1][0])
    straight = json.loads(run(capsys, "measure", REAL[1], "--json")[1][0])
    assert shuffled["notes"] == ["leads put into the standard order"]
    for field in FIELDS[2:]:
        assert shuffled[field] == pytest.approx(straight[field], abs=0.2)
    assert shuffled["st_mv"] == pytest.approx(straight["st_mv"], abs=0.002)


def test_other_units_are_converted(capsys, tmp_path):
    record = write(tmp_path, real_signal() * 1000, units="uV")
    converted = json.loads(run(capsys, "measure", record, "--json")[1][0])
    straight = json.loads(run(capsys, "measure", REAL[1], "--json")[1][0])
    for field in FIELDS[2:]:
        assert converted[field] == pytest.approx(straight[field], abs=4)


def test_measure_reads_other_files_when_told_what_they_do_not_say(capsys, tmp_path):
    np.save(tmp_path / "real.npy", real_signal().astype(np.float32))
    options = ("--fs", "500", "--leads", ",".join(LEADS), "--json")
    code, out, _ = run(capsys, "measure", tmp_path / "real.npy", *options)
    straight = json.loads(run(capsys, "measure", REAL[1], "--json")[1][0])
    assert code == 0
    assert json.loads(out[0])["qrs_ms"] == pytest.approx(straight["qrs_ms"], abs=0.2)
    code, _, (line,) = run(capsys, "measure", tmp_path / "real.npy")
    assert code == 2
    assert "fs" in line


def test_the_wde_text_comes_in_two_styles(capsys):
    fibrillation = REAL[8]
    ours = json.loads(run(capsys, "measure", fibrillation, "--json")[1][0])["wde"]
    original = json.loads(run(capsys, "measure", fibrillation, "--json", "--wde", "original")[1][0])["wde"]
    assert "PR: n/a" in ours
    assert original == ours.replace("n/a", "0")


def test_json_line_never_holds_nan():
    assert cli.json_line({"a": math.nan, "b": 1.5, "c": "x"}) == '{"a": null, "b": 1.5, "c": "x"}'


def test_an_error_with_line_breaks_stays_on_one_line(capsys):
    cli._complain(cli.EcgChatError("a\nb\x1b[31m"))
    assert capsys.readouterr().err == "ecgchat: a b?[31m\n"


def test_starting_the_command_does_not_import_torch():
    code = (
        "import sys, ecgchat_lib.cli; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False).returncode == 0


@pytest.mark.slow
def test_chat_works_on_every_real_recording(capsys, tmp_path):
    asked = [(file, text) for file in REAL for text in ("What is the heart rhythm?", "What is the heart rate?")]
    lines = (json.dumps({"record": str(file), "question": text}) for file, text in asked)
    (tmp_path / "questions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    code, out, _ = run(capsys, "chat", "--batch", tmp_path / "questions.jsonl", "--json")
    assert code == 0
    rows = [json.loads(line) for line in out]
    assert [(row["record"], row["question"]) for row in rows] == [(str(file), text) for file, text in asked]
    assert all(len(row["answer"].split()) >= 3 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("file", REAL[:2], ids=lambda file: file.stem)
def test_report_works_on_real_recordings(capsys, tmp_path, file):
    code, out, _ = run(capsys, "report", file, "--pdf", tmp_path / "out.pdf")
    assert code == 0
    assert out == [str(tmp_path / "out.pdf")]
    assert (tmp_path / "out.pdf").read_bytes().startswith(b"%PDF-")

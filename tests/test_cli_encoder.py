"""`ecgchat embed`, `classify` and `search` as a user meets them, and their batches from inside."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from command import run_command as run
from test_cli import BAD

from ecgchat_lib.coca.checkpoint import MINI_FOLDER, load_mini
from ecgchat_lib.coca.embed import embed_recordings, embed_texts
from ecgchat_lib.datasets.cpsc2018 import load_real_sample
from ecgchat_lib.datasets.labels import LABEL_SETS
from ecgchat_lib.datasets.manifest_file import write_manifest
from ecgchat_lib.ecg.filters import bandpass, resample
from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.errors import EcgChatError, RecordError
from ecgchat_lib.evaluate import cli as work
from ecgchat_lib.paths import data_folder

REAL = sorted((data_folder() / "real_sample").glob("*.hea"))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ECGCHAT_CACHE", str(tmp_path / "cache"))


def loaded(path):
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize("command", ["embed", "classify", "search", "train", "train coca"])
def test_every_command_has_help(capsys, command):
    code, out, _ = run(capsys, *command.split(), "--help")
    assert code == 0
    assert any(f"Usage: ecgchat {command}" in line for line in out)


# --- embed


def test_embed_writes_the_readable_ones_in_order_and_tells_of_the_others(capsys, tmp_path):
    given = [REAL[3], tmp_path / "absent", REAL[0].with_suffix(""), REAL[1].with_suffix(".mat")]
    out = tmp_path / "deep" / "x.npz"
    code, told, err = run(capsys, "embed", *given, "--out", out)
    assert code == 2
    assert told == [f"{out}: 3 recordings"]
    (line,) = err
    assert line.startswith("ecgchat: ")
    assert "absent" in line
    arrays = loaded(out)
    assert sorted(arrays) == ["embedding", "record"]
    assert arrays["record"].tolist() == [str(given[0]), str(given[2]), str(given[3])]
    assert arrays["embedding"].dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(arrays["embedding"], axis=1), 1, atol=1e-5)
    recordings = [read_recording(path) for path in (REAL[3], REAL[0], REAL[1])]
    np.testing.assert_allclose(arrays["embedding"], embed_recordings(recordings, load_mini()).numpy(), atol=1e-5)
    assert [path.name for path in out.parent.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("name", BAD)
def test_a_record_that_cannot_be_used_is_one_line_and_the_others_go_on(capsys, tmp_path, name):
    record = BAD[name](tmp_path)
    code, out, err = run(capsys, "classify", record, REAL[0], "--json")
    assert (code, len(out), len(err)) == (2, 1, 1)
    code, out, err = run(capsys, "embed", record, REAL[0], "--out", tmp_path / "x.npz")
    assert (code, len(out), len(err)) == (2, 1, 1)
    assert loaded(tmp_path / "x.npz")["record"].tolist() == [str(REAL[0])]


def test_the_same_call_gives_the_same_bytes(capsys, tmp_path):
    for name in ("a", "b"):
        assert run(capsys, "embed", *REAL[:2], "--out", tmp_path / name)[0] == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nothing_readable_leaves_an_older_file_as_it_is(capsys, tmp_path):
    out = tmp_path / "x.npz"
    out.write_bytes(b"older")
    code, told, err = run(capsys, "embed", tmp_path / "absent", tmp_path / "gone", "--out", out)
    assert (code, told, len(err)) == (2, [], 3)
    assert "not written" in err[-1]
    assert out.read_bytes() == b"older"


def test_a_processed_recording_goes_through_the_same_front_end(capsys, tmp_path):
    raw = read_recording(REAL[1])
    signal = resample(bandpass(raw.signal[:, :5000].astype(float), 500.0, 0.5, 40.0), 500.0, 125.0)
    scaled = (signal - signal.mean(axis=1, keepdims=True)) / signal.std(axis=1, keepdims=True)
    np.save(tmp_path / "processed.npy", scaled.astype(np.float32))
    options = ["--fs", 125, "--leads", ",".join(LEADS), "--out", tmp_path / "x.npz"]
    assert run(capsys, "embed", tmp_path / "processed.npy", *options)[0] == 0
    found = loaded(tmp_path / "x.npz")["embedding"][0]
    recordings = [read_recording(path) for path in REAL]
    near = embed_recordings(recordings, load_mini()).numpy() @ found
    assert near.argmax() == 1


def test_an_npy_without_its_rate_is_an_error_that_says_so(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((12, 5000), np.float32))
    code, _, err = run(capsys, "embed", tmp_path / "x.npy", "--out", tmp_path / "x.npz")
    assert code == 2
    assert "fs" in err[0]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_texts_are_embedded_line_by_line(capsys, tmp_path, end, mark):
    lines = ["normal ECG", "atrial fibrillation, Vorhofflimmern für Ärzte", "left bundle\u2028branch block"]
    (tmp_path / "t.txt").write_bytes((mark + end.join(lines)).encode() + (end.encode() if mark else b""))
    code, told, err = run(capsys, "embed", "--texts", tmp_path / "t.txt", "--out", tmp_path / "t.npz")
    assert (code, err) == (0, [])
    assert told == [f"{tmp_path / 't.npz'}: 3 texts"]
    arrays = loaded(tmp_path / "t.npz")
    assert sorted(arrays) == ["embedding", "text"]
    assert arrays["text"].tolist() == lines
    np.testing.assert_allclose(arrays["embedding"], embed_texts(lines, load_mini()).numpy(), atol=1e-5)


ODD_TEXTS = {
    "empty": (b"", "holds no text"),
    "a blank line": (b"one\n  \nthree\n", "line 2: blank"),
    "a blank end": (b"one\n\n", "line 2: blank"),
    "not utf-8": (b"one\ntwo\n\xff\xfe\n", "line 3: not UTF-8"),
    "utf-16": ("one\n".encode("utf-16"), "line 1: not UTF-8"),
    "a null": (b"one\ntw\x00o\n", "line 2: a control character"),
    "too long": (b"one\n" + b"a" * 6000, "line 2: 6000 characters"),
}


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_odd_texts_are_one_line_and_exit_code_2(capsys, tmp_path, name):
    content, reason = ODD_TEXTS[name]
    (tmp_path / "t.txt").write_bytes(content)
    code, told, err = run(capsys, "embed", "--texts", tmp_path / "t.txt", "--out", tmp_path / "t.npz")
    assert (code, told, len(err)) == (2, [], 1)
    assert reason in err[0]
    assert not (tmp_path / "t.npz").exists()


def test_what_embed_cannot_do_is_said_before_it_begins(capsys, tmp_path):
    (tmp_path / "t.txt").write_text("one")
    (tmp_path / "file").write_text("")
    for arguments in (
        ["--out", tmp_path / "x"],
        [REAL[0], "--texts", tmp_path / "t.txt", "--out", tmp_path / "x"],
        [REAL[0]],
        [REAL[0], "--out", tmp_path],
        [REAL[0], "--out", tmp_path / "file" / "x"],
        ["--texts", tmp_path / "none", "--out", tmp_path / "x"],
        [REAL[0], "--out", tmp_path / "x", "--model", tmp_path],
    ):
        code, told, err = run(capsys, "embed", *arguments)
        assert (code, told) == (2, []), arguments
        assert err
    assert not (tmp_path / "x").exists()


# --- classify


@pytest.mark.parametrize("labels", LABEL_SETS)
def test_classify_prints_one_strict_json_object_per_recording(capsys, labels):
    code, out, err = run(capsys, "classify", *REAL[:2], "--labels", labels, "--json")
    assert (code, err) == (0, [])
    rows = [json.loads(line, parse_constant=pytest.fail) for line in out]
    assert [row["record"] for row in rows] == [str(path) for path in REAL[:2]]
    for row in rows:
        assert list(row["scores"]) == list(LABEL_SETS[labels].classes)
        assert all(isinstance(score, float) for score in row["scores"].values())


def test_classify_goes_on_after_a_bad_recording_and_super_is_the_default(capsys, tmp_path):
    code, out, err = run(capsys, "classify", tmp_path / "absent", REAL[0], "--json")
    assert (code, len(out), len(err)) == (2, 1, 1)
    assert list(json.loads(out[0])["scores"]) == list(LABEL_SETS["super"].classes)
    code, out, _ = run(capsys, "classify", REAL[0])
    assert code == 0
    assert out[0].startswith(f"{REAL[0]}: NORM ")


def test_by_probe_the_scores_are_probabilities_and_unknown_is_null(capsys):
    code, out, err = run(capsys, "classify", REAL[0], "--how", "probe", "--labels", "rhythm", "--json")
    assert (code, err) == (0, [])
    scores = json.loads(out[0], parse_constant=pytest.fail)["scores"]
    assert list(scores) == list(LABEL_SETS["rhythm"].classes)
    assert scores["PSVT"] is None  # too rare to be learned
    assert all(0 <= score <= 1 for score in scores.values() if score is not None)
    assert scores["SR"] is not None
    assert "PSVT n/a" in run(capsys, "classify", REAL[0], "--how", "probe", "--labels", "rhythm")[1][0]


def test_a_classifier_of_another_encoder_is_refused(capsys, tmp_path):
    from safetensors.numpy import load_file, save_file

    from ecgchat_lib.coca import checkpoint

    folder = tmp_path / "model"
    shutil.copytree(data_folder() / MINI_FOLDER, folder)
    weights = load_file(folder / checkpoint.WEIGHTS)
    weights["encoder.proj"] = weights["encoder.proj"] + 1
    save_file(weights, folder / checkpoint.WEIGHTS)
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    manifest["sha256"][checkpoint.WEIGHTS] = checkpoint._sha256(folder / checkpoint.WEIGHTS)
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    code, out, err = run(capsys, "classify", REAL[0], "--how", "probe", "--model", folder)
    assert (code, out, len(err)) == (2, [], 1)
    assert "fitted on an encoder" in err[0]
    assert run(capsys, "classify", REAL[0], "--model", folder)[0] == 0


def test_unknown_labels_and_ways_are_refused(capsys):
    assert run(capsys, "classify", REAL[0], "--labels", "nonsense")[0] == 2
    assert run(capsys, "classify", REAL[0], "--how", "magic")[0] == 2
    assert run(capsys, "classify")[0] == 2


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_batches_keep_the_order_and_errors_their_places(size):
    model, recordings = load_mini(), [read_recording(path) for path in REAL[:4]]
    largest = 0

    def read(number):
        if number % 3 == 1:
            raise RecordError(number, "can't be read", "Leave it")
        return recordings[number % 4]

    def encode(windows):
        nonlocal largest
        largest = max(largest, len(windows))
        return windows[:, 1].numpy()

    found = list(work.in_batches(range(9), read, encode, model, size=size))
    assert [number for number, _ in found] == list(range(9))
    assert [number for number, row in found if isinstance(row, EcgChatError)] == [1, 4, 7]
    np.testing.assert_array_equal(found[0][1], found[8][1])
    assert largest <= size


def test_numbers_that_are_not_finite_are_an_error_of_that_recording():
    recording = read_recording(REAL[0])

    def encode(windows):
        return np.array([[np.inf, 1], [0.5, np.nan], [np.nan, np.nan]])[: len(windows)]

    found = list(work.in_batches(range(3), lambda _: recording, encode, load_mini()))
    assert [isinstance(row, EcgChatError) for _, row in found] == [True, False, True]


# --- search


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "sample.parquet"
    write_manifest(load_real_sample(), path)
    return path


def test_search_ranks_by_cosine_and_tells_what_the_manifest_says(capsys, manifest):
    query = "atrial fibrillation with rapid response"
    code, out, err = run(capsys, "search", query, "--in", manifest, "--top", 4, "--json")
    assert (code, err) == (0, [])
    rows = [json.loads(line, parse_constant=pytest.fail) for line in out]
    sample = load_real_sample()
    ecg = embed_recordings([read_recording(path) for path in sample["path"]], load_mini())
    cosines = (ecg @ embed_texts([query], load_mini())[0]).numpy()
    order = np.argsort(-cosines)[:4]
    assert [row["record"] for row in rows] == sample["record"].iloc[order].tolist()
    np.testing.assert_allclose([row["similarity"] for row in rows], cosines[order], atol=1e-4)
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["statements"] == [code for code, _ in sample["statements"].iloc[order[0]]]
    code, out, _ = run(capsys, "search", query, "--in", manifest, "--top", 99)
    assert (code, len(out)) == (0, 10)
    assert out[0].split()[0] == "1"


def test_a_second_search_reads_nothing_and_a_changed_recording_is_read_again(capsys, tmp_path, monkeypatch):
    from ecgchat_lib.ecg import formats

    for path in (*REAL[:2], *(path.with_suffix(".mat") for path in REAL[:2])):
        shutil.copy(path, tmp_path)
    (tmp_path / "m.csv").write_text("path,report\nA0001,one\nA0002,\nA9999,three\n")
    calls = []
    real = formats.read_any
    monkeypatch.setattr(formats, "read_any", lambda path, **options: calls.append(path) or real(path, **options))
    first = run(capsys, "search", "normal ECG", "--in", tmp_path / "m.csv", "--json")
    assert (first[0], len(first[1]), len(first[2])) == (2, 2, 1)
    assert "A9999" in first[2][0]
    assert {json.loads(line)["report"] for line in first[1]} == {"one", None}
    assert len(calls) == 3
    assert run(capsys, "search", "normal ECG", "--in", tmp_path / "m.csv", "--json") == first
    assert len(calls) == 3
    shutil.copy(REAL[2].with_suffix(".mat"), tmp_path / "A0002.mat")
    shutil.copy(REAL[2], tmp_path / "A0002.hea")
    text = (tmp_path / "A0002.hea").read_text().replace("A0003", "A0002")
    (tmp_path / "A0002.hea").write_text(text)
    again = run(capsys, "search", "normal ECG", "--in", tmp_path / "m.csv", "--json")
    assert len(calls) == 6
    assert again[1] != first[1]


def test_a_damaged_cache_is_made_again(capsys, manifest, tmp_path):
    first = run(capsys, "search", "normal ECG", "--in", manifest, "--json")
    for file in (tmp_path / "cache" / "search").rglob("*.npy"):
        file.write_bytes(file.read_bytes()[:-4] + b"\x00\x00\xc0\x7f")
    assert run(capsys, "search", "normal ECG", "--in", manifest, "--json") == first


def test_a_packed_store_is_searched_like_its_manifest(capsys, manifest, tmp_path):
    assert run(capsys, "data", "pack", manifest, "--out", tmp_path / "store", "--jobs", 1)[0] == 0
    found = [
        [json.loads(line)["record"] for line in run(capsys, "search", "normal ECG", "--in", source, "--json")[1]]
        for source in (manifest, tmp_path / "store")
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 10


def test_what_cannot_be_searched_is_one_line(capsys, manifest, tmp_path):
    (tmp_path / "no.csv").write_text("record\nA0001\n")
    (tmp_path / "twice.csv").write_text("record,path\na,x\na,y\n")
    (tmp_path / "none.csv").write_text("path\nnowhere\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    for query, source in (
        ("  ", manifest),
        ("normal", tmp_path / "absent.parquet"),
        ("normal", tmp_path / "bad.parquet"),
        ("normal", tmp_path / "no.csv"),
        ("normal", tmp_path / "twice.csv"),
        ("normal", tmp_path),
    ):
        code, out, err = run(capsys, "search", query, "--in", source)
        assert (code, out, len(err)) == (2, [], 1), (query, source)
    code, out, err = run(capsys, "search", "normal", "--in", tmp_path / "none.csv")
    assert (code, out, len(err)) == (2, [], 2)
    assert run(capsys, "search", "normal", "--in", manifest, "--top", 0)[0] == 2


def test_a_report_cannot_move_the_cursor(capsys, tmp_path):
    (tmp_path / "m.csv").write_text(f'path,report\n{REAL[0]},"bad\x1b[2J\nnews"\n')
    code, out, _ = run(capsys, "search", "normal ECG", "--in", tmp_path / "m.csv")
    assert (code, len(out)) == (0, 1)
    assert out[0].isprintable()

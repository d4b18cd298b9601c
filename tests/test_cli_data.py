"""`ecgchat data` as a user meets it: output, exit codes, one clear line for what can't be used."""

import hashlib
import json
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from command import run_command

from ecgchat_lib.datasets.manifest_file import read_manifest
from ecgchat_lib.datasets.packed import PackedStore
from ecgchat_lib.datasets.sources import source_names
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.paths import data_folder

SAMPLE = data_folder() / "real_sample"


def run(capsys, *arguments):
    return run_command(capsys, "data", *arguments)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror of LUDB with three recordings; its address."""
    monkeypatch.setenv("NO_PROXY", "*")
    files = {"ludb.csv": b"ID\n1\n", "LICENSE.txt": b"ODC-By\n"}
    for name in ("A0001", "A0002", "A0003"):
        for suffix in (".hea", ".mat"):
            files[f"data/{name}{suffix}"] = (SAMPLE / f"{name}{suffix}").read_bytes()
    root = tmp_path / "mirror"
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    sums = "".join(f"{hashlib.sha256(data).hexdigest()} {name}\n" for name, data in files.items())
    (root / "SHA256SUMS.txt").write_text(sums)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("command", ["", "list", "fetch", "verify", "card", "manifest", "pack"])
def test_every_command_has_help(capsys, command):
    code, out, _ = run(capsys, *command.split(), "--help")
    assert code == 0
    assert any("Usage: ecgchat data" in line for line in out)


def test_list_names_every_dataset(capsys):
    code, out, err = run(capsys, "list", "--json")
    assert (code, err) == (0, [])
    rows = [json.loads(line) for line in out]
    assert [row["name"] for row in rows] == source_names()
    assert {row["access"] for row in rows} == {"open", "credentialed", "local"}
    assert len(run(capsys, "list")[1]) == len(rows)


def test_fetch_verify_repair(capsys, mirror, tmp_path):
    folder = tmp_path / "ludb"
    code, out, err = run(capsys, "fetch", "ludb", "--to", folder, "--base-url", mirror, "--json")
    assert code == 0
    (row,) = map(json.loads, out)
    assert (row["recordings"], row["files"], row["fetched"], row["failed"]) == (3, 8, 8, 0)
    assert any("8 files" in line for line in err)
    assert any("mirror" in line and "sha256" in line for line in err)
    code, out, err = run(capsys, "verify", folder)
    assert (code, out) == (0, [f"{folder}: 8 right, 0 missing, 0 damaged, 0 extra"])
    assert "first fetch" in err[-1]
    damaged = folder / "data" / "A0002.mat"
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    (folder / "ludb.csv").unlink()
    code, out, err = run(capsys, "verify", folder, "--json")
    assert code == 1
    assert json.loads(out[0]) == {"folder": str(folder), "right": 6, "missing": 1, "damaged": 1, "extra": 0}
    assert "missing: ludb.csv" in err
    assert "damaged: data/A0002.mat" in err
    code, out, _ = run(capsys, "verify", folder, "--repair")
    assert (code, out) == (0, [f"{folder}: 8 right, 0 missing, 0 damaged, 0 extra"])


def test_fetch_a_subset_and_again(capsys, mirror, tmp_path):
    folder = tmp_path / "ludb"
    arguments = ("fetch", "ludb", "--to", folder, "--base-url", mirror, "--subset", 2)
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert "6 files fetched" in out[0]
    assert len(list(folder.rglob("*.hea"))) == 2
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert "0 files fetched" in out[0]
    assert "6 already there" in out[0]


def test_a_fetch_with_a_missing_file_ends_with_1_and_names_it(capsys, mirror, tmp_path):
    (tmp_path / "mirror" / "data" / "A0003.mat").unlink()
    code, out, err = run(capsys, "fetch", "ludb", "--to", tmp_path / "ludb", "--base-url", mirror)
    assert code == 1
    assert "1 failed" in out[0]
    (line,) = [line for line in err if line.startswith("failed: ")]
    assert "data/A0003.mat" in line
    assert "404" in line


WRONG = {
    "credentialed": (["fetch", "mimic_iv"], 2, "credentialed"),
    "made here": (["fetch", "synthetic"], 2, "write_synthetic"),
    "unknown": (["fetch", "ptb"], 2, "Known datasets"),
    "no subset": (["fetch", "sph", "--subset", "3"], 2, "one archive"),
    "subset of none": (["fetch", "ludb", "--subset", "0"], 2, "at least 1"),
    "not an address": (["fetch", "ludb", "--base-url", "nowhere"], 2, "https://"),
    "another mirror's list": (["fetch", "ptbxl", "--base-url", "MIRROR"], 1, "another sha256"),
    "verify nothing": (["verify", "nowhere"], 2, "neither"),
    "verify no list": (["verify", "EMPTY"], 2, "SHA256SUMS.txt"),
    "no card": (["card", "nothing"], 2, "no card"),
    "no manifest": (["pack", "nowhere.parquet", "--out", "store"], 2, "no such file"),
    "no recordings": (["pack", "EMPTY", "--out", "store"], 2, "no WFDB header"),
    "no jobs": (["pack", str(SAMPLE), "--out", "store", "--jobs", "0"], 2, "jobs"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_done_is_one_line(capsys, mirror, tmp_path, monkeypatch, name):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    arguments, expected, words = WRONG[name]
    places = {"MIRROR": mirror, "EMPTY": "empty"}
    arguments = [places.get(word, word) for word in arguments]
    if arguments[0] == "fetch":
        arguments += ["--to", "set"]
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (expected, [])
    (line,) = err
    assert line.startswith("ecgchat: ")
    assert words in line
    assert "Traceback" not in line
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["ptbxl", "cpsc2018", "chapman", "synthetic"])
def test_card_prints_what_to_know(capsys, name):
    code, out, _ = run(capsys, "card", name)
    assert code == 0
    assert any(line.startswith("license") for line in out)
    assert any("before using it" in line for line in out)


def test_manifest_then_pack_then_verify(capsys, tmp_path):
    code, out, _ = run(capsys, "manifest", "cpsc2018", SAMPLE, "--out", tmp_path / "m.parquet")
    assert code == 0
    assert "10 recordings" in out[0]
    assert len(read_manifest(tmp_path / "m.parquet")) == 10
    store = tmp_path / "store"
    code, out, _ = run(capsys, "pack", tmp_path / "m.parquet", "--out", store, "--jobs", 1)
    assert code == 0
    assert "10 recordings, each exact to the last bit; 0 not packed" in out[0]
    assert run(capsys, "verify", store)[:2] == (0, [f"{store}: 10 records in 1 blocks, 0 damaged"])
    block = store / "block-00000.i16"
    data = block.read_bytes()
    block.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code, out, err = run(capsys, "verify", store, "--json")
    assert code == 1
    assert json.loads(out[0])["damaged"] == 1
    assert "block-00000.i16" in err[0]


@pytest.mark.slow
def test_pack_a_folder_in_two_processes_lists_what_failed(capsys, tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    for name in ("A0001", "A0002"):
        for suffix in (".hea", ".mat"):
            (tmp_path / "in" / "a" / f"{name}{suffix}").write_bytes((SAMPLE / f"{name}{suffix}").read_bytes())
    (tmp_path / "in" / "bad.hea").write_text("bad 12 500 5000\n")
    code, out, err = run(capsys, "pack", tmp_path / "in", "--out", tmp_path / "store", "--json")
    assert code == 0
    facts = json.loads(out[0])
    assert (facts["records"], facts["not_packed"], facts["inexact"]) == (2, 1, 0)
    assert any(line.startswith("not packed: bad: ") for line in err)
    with PackedStore(tmp_path / "store") as store:
        assert (store["a/A0002"].signal == read_recording(SAMPLE / "A0002").signal).all()


def test_pack_a_dataset_by_name(capsys, tmp_path):
    store = tmp_path / "store"
    code, _, _ = run(capsys, "pack", SAMPLE, "--dataset", "cpsc2018", "--out", store, "--jobs", 1)
    assert code == 0
    with PackedStore(store) as opened:
        assert "statements" in opened.manifest().columns


def test_the_commands_do_not_import_torch():
    code = (
        "import sys, ecgchat_lib.cli, ecgchat_lib.datasets.packed, ecgchat_lib.datasets.fetch;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'requests', 'pooch', 'pandas', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

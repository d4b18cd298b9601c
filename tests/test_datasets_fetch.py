"""Fetching from a server that drops, truncates, stalls and lies; choosing subsets; checking what is on the disk."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgchat_lib.datasets import fetch as fetching
from ecgchat_lib.datasets import transfer
from ecgchat_lib.datasets.fetch import STATE, SUMS, fetch, read_chosen, refetch
from ecgchat_lib.datasets.sources import (
    choose_subset,
    load_source,
    patients_of,
    read_sums,
    recordings_in,
    source_names,
)
from ecgchat_lib.datasets.transfer import FetchError, Patience
from ecgchat_lib.datasets.verify import verify
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError

QUICK = Patience(attempts=3, backoff=0.01, connect=5, stall=0.4)


class Server(ThreadingHTTPServer):
    """Serves `files` honestly, except where `plans` names what to do at the next requests of a path."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.plans, self.asked = {}, {}, []
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/set/1.0/"

    def ranges(self, name):
        return [start for path, start in self.asked if path == name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        name = self.path.removeprefix("/set/1.0/")
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.server.asked.append((name, start))
        plans = self.server.plans.get(name, [])
        plan = plans.pop(0) if plans else honest
        plan(self, self.server.files.get(name), start)

    def answer(self, status, length=None, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        if length is not None:
            self.send_header("Content-Length", str(length))
        else:
            self.close_connection = True
        self.end_headers()

    def body(self, content, start, length=None):
        """Send the headers for the rest of `content`, as a server that can resume does."""
        rest = content[start:]
        whole = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self.answer(206 if start else 200, len(rest) if length is None else length, **whole)
        return rest

    def hang_up(self):
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(2)


def honest(handler, content, start):
    if content is None:
        handler.answer(404, 0)
    elif start >= len(content) > 0 and start:
        handler.answer(416, 0, Content_Range=f"bytes */{len(content)}")
    else:
        handler.wfile.write(handler.body(content, start))


def drops(after):
    def plan(handler, content, start):
        handler.wfile.write(handler.body(content, start)[:after])
        handler.hang_up()

    return plan


def stalls(handler, content, start):
    handler.wfile.write(handler.body(content, start)[:20])
    handler.wfile.flush()
    handler.server.closing.wait(10)
    handler.close_connection = True


def trickles(handler, content, start):
    rest = handler.body(content, start)
    try:
        for k in range(len(rest)):
            handler.wfile.write(rest[k : k + 1])
            handler.wfile.flush()
            if handler.server.closing.wait(0.05):
                break
    except OSError:
        pass
    handler.close_connection = True


def truncates_in_silence(handler, content, start):
    """No length, and half of the file: nothing but the sha256 can tell."""
    handler.answer(200)
    handler.wfile.write(content[: len(content) // 2])
    handler.hang_up()


def wrong_bytes(handler, content, start):
    handler.wfile.write(handler.body(bytes(byte ^ 1 for byte in content), start))


def length(announced):
    def plan(handler, content, start):
        handler.answer(200, announced(len(content)))
        handler.wfile.write(content)
        handler.hang_up()

    return plan


def ignores_range(handler, content, start):
    handler.wfile.write(handler.body(content, 0))


def resumes_elsewhere(handler, content, start):
    handler.answer(206, len(content), Content_Range=f"bytes 0-{len(content) - 1}/{len(content)}")
    handler.wfile.write(content)


def status(code, **headers):
    def plan(handler, content, start):
        handler.answer(code, 0, **headers)

    return plan


def endless(handler, content, start):
    handler.answer(200)
    try:
        while not handler.server.closing.is_set():
            handler.wfile.write(b"x" * 65536)
    except OSError:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with Server() as running:
        yield running
        running.closing.set()
        running.shutdown()


@pytest.mark.parametrize("where", ["under a file", "a file"])
def test_a_folder_that_cannot_be_made_is_one_clear_error(server, tmp_path, where):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EcgChatError, match="can't be written"):
        get(publish(server), tmp_path / "file" / "set" if where == "under a file" else tmp_path / "file")


PATIENTS = [1, 2, 1, 3, 3, 3, 4, 5]


def publish(server, folder="records500/", size=3000):
    """Put a dataset in PTB-XL's layout on the server; return its source."""
    rng = np.random.default_rng(5)
    files = {}
    for k in range(1, len(PATIENTS) + 1):
        files[f"{folder}00000/{k:05d}_hr.hea"] = f"{k:05d}_hr 12 500 5000\n".encode()
        files[f"{folder}00000/{k:05d}_hr.dat"] = rng.bytes(size)
    rows = [f"{k},{PATIENTS[k - 1]}.0,{folder}00000/{k:05d}_hr" for k in range(1, len(PATIENTS) + 1)]
    files["ptbxl_database.csv"] = "\n".join(["ecg_id,patient_id,filename_hr", *rows, ""]).encode()
    files["scp_statements.csv"] = b",description\nNORM,normal\n"
    files["LICENSE.txt"] = b"CC BY 4.0\n"
    files["records100/00000/00001_lr.dat"] = b"left out"
    server.files.update(files)
    relist(server)
    return replace(load_source("ptbxl"), base_url=server.url, list_sha256=None, max_bytes=1_000_000)


def relist(server):
    names = sorted(name for name in server.files if name != SUMS)
    server.files[SUMS] = "".join(f"{hashlib.sha256(server.files[n]).hexdigest()} {n}\n" for n in names).encode()


DAT = "records500/00000/00001_hr.dat"
HEA = "records500/00000/00001_hr.hea"


def get(source, folder, **more):
    return fetch(source, folder, patience=QUICK, **more)


def contents(folder):
    """Return every file of a dataset's folder except the notes of `fetch`."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and STATE not in path.parts
    }


def test_an_honest_server(server, tmp_path):
    source = publish(server)
    summary = get(source, tmp_path)
    expected = {name: data for name, data in server.files.items() if not name.startswith("records100")}
    assert contents(tmp_path) == expected
    assert (summary.fetched, summary.present, summary.failed) == (19, 0, [])
    assert summary.recordings == len(PATIENTS)
    assert "doesn't know its sha256" in " ".join(summary.notes)
    assert verify(tmp_path).sound


def test_the_second_call_fetches_nothing(server, tmp_path):
    source = publish(server)
    get(source, tmp_path)
    before = len(server.asked)
    summary = get(source, tmp_path)
    assert (summary.fetched, summary.present) == (0, 19)
    assert len(server.asked) == before


RECOVERS = {
    "drops": [drops(1000), drops(500)],
    "drops at once": [drops(0), drops(0)],
    "drops ten times, each with progress": [drops(250)] * 10,
    "stalls": [stalls],
    "trickles": [trickles],
    "truncates in silence": [truncates_in_silence],
    "wrong bytes once": [wrong_bytes],
    "announces too much": [length(lambda n: n + 500)],
    "announces too little": [length(lambda n: n - 500)],
    "ignores Range": [drops(1000), ignores_range],
    "resumes elsewhere": [drops(1000), resumes_elsewhere],
    "overloaded": [status(500), status(503, Retry_After=0)],
    "too many requests": [status(429, Retry_After="0")],
    "redirect on the server": [status(302, Location=f"/set/1.0/{HEA}x")],
}


@pytest.mark.parametrize("name", RECOVERS)
def test_recovers_from_a_server_that(server, tmp_path, name):
    source = publish(server)
    server.files[f"{HEA}x"] = server.files[DAT]
    server.plans[DAT] = list(RECOVERS[name])
    summary = get(source, tmp_path)
    assert summary.failed == []
    assert (tmp_path / DAT).read_bytes() == server.files[DAT]
    assert verify(tmp_path).sound


def test_a_cut_connection_is_resumed_where_it_broke(server, tmp_path):
    source = publish(server)
    server.plans[DAT] = [drops(1000), drops(500)]
    get(source, tmp_path)
    assert server.ranges(DAT) == [0, 1000, 1500]


FAILS = {
    "sends wrong bytes always": ([wrong_bytes] * 9, "another sha256"),
    "drops at once always": ([drops(0)] * 9, "tries"),
    "stalls always": ([status(500)] * 9, "500"),
    "has no such file": ([status(404)], "404"),
    "wants a login": ([status(401)], "login"),
    "forbids": ([status(403)], "login"),
    "lets only browsers pass": ([status(202)], "browser"),
    "redirects elsewhere": ([status(302, Location="http://127.0.0.2/login")], "127.0.0.2"),
    "redirects to another port": ([status(302, Location="http://127.0.0.1:9/x")], "127.0.0.1:9"),
    "redirects to a file": ([status(302, Location="file:///etc/passwd")], "redirected"),
    "redirects in a circle": ([status(302, Location=f"/set/1.0/{DAT}")] * 9, "redirects"),
    "announces a terabyte": ([length(lambda n: 10**12)], "Refused"),
    "never stops sending": ([endless], "Refused"),
}


@pytest.mark.parametrize("name", FAILS)
def test_one_file_that_cannot_be_had_does_not_keep_the_others(server, tmp_path, name):
    source = publish(server)
    plans, words = FAILS[name]
    server.plans[DAT] = list(plans)
    summary = get(source, tmp_path)
    ((failed, reason),) = summary.failed
    assert failed == DAT
    assert words in reason
    assert not (tmp_path / DAT).exists()
    assert summary.fetched == 18
    report = verify(tmp_path)
    assert report.missing == [DAT]
    assert report.damaged == report.extra == []
    server.plans.clear()  # the server has mended its ways
    assert get(source, tmp_path).failed == []
    assert verify(tmp_path).sound


def test_a_dead_server_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "_GIVE_UP", 5)
    source = publish(server)
    for name in server.files:
        if name.startswith("records500"):
            server.plans[name] = [status(404)] * 3
    summary = get(source, tmp_path, jobs=1)
    assert "not tried" in summary.failed[-1][1]
    assert len(summary.failed) < 10


def test_no_server_at_all_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    source = replace(load_source("ludb"), base_url="http://127.0.0.1:9/")
    with pytest.raises(FetchError, match="3 tries"):
        get(source, tmp_path)


LISTS = {
    "a login page": b"<html>Log in</html>\n",
    "empty": b"",
    "cut": b"0" * 64 + b" LICENSE.txt\n" + b"0" * 30,
    "climbs out": b"0" * 64 + b" ../outside\n",
    "absolute": b"0" * 64 + b" /etc/passwd\n",
    "a drive": b"0" * 64 + b" C:/x\n",
    "backslashes": b"0" * 64 + b" a\\..\\..\\x\n",
    "a device": b"0" * 64 + b" records500/con.hea\n",
    "our own notes": b"0" * 64 + b" .ecgchat/source.json\n",
    "escape codes": b"0" * 64 + b" a\x1b[31mb\n",
    "two truths": b"0" * 64 + b" a\n" + b"1" * 64 + b" a\n",
    "another dataset": b"0" * 64 + b" other/1.hea\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_that_is_none_is_refused_and_not_kept(server, tmp_path, name):
    source = publish(server)
    good, server.files[SUMS] = server.files[SUMS], LISTS[name]
    with pytest.raises(EcgChatError):
        get(source, tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    if name != "another dataset":
        server.files[SUMS] = good
        assert get(source, tmp_path / "set").failed == []


def test_a_list_that_changes_is_noticed(server, tmp_path):
    source = publish(server)
    get(source, tmp_path)
    (tmp_path / SUMS).write_bytes((tmp_path / SUMS).read_bytes() + b"0" * 64 + b" new.txt\n")
    with pytest.raises(EcgChatError, match="first fetch"):
        get(source, tmp_path)
    with pytest.raises(EcgChatError, match="the list itself was changed"):
        verify(tmp_path)


def test_a_pinned_list_is_held_to(server, tmp_path):
    source = publish(server)
    right = hashlib.sha256(server.files[SUMS]).hexdigest()
    assert get(replace(source, list_sha256=right), tmp_path / "right").notes == []
    with pytest.raises(FetchError, match="another sha256"):
        get(load_source("ptbxl"), tmp_path / "wrong", base_url=server.url)


def test_too_small_a_disk_is_said_before_anything_is_fetched(server, tmp_path, monkeypatch):
    source = publish(server)
    real = transfer.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        fetching.shutil, "disk_usage", lambda path: real._replace(free=transfer.RESERVE_BYTES + 500_000)
    )
    with pytest.raises(EcgChatError, match=r"needs about 0\.01 GB more"):
        get(source, tmp_path)
    assert set(contents(tmp_path)) <= {SUMS}
    assert get(replace(source, record_bytes=1, also_bytes=1), tmp_path).failed == []


def test_a_disk_that_fills_up_fails_the_file(server, tmp_path, monkeypatch):
    source = replace(publish(server), record_bytes=0, also_bytes=0)
    real = transfer.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: real._replace(free=transfer.RESERVE_BYTES + 2000))
    summary = get(source, tmp_path)
    assert len(summary.failed) == 8
    assert all("Make room" in reason for _, reason in summary.failed)


def test_the_user_may_say_no(server, tmp_path):
    asked = []
    with pytest.raises(FetchError, match="nothing was fetched"):
        get(publish(server), tmp_path, confirm=lambda *counts: asked.append(counts))
    assert asked[0][0] == 19


def test_a_subset_holds_whole_recordings_and_whole_patients(server, tmp_path):
    source = publish(server)
    summary = get(source, tmp_path, subset=3)
    there = sorted(name for name in contents(tmp_path) if name.endswith(".hea"))
    assert [name[-12:-7] for name in there] == ["00001", "00002", "00003"]  # patient 1 has 1 and 3
    assert all((tmp_path / name.replace(".hea", ".dat")).is_file() for name in there)
    assert summary.recordings == 3
    assert verify(tmp_path).sound
    get(source, tmp_path, subset=4)  # patient 3 has three recordings and doesn't fit; patient 4 does
    assert sorted(name[-12:-7] for name in contents(tmp_path) if name.endswith(".hea"))[-1] == "00007"
    assert len(read_chosen(tmp_path)) == 3 + 2 * 4


def test_a_subset_where_no_patients_are_named(server, tmp_path):
    publish(server, folder="data/")
    source = replace(load_source("ludb"), base_url=server.url, max_bytes=1_000_000)
    assert "names no patients" in " ".join(get(source, tmp_path, subset=2).notes)
    assert sum(name.endswith(".hea") for name in contents(tmp_path)) == 2


@given(st.lists(st.integers(0, 6), min_size=1, max_size=25), st.integers(1, 30))
def test_no_patient_is_half_inside_a_subset(patients, n):
    names = [f"r{k}" for k in range(len(patients))]
    of = {name: str(patient) for name, patient in zip(names, patients, strict=True)}
    chosen = choose_subset(names, of, n)
    assert len(chosen) <= n
    assert len(set(chosen)) == len(chosen)
    inside = {of[name] for name in chosen}
    assert not inside & {of[name] for name in names if name not in chosen}
    assert (not chosen) == (min(Counter(patients).values()) > n)
    if max(Counter(patients).values()) == 1:
        assert chosen == names[:n]


def test_recordings_are_grouped_and_ordered():
    names = ["data/10.hea", "data/10.dat", "data/2.dat", "data/2.hea", "data/2.avf", "data/3.dat", "x/1.hea", "data/R"]
    assert recordings_in(names, "data/") == {
        "data/2": ["data/2.avf", "data/2.dat", "data/2.hea"],
        "data/10": ["data/10.dat", "data/10.hea"],
    }


def test_patients_come_in_the_order_of_the_table(tmp_path):
    (tmp_path / "t.csv").write_text("subject_id,path\n7,b\n,a\n7,c.hea\n")
    source = load_source("mimic_iv_ecg")
    assert patients_of(source, tmp_path / "t.csv") == {"b": "7", "a": "unknown-1", "c": "7"}
    with pytest.raises(EcgChatError, match="columns"):
        patients_of(load_source("ptbxl"), tmp_path / "t.csv")


def test_both_forms_of_lists_are_read(tmp_path):
    digest = "A" * 64
    (tmp_path / SUMS).write_text(f"{digest}  a b.txt\n{digest} *dir/c\r\n\n{digest} ./d\n")
    assert read_sums(tmp_path / SUMS) == {name: digest.lower() for name in ("a b.txt", "dir/c", "d")}


@pytest.mark.parametrize("name", ["mimic_iv", "synthetic"])
def test_what_cannot_be_fetched_is_explained(tmp_path, name):
    with pytest.raises(MissingPartError) as caught:
        get(load_source(name), tmp_path / "set")
    text = str(caught.value)
    assert ("credentialed" in text and "physionet" in text) or "write_synthetic" in text
    assert not (tmp_path / "set").exists()


def test_every_source_is_complete():
    for name in source_names():
        source = load_source(name)
        assert all((source.title, source.version, source.license, source.page))
        assert source.access in ("open", "credentialed", "local")
        if source.access == "open":
            assert source.base_url.startswith("https://")
            assert source.base_url.endswith("/")
            assert source.max_bytes > 0
            assert source.total_bytes > 1e7
            assert source.files or source.records.endswith("/")
        else:
            assert source.how
    with pytest.raises(MissingPartError, match="Known datasets"):
        load_source("ptb")


@pytest.mark.parametrize("wrong", [{"subset": 0}, {"jobs": 0}, {"jobs": 99}, {"base_url": "ftp://x"}])
def test_calls_out_of_range(server, tmp_path, wrong):
    with pytest.raises(ParameterError):
        get(publish(server), tmp_path, **wrong)


def test_verify_tells_missing_damaged_and_extra_and_refetch_mends_only_those(server, tmp_path):
    source = publish(server)
    get(source, tmp_path)
    (tmp_path / HEA).unlink()
    (tmp_path / DAT).write_bytes(b"x" + server.files[DAT][1:])
    (tmp_path / "notes.txt").write_text("mine")
    report = verify(tmp_path)
    assert (report.missing, report.damaged, report.extra, report.right) == ([HEA], [DAT], ["notes.txt"], 17)
    before = len(server.asked)
    summary = refetch(source, tmp_path, [*report.missing, *report.damaged], patience=QUICK)
    assert summary.fetched == 2
    assert sorted(name for name, _ in server.asked[before:]) == [DAT, HEA]
    assert verify(tmp_path).sound
    assert verify(tmp_path).extra == ["notes.txt"]


def test_a_folder_filled_by_other_means_is_verified_and_taken_over(server, tmp_path):
    source = publish(server)
    for name, data in server.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    report = verify(tmp_path)
    assert report.sound
    assert "nothing is known" in report.notes[0]
    assert get(source, tmp_path).fetched == 0
    with pytest.raises(MissingPartError):
        verify(tmp_path / "records500")


def test_two_fetches_at_once_keep_out_of_each_others_way(server, tmp_path):
    source = publish(server)
    server.plans[DAT] = [stalls, stalls]
    patient = replace(QUICK, stall=3.0)
    first = threading.Thread(target=lambda: fetch(source, tmp_path, patience=patient))
    first.start()
    while not server.ranges(DAT):
        time.sleep(0.01)
    with pytest.raises(EcgChatError, match="another command"):
        get(source, tmp_path)
    server.closing.set()
    first.join()


KILLED = """
import sys
from dataclasses import replace
from pathlib import Path
from ecgchat_lib.datasets.fetch import fetch
from ecgchat_lib.datasets.sources import load_source
source = replace(load_source("ptbxl"), base_url=sys.argv[1], list_sha256=None)
fetch(source, Path(sys.argv[2]))
"""


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is Unix")
def test_a_killed_fetch_goes_on_where_it_was(server, tmp_path):
    source = publish(server, size=50_000)
    server.plans[DAT] = [stalls]
    process = subprocess.Popen([sys.executable, "-c", KILLED, server.url, str(tmp_path)])
    part = tmp_path / STATE / "parts" / f"{DAT}.part"
    deadline = time.monotonic() + 60
    while not (part.is_file() and sum(name.endswith(".dat") for name, _ in server.asked) == 8):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (tmp_path / "records500/00000/tmpabcd_123").write_bytes(b"litter of pooch")
    summary = get(source, tmp_path)
    assert summary.failed == []
    assert 0 < server.ranges(DAT)[-1] <= 20  # the part that had come was kept
    report = verify(tmp_path)
    assert report.sound
    assert report.extra == []


def sph(server, members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    files = {"metadata.csv": b"ECG_ID\nA00001\n", "code.csv": b"Code\n1\n", "records.tar.gz": stream.getvalue()}
    source = load_source("sph")
    server.files.update({file["id"]: files[file["name"]] for file in source.files})
    sized = tuple({**file, "bytes": len(files[file["name"]])} for file in source.files)
    return replace(source, base_url=server.url, files=sized)


def test_files_without_a_published_list_are_held_to_the_first_fetch(server, tmp_path):
    source = sph(
        server, {"records/A00001.h5": b"one", "records/A00002.h5": b"two", "../../evil.h5": b"three", "x": b""}
    )
    summary = get(source, tmp_path)
    assert "made here" in summary.notes[0]
    assert {path.name for path in (tmp_path / "records").iterdir()} == {"A00001.h5", "A00002.h5", "evil.h5"}
    assert not (tmp_path.parent.parent / "evil.h5").exists()
    report = verify(tmp_path)
    assert report.sound
    assert report.extra == []
    (tmp_path / "code.csv").write_bytes(b"Code\n2\n")
    assert verify(tmp_path).damaged == ["code.csv"]
    refetch(source, tmp_path, ["code.csv"], patience=QUICK)
    assert verify(tmp_path).sound
    with pytest.raises(ParameterError, match="one archive"):
        get(source, tmp_path, subset=5)


def test_a_file_of_the_wrong_size_without_a_list_is_refused(server, tmp_path):
    source = sph(server, {"A00001.h5": b"one"})
    server.files[source.files[0]["id"]] = b"<html>busy</html>"
    with pytest.raises(FetchError, match="expected 14"):
        get(source, tmp_path)
    assert not (tmp_path / "metadata.csv").exists()


def test_redirects_to_hosts_that_the_source_names_are_followed(server, tmp_path):
    source = publish(server)
    with Server() as storage:
        storage.files["elsewhere"] = server.files[DAT]
        server.plans[DAT] = [status(302, Location=storage.url + "elsewhere")]
        allowed = replace(source, hosts=(f"127.0.0.1:{storage.server_port}",))
        assert get(allowed, tmp_path).failed == []
        storage.shutdown()
    assert verify(tmp_path).sound

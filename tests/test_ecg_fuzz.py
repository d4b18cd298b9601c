from __future__ import annotations

import importlib.util
import json
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.errors import RecordError
from ecgchat_lib.paths import data_folder, project_root

pytest.importorskip("resource", reason="memory is limited with the module resource, which Windows lacks")
SAMPLE = data_folder() / "real_sample" / "A0001"


@pytest.fixture(scope="module")
def fuzzer():
    spec = importlib.util.spec_from_file_location("fuzz_reading", project_root() / "benchmarks" / "fuzz_reading.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def check(counts, failures, n):
    assert failures == []
    assert sum(sum(found.values()) for found in counts.values()) == n
    for kind, found in counts.items():
        assert found["refused"] > 0, kind


def test_a_few_hundred_broken_records(fuzzer):
    plain = ["format 16", "MATLAB 4", "MATLAB 5", "MATLAB 5 compressed", "fixed segments", "variable segments"]
    counts, failures = fuzzer.fuzz(300, seed=1, kinds=plain)
    check(counts, failures, 300)
    assert sum(found["read"] for found in counts.values()) > 20  # not everything is broken beyond reading


@pytest.mark.slow
def test_many_broken_records_of_all_kinds(fuzzer):
    counts, failures = fuzzer.fuzz(1700, seed=2)
    check(counts, failures, 1700)


def test_the_same_seed_breaks_the_same(fuzzer):
    assert fuzzer.fuzz(30, seed=3, kinds=["format 16"]) == fuzzer.fuzz(30, seed=3, kinds=["format 16"])


# the fuzzer can fail: each of these is what it looks for


def raising(error):
    def read(path, **options):
        raise error

    return read


def looks_elsewhere(path, **options):
    open("/etc/hostname", "rb").close()
    return read_recording(path, **options)


def with_a_gap(path, **options):
    recording = read_recording(path)
    return replace(recording, signal=np.full_like(recording.signal, np.nan))


def sleeps(path, **options):
    time.sleep(5)


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (read_recording, "read"),
        (raising(RecordError("r", "broken", "mend it")), "refused"),
        (raising(IndexError("list index out of range")), "IndexError"),
        (raising(RecordError("r", "two\nlines", "mend it")), "a bad refusal"),
        (raising(RecordError("r", "wfdb can't decode it (MemoryError: )", "mend it")), "a bad refusal"),
        (raising(SystemExit(1)), "SystemExit"),
        (looks_elsewhere, "opened /"),
        (with_a_gap, "not twelve finite leads"),
        (sleeps, "more than 0.1 s"),
    ],
)
def test_the_fuzzer_sees_what_it_looks_for(fuzzer, monkeypatch, read, found):
    monkeypatch.setattr(fuzzer, "read_recording", read)
    monkeypatch.setattr(fuzzer, "SECONDS", 0.1 if read is sleeps else 10)
    assert fuzzer.outcome(SAMPLE, allow_missing=False).startswith(found)


def test_the_recorded_run_found_nothing():
    recorded = json.loads((data_folder() / "results" / "fuzz_reading.json").read_text(encoding="utf-8"))
    assert recorded["n"] >= 10_000
    assert recorded["all"]["failed"] == 0
    assert sum(recorded["all"].values()) == recorded["n"]

"""The store of ECG tokens: computed once, found again, and noticed when encoder or recording change."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ecgchat_lib.chat import tokens as module
from ecgchat_lib.chat.tokens import TokenStore, cached_tokens, record_digest, store_key
from ecgchat_lib.coca.checkpoint import load_mini
from ecgchat_lib.coca.embed import encoder_tokens
from ecgchat_lib.coca.preprocess import recording_windows
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.ecg.recording import Recording, read_recording, write_recording
from ecgchat_lib.errors import EcgChatError, RecordError

HASH = "ab" * 32


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    paths = []
    for number in range(6):
        made = synthesize(number)
        paths.append(write_recording(Recording(f"r{number}", made.signal, made.fs), folder))
    return [Path(path) for path in paths]


@pytest.fixture
def counted(monkeypatch):
    """How many recordings went through the encoder."""
    calls = []
    monkeypatch.setattr(module, "PART", 2)
    monkeypatch.setattr(
        module, "encoder_tokens", lambda windows, model: calls.append(len(windows)) or encoder_tokens(windows, model)
    )
    return calls


def test_tokens_are_the_encoder_s_up_to_float16_and_computed_once(tmp_path, records, counted):
    order = [records[k] for k in (0, 1, 2, 1, 3, 4)]
    store = cached_tokens(order, load_mini(), HASH, tmp_path)
    assert sum(counted) == 5
    windows = recording_windows([read_recording(path) for path in order], load_mini().config.encoder)
    expected = encoder_tokens(windows, load_mini())
    assert store.shape == tuple(expected.shape)
    assert len(store) == 6
    # another batch size rounds the last digit otherwise
    torch.testing.assert_close(store[list(range(6))], expected, atol=2e-3, rtol=2e-3)
    assert torch.equal(store[[4, 0]], store[list(range(6))][[4, 0]])
    assert store[[]].shape == (0, *expected.shape[1:])
    counted.clear()
    again = cached_tokens([*order, records[5]], load_mini(), HASH, tmp_path)
    assert sum(counted) == 1
    assert torch.equal(again[[0, 5]], store[[0, 5]])


def test_a_changed_recording_or_encoder_is_noticed(tmp_path, records, counted):
    made = synthesize(99)
    paths = []
    for gain in (1.0, 1.5):
        path = Path(write_recording(Recording("r", made.signal * gain, made.fs), tmp_path / "one"))
        paths.append(record_digest(path))
        cached_tokens([path], load_mini(), HASH, tmp_path / "store")
    assert paths[0] != paths[1]
    assert sum(counted) == 2
    cached_tokens([path], load_mini(), "cd" * 32, tmp_path / "store")
    assert sum(counted) == 3
    other = load_mini()
    changed = replace(other.config, encoder=replace(other.config.encoder, z_score=not other.config.encoder.z_score))
    assert store_key(other, HASH) != store_key(type("M", (), {"config": changed})(), HASH)


def test_a_kill_loses_one_part_and_a_damaged_part_is_made_again(tmp_path, records, counted):
    cached_tokens(records[:4], load_mini(), HASH, tmp_path)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 2
    files[0].write_bytes(files[0].read_bytes()[:-50])
    (files[1].with_name(".half.safetensors.part")).write_bytes(b"what a kill left")
    counted.clear()
    store = cached_tokens(records[:4], load_mini(), HASH, tmp_path)
    assert counted == [2]
    assert store[[0, 1, 2, 3]].isfinite().all()


def test_processes_share_the_work(tmp_path, records, counted):
    """Each takes every second part; here one after the other, the second waiting for nothing."""
    with pytest.raises(KeyError):
        cached_tokens(records, load_mini(), HASH, tmp_path, share=(0, 2))  # the other's part is still missing
    assert sum(counted) == 4
    store = cached_tokens(records, load_mini(), HASH, tmp_path, share=(0, 1))
    assert sum(counted) == 6
    assert len(store) == 6


def test_missing_and_absurd_recordings_are_named(tmp_path, records, monkeypatch):
    with pytest.raises(RecordError, match=r"nobody: can't be read \(No such file"):
        cached_tokens([tmp_path / "nobody"], load_mini(), HASH, tmp_path)
    monkeypatch.setattr(module, "encoder_tokens", lambda windows, model: torch.full((len(windows), 2, 3), 1e6))
    with pytest.raises(EcgChatError, match=r"r0.*don't fit into float16"):
        cached_tokens(records[:1], load_mini(), HASH, tmp_path)


def test_an_empty_store_has_a_shape():
    assert TokenStore([], (101, 192))[[]].shape == (0, 101, 192)


@pytest.mark.slow
def test_a_real_kill_in_the_middle(tmp_path, records):
    code = (
        "import sys, time; from pathlib import Path; from ecgchat_lib.chat import tokens as t\n"
        "from ecgchat_lib.coca.checkpoint import load_mini\n"
        "t.PART = 1; real = t.encoder_tokens\n"
        "def slow(w, m):\n    out = real(w, m); print('part', flush=True); time.sleep(0.5); return out\n"
        "t.encoder_tokens = slow\n"
        f"t.cached_tokens([Path(p) for p in sys.argv[2:]], load_mini(), '{HASH}', Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), *map(str, records)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert 1 <= len(before) < len(records)
    store = cached_tokens(records, load_mini(), HASH, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert store[list(range(6))].isfinite().all()

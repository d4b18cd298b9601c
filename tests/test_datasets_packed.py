"""The packed store: exact to the bit, resumable after a kill, and never read out of bounds however it lies."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import wfdb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from ecgchat_lib.datasets import packed
from ecgchat_lib.datasets.cpsc2018 import load_real_sample
from ecgchat_lib.datasets.manifest import check_manifest
from ecgchat_lib.datasets.manifest_file import read_manifest, write_manifest
from ecgchat_lib.datasets.pack import MAX_ERROR_MV, encode, pack
from ecgchat_lib.datasets.packed import INDEX_FILE, MANIFEST_FILE, MISSING, STORE_FILE, PackedStore, Scale, decode
from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.recording import Recording, model_window, read_recording
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError, RecordError

REAL = load_real_sample()


def write(folder, name, digital, gain=1000.0, baseline=0, fs=500, units="mV", fmt="16", names=LEADS):
    """Write a WFDB record from (time, lead) ADC values."""
    folder.mkdir(exist_ok=True, parents=True)
    n = digital.shape[1]
    scale = {
        "adc_gain": list(np.broadcast_to(gain, n).astype(float)),
        "baseline": [int(value) for value in np.broadcast_to(baseline, n)],
    }
    kinds = {"fmt": [fmt] * n, "units": [units] * n, "sig_name": list(names)}
    wfdb.wrsamp(name, fs=fs, d_signal=digital.astype(np.int64), write_dir=str(folder), **kinds, **scale)
    return folder / name


def records(folder, count, samples=50, seed=0):
    rng = np.random.default_rng(seed)
    return [write(folder, f"r{k}", rng.integers(-900, 900, (samples + k % 3, 12))) for k in range(count)]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A finished store of seven short recordings in three blocks."""
    folder = tmp_path_factory.mktemp("small")
    pack(records(folder / "in", 7), folder / "store", block_records=3)
    return folder / "store"


@pytest.fixture
def copy(small, tmp_path):
    return Path(shutil.copytree(small, tmp_path / "copy"))


def test_the_real_sample_comes_back_to_the_last_bit_with_its_manifest(tmp_path):
    summary = pack(REAL, tmp_path / "store", block_records=4)
    assert (summary.records, summary.inexact, summary.failures, summary.blocks) == (10, 0, [], 3)
    with PackedStore(tmp_path / "store") as store:
        assert store.verify() == []
        for row, path in enumerate(REAL["path"]):
            expected, found = read_recording(path), store[row]
            np.testing.assert_array_equal(found.signal, expected.signal)
            assert found.signal.dtype == np.float32
            assert (found.fs, found.patient, found.leads) == (expected.fs, expected.patient, LEADS)
            assert found.name == REAL["record"][row]
        manifest = store.manifest()
    assert_frame_equal(check_manifest(manifest[list(REAL.columns)]), REAL, check_dtype=False)
    assert set(manifest.columns) - set(REAL.columns) == {"reading_notes"}


SCALES = st.sampled_from([1.0, 200.0, 204.8, 1000.0, 4880.0, 1716.0, 0.37, 1e6 / 3])


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    samples=st.integers(1, 40),
    gains=st.lists(SCALES, min_size=12, max_size=12),
    baseline=st.integers(-40000, 40000),
    units=st.sampled_from(["mV", "uV", "V"]),
    gap=st.booleans(),
)
def test_any_gain_baseline_and_unit_comes_back_to_the_last_bit(tmp_path, seed, samples, gains, baseline, units, gap):
    rng = np.random.default_rng(seed)
    digital = rng.integers(-32767, 32768, (samples, 12))
    if gap and samples > 1:
        digital[rng.integers(0, samples - 1) :: 7, rng.integers(12)] = MISSING
        digital[-1] = rng.integers(-32767, 32768, 12)  # a lead without any sample is refused, as it should be
    folder = tmp_path / f"{seed}-{samples}-{baseline}-{units}-{gap}"
    path = write(folder, "r", digital, np.array(gains), baseline, units=units)
    try:
        expected = read_recording(path, allow_missing=True)
    except RecordError:
        return  # flat, or more millivolts than a heart gives
    shutil.rmtree(folder / "store", ignore_errors=True)
    summary = pack([path], folder / "store")
    assert (summary.records, summary.inexact) == (1, 0)
    with PackedStore(folder / "store") as store:
        np.testing.assert_array_equal(store.signal(0), expected.signal)
        assert store.number("missing")[0] == np.isnan(expected.signal).sum()


def test_float32_arithmetic_is_chosen_only_where_it_is_exact(tmp_path):
    digital = np.random.default_rng(1).integers(-30000, 30000, (4000, 12))
    paths = [write(tmp_path, "plain", digital), write(tmp_path, "odd", digital, 1e6 / 3)]
    pack(paths, tmp_path / "store")
    with PackedStore(tmp_path / "store") as store:
        assert store.number("single").tolist() == [1, 0]
        adc, gain = store.adc(1), store.number("gain")[1]
        wrong = decode(
            adc, Scale.of(gain, np.zeros(12, np.int32), single=True), missing=False, out=np.empty(adc.shape, np.float32)
        )
        assert (wrong != read_recording(paths[1]).signal).any()  # so the choice matters


def test_wider_formats_are_shifted_into_16_bits_where_their_span_fits(tmp_path):
    rng = np.random.default_rng(2)
    path = write(tmp_path, "wide", 200_000 + rng.integers(-30000, 30000, (60, 12)), 1000.0, 200_000, fmt="24")
    far = rng.integers(-30000, 30000, (60, 12))
    far[0] = 400_000
    wider = write(tmp_path, "wider", far, 100_000.0, 0, fmt="24")
    summary = pack([path, wider], tmp_path / "store")
    assert summary.records == 2
    with PackedStore(tmp_path / "store") as store:
        np.testing.assert_array_equal(store["wide"].signal, read_recording(path).signal)
        assert store.number("error_mv")[0] == 0
        error = np.abs(store["wider"].signal - read_recording(wider).signal).max()
        assert 0 < error <= MAX_ERROR_MV
        assert error <= np.nextafter(store.number("error_mv")[1], np.float32(1))
        assert summary.inexact == 1


def test_what_no_16_bits_hold_is_refused_with_numbers():
    signal = np.random.default_rng(3).normal(0, 1, (12, 500)).astype(np.float32)
    adc, numbers = encode(Recording("soft", signal, 500.0), None)
    assert 0 < numbers["error_mv"] <= 0.5 / numbers["gain"].min()
    assert np.abs(adc / numbers["gain"][:, None] - signal).max() == pytest.approx(numbers["error_mv"], rel=1e-3)
    signal[3, 7] = 700.0
    with pytest.raises(RecordError, match="16 bits"):
        encode(Recording("spike", signal, 500.0), None)


def test_files_of_other_kinds_are_packed_with_their_error(tmp_path):
    h5py = pytest.importorskip("h5py")
    signal = np.random.default_rng(4).normal(0, 0.5, (12, 700)).astype(np.float16)
    with h5py.File(tmp_path / "A00001.h5", "w") as file:
        file["ecg"] = signal
    summary = pack([tmp_path / "A00001.h5"], tmp_path / "store")
    assert (summary.records, summary.inexact, summary.failures) == (1, 1, [])
    with PackedStore(tmp_path / "store") as store:
        error = np.abs(store["A00001"].signal - signal.astype(np.float32)).max()
        assert 0 < error <= store.number("error_mv")[0] < MAX_ERROR_MV


def test_failing_recordings_are_listed_and_do_not_stop_the_rest(tmp_path):
    paths = records(tmp_path, 5)
    cut = paths[1].with_suffix(".dat")
    cut.write_bytes(cut.read_bytes()[:-40])
    paths.append(tmp_path / "nowhere")
    write(tmp_path, "eight", np.random.default_rng(0).integers(-9, 9, (50, 8)), names=LEADS[:8])
    paths.append(tmp_path / "eight")
    summary = pack(paths, tmp_path / "store", block_records=2)
    assert summary.records == 4
    assert [failure["record"] for failure in summary.failures] == ["r1", "nowhere", "eight"]
    assert "truncated" in summary.failures[0]["reason"]
    with PackedStore(tmp_path / "store") as store:
        assert [recording.name for recording in store] == ["r0", "r2", "r3", "r4"]
        assert store.failures() == summary.failures
        assert store.manifest()["record"].tolist() == ["r0", "r2", "r3", "r4"]
        for name in ("r0", "r4"):
            np.testing.assert_array_equal(store[name].signal, read_recording(tmp_path / name).signal)


def test_a_store_of_failures_only_is_a_store(tmp_path):
    summary = pack([tmp_path / "a", tmp_path / "b"], tmp_path / "store", block_records=1)
    assert (summary.records, len(summary.failures)) == (0, 2)
    with PackedStore(tmp_path / "store") as store:
        assert len(store) == 0
        assert store.signals([]).shape == (0, 12, 0)
        with pytest.raises(IndexError):
            store[0]
        with pytest.raises(ParameterError):
            store["a"]


def test_rows_names_batches_and_iteration(small):
    with PackedStore(small) as store:
        assert len(store) == 7
        assert [store.name(row) for row in range(7)] == [f"r{k}" for k in range(7)]
        assert all(store.row(f"r{k}") == k for k in range(7))
        np.testing.assert_array_equal(store[-1].signal, store[6].signal)
        assert len(list(store)) == 7
        assert store[np.int64(3)].name == "r3"
        same = store.signals([0, 3, 6, 0])
        np.testing.assert_array_equal(same, [store.signal(k) for k in (0, 3, 6, 0)])
        ragged = store.signals(np.array([0, 1, 2]), samples=51)
        np.testing.assert_array_equal(ragged[0, :, :50], store.signal(0))
        assert not ragged[0, :, 50].any()
        np.testing.assert_array_equal(ragged[2], store.signal(2)[:, :51])
        assert not store.adc(0).flags.writeable
        for wrong in (7, -8):
            with pytest.raises(IndexError):
                store[wrong]
        with pytest.raises(ParameterError, match="no recording"):
            store["r7"]
        with pytest.raises(ParameterError, match="samples"):
            store.signals([0, 1])


def test_rates_are_not_mixed_in_a_batch(tmp_path):
    digital = np.random.default_rng(0).integers(-900, 900, (400, 12))
    pack([write(tmp_path, "a", digital), write(tmp_path, "b", digital, fs=250)], tmp_path / "store")
    with PackedStore(tmp_path / "store") as store:
        with pytest.raises(ParameterError, match="sampling rates"):
            store.signals([0, 1])
        windows = store.windows(fs=250.0, seconds=1.5)
        assert [window.shape for window in (windows[0], windows[1])] == [(12, 375)] * 2
        np.testing.assert_array_equal(windows[0], model_window(store["a"], fs=250.0, seconds=1.5)[0])


def test_windows_are_what_the_models_see(small):
    with PackedStore(small) as store:
        windows = store.windows(rows=[2, 0], fs=500.0, seconds=0.1)
        assert len(windows) == 2
        assert windows[1].shape == (12, 50)
        np.testing.assert_array_equal(windows[1], store.signal(0))
        np.testing.assert_array_equal(windows[0], store.signal(2)[:, :50])


def test_memory_is_given_back_and_views_stay_valid(small, monkeypatch):
    monkeypatch.setattr(packed, "MAX_RESIDENT", 3000)
    monkeypatch.setattr(packed, "MAX_MAPS", 1)
    with PackedStore(small) as store:
        views = [store.adc(k) for k in range(7)]
        copies = [view.copy() for view in views]
        for _ in range(3):
            for k in (6, 0, 3):
                np.testing.assert_array_equal(store.adc(k), copies[k])
        assert len(store._maps) == 1
    for view, expected in zip(views, copies, strict=True):
        np.testing.assert_array_equal(view, expected)


def total(store_and_row):
    store, row = store_and_row
    return float(store[row].signal.sum(dtype=np.float64))


def test_it_is_pickled_by_its_folder(small):
    with PackedStore(small) as store:
        store[0]
        assert len(pickle.dumps(store)) < 500
        again = pickle.loads(pickle.dumps(store))
        np.testing.assert_array_equal(again[3].signal, store[3].signal)
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(total, [(store, k % 7) for k in range(70)])) == [
                total((store, k % 7)) for k in range(70)
            ]


@pytest.mark.slow
def test_it_is_read_in_several_processes(small):
    with PackedStore(small) as store, ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(total, [(store, k) for k in range(7)])) == [total((store, k)) for k in range(7)]


@pytest.mark.slow
def test_a_torch_loader_takes_it(small):
    from torch.utils.data import DataLoader

    with PackedStore(small) as store:
        windows = store.windows(seconds=0.1)
        loader = DataLoader(windows, batch_size=4, num_workers=1, multiprocessing_context="spawn")
        batches = [batch.numpy() for batch in loader]
        np.testing.assert_array_equal(np.concatenate(batches), [windows[k] for k in range(7)])


def test_reading_a_store_does_not_import_torch(small):
    code = (
        "import sys; from ecgchat_lib.datasets.packed import PackedStore;"
        f"PackedStore({str(small)!r})[0]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# How it is written


def test_every_executor_gives_the_same_bytes(tmp_path, small):
    paths = records(tmp_path / "in", 7)
    expected = {name: data for name, data in contents(small).items() if name.startswith("block")}
    with ThreadPoolExecutor(3) as pool:
        pack(paths, tmp_path / "threads", block_records=3, executor=pool)
    pack(paths, tmp_path / "here", block_records=3)
    assert contents(tmp_path / "threads") == contents(tmp_path / "here")
    assert {name: data for name, data in contents(tmp_path / "here").items() if name.startswith("block")} == expected


@pytest.mark.slow
def test_a_process_pool_gives_the_same_bytes(tmp_path):
    paths = records(tmp_path / "in", 7)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        pack(paths, tmp_path / "pool", block_records=2, executor=pool)
    pack(paths, tmp_path / "here", block_records=2)
    assert contents(tmp_path / "pool") == contents(tmp_path / "here")


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_bytes(tmp_path):
    from dask.distributed import Client, LocalCluster

    paths = records(tmp_path / "in", 9)
    seen = []
    # the host is named, since distributed would else find out its own address by asking for a route to the internet
    workers = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(host="127.0.0.1", **workers) as cluster, Client(cluster) as client:
        pack(paths, tmp_path / "dask", block_records=2, executor=client.get_executor(), progress=seen.append)
    pack(paths, tmp_path / "here", block_records=2)
    assert contents(tmp_path / "dask") == contents(tmp_path / "here")
    assert sum(seen) == 9


KILLED = """
import os, signal, sys
from pathlib import Path
import ecgchat_lib.datasets.pack as pack

place, count = sys.argv[3], int(sys.argv[4])
def dying(original):
    calls = []
    def call(*arguments, **more):
        calls.append(1)
        if len(calls) > count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **more)
    return call

if place == "reading":
    pack.read_any = dying(pack.read_any)
elif place == "syncing":
    os.fsync = dying(os.fsync)
elif place == "renaming":
    os.replace = dying(os.replace)
pack.pack(sorted(Path(sys.argv[1]).glob("*.hea"), key=lambda path: int(path.stem[1:])), sys.argv[2], block_records=3)
"""

KILLS = [("reading", k) for k in (0, 2, 3, 7, 10)]
KILLS += [("syncing", k) for k in range(0, 12, 2)] + [("renaming", k) for k in range(1, 12, 2)]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kill -9 is Unix")
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    paths = [path.with_suffix(".hea") for path in records(tmp_path / "in", 11)]
    pack(paths, tmp_path / "whole", block_records=3)
    expected, kept = contents(tmp_path / "whole"), []
    running = []
    for place, count in KILLS:
        out = tmp_path / f"{place}{count}"
        command = [sys.executable, "-c", KILLED, str(tmp_path / "in"), str(out), place, str(count)]
        running.append((out, subprocess.Popen(command)))
        if len(running) == 3 or (place, count) == KILLS[-1]:
            for folder, process in running:
                assert process.wait() in (-9, 0)
                if process.returncode == -9:
                    assert not (folder / STORE_FILE).exists() or not (folder / ".packing").exists()
                kept.append(pack(paths, folder, block_records=3).kept)
                assert contents(folder) == expected
            running = []
    assert {0, 1, 2, 3, 4} <= set(kept)  # some were killed early, some late


def test_a_damaged_block_of_an_unfinished_run_is_packed_again(tmp_path):
    paths = records(tmp_path / "in", 6)
    pack(paths, tmp_path / "whole", block_records=2)

    class Ends(Exception):
        pass

    def stop_at_four(count, seen=[]):  # noqa: B006
        seen.append(count)
        if sum(seen) >= 4:
            raise Ends

    with pytest.raises(Ends):
        pack(paths, tmp_path / "out", block_records=2, progress=stop_at_four)
    with pytest.raises(EcgChatError, match="isn't finished"):
        PackedStore(tmp_path / "out")
    block = tmp_path / "out" / "block-00001.i16"
    block.write_bytes(block.read_bytes()[:-1] + b"\x55")
    summary = pack(paths, tmp_path / "out", block_records=2)
    assert summary.kept == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_store_is_left_as_it_is_and_other_folders_are_not_touched(tmp_path):
    paths = records(tmp_path / "in", 4)
    pack(paths, tmp_path / "store", block_records=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()}
    assert pack(paths, tmp_path / "store", block_records=2).kept == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()} == before
    with pytest.raises(EcgChatError, match="other recordings"):
        pack(paths[:3], tmp_path / "store", block_records=2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.docx").write_text("x")
    with pytest.raises(EcgChatError, match="not empty"):
        pack(paths, tmp_path / "other")
    assert contents(tmp_path / "other") == {"thesis.docx": b"x"}
    with pytest.raises(EcgChatError, match="can't be used"):
        pack(paths, tmp_path / "other" / "thesis.docx")


def test_two_runs_at_once_keep_out_of_each_others_way(tmp_path):
    paths = records(tmp_path / "in", 4)
    refused = []

    def meanwhile(count):
        with pytest.raises(EcgChatError, match="another command"):
            pack(paths, tmp_path / "store", block_records=2)
        refused.append(count)

    if os.name != "nt":
        pack(paths, tmp_path / "store", block_records=2, progress=meanwhile)
        assert refused == [0, 2, 2]


def test_calls_that_cannot_be_packed(tmp_path):
    paths = records(tmp_path / "in", 1)
    with pytest.raises(ParameterError, match="none"):
        pack([], tmp_path / "a")
    with pytest.raises(ParameterError, match="twice"):
        pack(paths * 2, tmp_path / "a")
    with pytest.raises(ParameterError, match="block_records"):
        pack(paths, tmp_path / "a", block_records=0)
    with pytest.raises(ParameterError, match="columns"):
        pack(REAL.drop(columns="path"), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_full_disk_is_one_clear_error_and_the_run_goes_on_later(tmp_path, monkeypatch):
    import ecgchat_lib.datasets.pack as packing

    paths = records(tmp_path / "in", 4)
    real = packing.os.fsync

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing.os, "fsync", full)
    with pytest.raises(EcgChatError, match="No space left"):
        pack(paths, tmp_path / "store", block_records=2)
    monkeypatch.setattr(packing.os, "fsync", real)
    assert pack(paths, tmp_path / "store", block_records=2).records == 4


# Stores that lie


def edit_json(folder, change):
    facts = json.loads((folder / STORE_FILE).read_text())
    change(facts)
    (folder / STORE_FILE).write_text(json.dumps(facts))


def put_index(folder, content, name=INDEX_FILE):
    """Replace an Arrow file, and the size and sha256 that store.json gives for it: an attacker would."""
    (folder / name).write_bytes(content)
    kind = "index" if name == INDEX_FILE else "manifest"

    def change(facts):
        facts[kind] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    edit_json(folder, change)


def edit_index(folder, column, row, value):
    table = pa.ipc.open_file(folder / INDEX_FILE).read_all()
    values = table[column].to_pylist()
    values[row] = value
    place = table.column_names.index(column)
    table = table.set_column(place, table.schema.field(column), pa.array(values, table.schema.field(column).type))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    put_index(folder, bytes(sink.getvalue()))


def edit_file(folder, name, change):
    (folder / name).write_bytes(change((folder / name).read_bytes()))


def fact(*path, value):
    def change(facts):
        for key in path[:-1]:
            facts = facts[key]
        facts[path[-1]] = value

    return lambda folder: edit_json(folder, change)


def index(column, row, value):
    return lambda folder: edit_index(folder, column, row, value)


BLOCK = "block-00001.i16"
LIES = {
    "no store.json": lambda folder: (folder / STORE_FILE).unlink(),
    "store.json is no JSON": lambda folder: (folder / STORE_FILE).write_bytes(b"\xff\x00{"),
    "store.json is a list": lambda folder: (folder / STORE_FILE).write_text("[]"),
    "store.json is deep": lambda folder: (folder / STORE_FILE).write_text("[" * 100_000),
    "another format": fact("format", value="zip"),
    "another version": fact("version", value=2),
    "a huge count": fact("records", value=10**18),
    "a negative count": fact("records", value=-1),
    "a huge block": fact("blocks", 1, "bytes", value=2**60),
    "a block of no bytes": fact("blocks", 1, "bytes", value=0),
    "a block elsewhere": fact("blocks", 1, "file", value="/etc/passwd"),
    "a block above": fact("blocks", 1, "file", value="../in/r0.dat"),
    "a block of text": fact("blocks", 1, value="x"),
    "a block with more records": fact("blocks", 1, "records", value=2**40),
    "records moved between blocks": fact("blocks", 1, "records", value=2),
    "no blocks": fact("blocks", value=[]),
    "failures are a number": fact("failures", value=3),
    "index has no size": fact("index", value={}),
    "wrong magic": lambda folder: edit_file(folder, BLOCK, lambda data: b"X" + data[1:]),
    "another block's file": lambda folder: shutil.copy(folder / "block-00000.i16", folder / BLOCK),
    "truncated block": lambda folder: edit_file(folder, BLOCK, lambda data: data[:-100]),
    "longer block": lambda folder: edit_file(folder, BLOCK, lambda data: data + b"xx"),
    "missing block": lambda folder: (folder / BLOCK).unlink(),
    "missing index": lambda folder: (folder / INDEX_FILE).unlink(),
    "truncated index": lambda folder: edit_file(folder, INDEX_FILE, lambda data: data[:-9]),
    "index with a flipped bit": lambda folder: edit_file(
        folder, INDEX_FILE, lambda data: data[:900] + b"\x7f" + data[901:]
    ),
    "index is no Arrow": lambda folder: put_index(folder, b"ARROW1\x00\x00 but no"),
    "index is empty": lambda folder: put_index(folder, b""),
    "index of other columns": lambda folder: put_index(folder, (folder / MANIFEST_FILE).read_bytes()),
    "offset outside": index("offset", 2, 10**12),
    "offset negative": index("offset", 0, -64),
    "offset overlaps": index("offset", 1, 64),
    "offset odd": index("offset", 1, 64 + 1201),
    "samples huge": index("samples", 0, 2**31 - 1),
    "samples negative": index("samples", 0, -50),
    "samples zero": index("samples", 6, 0),
    "block outside": index("block", 6, 99),
    "block negative": index("block", 0, -1),
}


@pytest.mark.parametrize("name", LIES)
def test_a_store_that_lies_is_one_clear_error(copy, name):
    LIES[name](copy)
    with pytest.raises(EcgChatError) as caught:
        PackedStore(copy)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize("gain", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_gain_is_refused_when_it_is_read(copy, gain):
    edit_index(copy, "gain", 2, [1000.0] * 11 + [gain])
    with PackedStore(copy) as store:
        store[1]
        with pytest.raises(EcgChatError, match="gain"):
            store[2]


def test_lies_about_names_find_nothing_rather_than_something_wrong(copy):
    edit_index(copy, "hash_row", 3, 2**31 - 1)
    with PackedStore(copy) as store:
        found = 0
        for k in range(7):
            try:
                found += store[f"r{k}"].name == f"r{k}"
            except ParameterError:
                continue
        assert found == 6


def test_a_block_that_shrinks_after_opening_is_noticed_when_it_is_mapped(copy):
    store = PackedStore(copy)
    edit_file(copy, BLOCK, lambda data: data[:-100])
    store[0]
    with pytest.raises(EcgChatError, match="bytes, expected"):
        store[4]


def test_a_flipped_bit_in_a_block_is_found_on_demand(copy):
    edit_file(copy, BLOCK, lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:])
    with PackedStore(copy) as store:
        (line,) = store.verify()
        assert BLOCK in line
    edit_file(copy, MANIFEST_FILE, lambda data: data[:-1])
    with PackedStore(copy) as store:
        assert len(store.verify()) == 2
        with pytest.raises(EcgChatError, match="manifest"):
            store.manifest()


FUZZ = """
import hashlib, json, sys
from pathlib import Path
import numpy as np
from ecgchat_lib.datasets.packed import PackedStore
from ecgchat_lib.errors import EcgChatError

folder, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
index, facts = (folder / "index.arrow").read_bytes(), json.loads((folder / "store.json").read_text())
blocks = sum(entry["bytes"] for entry in facts["blocks"])
rng = np.random.default_rng(seed)
read = refused = 0
for _ in range(count):
    data = bytearray(index)
    for _ in range(rng.integers(1, 5)):
        data[rng.integers(len(data))] = rng.integers(256)
    (folder / "index.arrow").write_bytes(data)
    facts["index"]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "store.json").write_text(json.dumps(facts))
    try:
        with PackedStore(folder) as store:
            names = [store.name(row) for row in range(len(store))]
            for row in range(len(store)):
                try:
                    assert store.signal(row).nbytes <= 2 * blocks
                except EcgChatError:
                    pass
            for name in names:
                try:
                    store.row(name)
                except EcgChatError:
                    pass
        read += 1
    except EcgChatError:
        refused += 1
print(read, refused)
"""


@pytest.mark.slow
def test_mutated_indexes_never_crash_the_process(copy):
    """In a process of its own, so that a read out of bounds would end that one."""
    run = subprocess.run(
        [sys.executable, "-c", FUZZ, str(copy), "0", "1500"], capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr
    read, refused = map(int, run.stdout.split())
    assert read + refused == 1500
    assert refused > 100


# Manifests as files


def test_a_manifest_file_comes_back_equal(tmp_path):
    write_manifest(REAL, tmp_path / "sub" / "m.parquet")
    assert_frame_equal(read_manifest(tmp_path / "sub" / "m.parquet"), REAL, check_dtype=False)
    unknown = REAL.assign(sex=[None, *REAL["sex"][1:]], age=float("nan"))
    write_manifest(unknown, tmp_path / "u.parquet")
    again = read_manifest(tmp_path / "u.parquet")
    assert again["sex"][0] is None
    assert again["age"].isna().all()
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["m.parquet"]


def test_a_manifest_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "m.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(EcgChatError, match="not a Parquet file"):
        read_manifest(tmp_path / "m.parquet")
    with pytest.raises(MissingPartError):
        read_manifest(tmp_path / "n.parquet")
    with pytest.raises(ParameterError, match="thing"):
        write_manifest(REAL.assign(thing=[object()] * len(REAL)), tmp_path / "o.parquet")
    assert not (tmp_path / "o.parquet").exists()


# All real recordings


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("ECGCHAT_REAL_DATA"), reason="ECGCHAT_REAL_DATA is not set")
@pytest.mark.parametrize(
    "archive",
    [
        "ptbxl/raw_500hz_wfdb.tar.xz",
        "ludb/ludb_1_50_wfdb.tar.xz",
        "challenge/challenge_wfdb_mat.tar.xz",
        "code15/code15_wfdb.tar.xz",
    ],
)
def test_every_real_recording_comes_back_to_the_last_bit(tmp_path, archive):
    import tarfile

    with tarfile.open(Path(os.environ["ECGCHAT_REAL_DATA"]) / archive) as tar:
        tar.extractall(tmp_path / "in", filter="data")
    headers = sorted((tmp_path / "in").rglob("*.hea"))
    frame = REAL.iloc[[0] * len(headers)][["record", "path"]].assign(
        record=[header.relative_to(tmp_path).as_posix() for header in headers], path=[str(header) for header in headers]
    )
    summary = pack(frame, tmp_path / "store", block_records=100)
    assert (summary.records, summary.inexact, summary.failures) == (len(headers), 0, [])
    with PackedStore(tmp_path / "store") as store:
        assert store.verify() == []
        for row, header in enumerate(headers):
            expected = read_recording(header, allow_missing=True)
            np.testing.assert_array_equal(store.signal(row), expected.signal)
            assert store[row].fs == expected.fs
            assert store[row].patient == expected.patient

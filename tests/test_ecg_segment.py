"""The segmenting network, the marks made of its probabilities, and the recipe that trains it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ecgchat_lib.datasets import segment_recipe as recipe
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.ecg.delineate import find_stretches, find_waves, waves_of_beats
from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.marks import WaveMarks, read_marks
from ecgchat_lib.ecg.segment import (
    CLASSES,
    MARGIN,
    PIECE,
    SEGMENT_FS,
    WEIGHTS,
    SegmentingNetwork,
    convolve,
    depth,
    load_segmenting_network,
    segment_input,
    segment_signal,
)
from ecgchat_lib.errors import MissingPartError, ParameterError, RecordError
from ecgchat_lib.paths import data_folder

SMALL = recipe.SegmentConfig(widths=(6, 8, 8), kernel=5, members=1, epochs=3, batch=6, strip=320, synthetic=3)


def known(seed=5, finding="NORM"):
    ecg = synthesize(seed, finding=finding)
    return ecg, recipe.strips(ecg.signal, ecg.fs, [ecg.lead_marks(lead) for lead in LEADS])


# --- the network -------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.sampled_from([1, 3, 7]), st.integers(1, 40), st.sampled_from([1, 2]))
def test_convolution_is_torchs(leads, channels, width, time, stride):
    draw = np.random.default_rng(time)
    x = draw.normal(size=(leads, channels, time)).astype(np.float32)
    weight, bias = draw.normal(size=(4, channels, width)).astype(np.float32), draw.normal(size=4).astype(np.float32)
    expected = torch.nn.functional.conv1d(*map(torch.from_numpy, (x, weight, bias)), stride, width // 2)
    assert np.allclose(convolve(x, weight, bias, stride=stride), expected.numpy(), atol=1e-4)


def test_convolution_says_what_does_not_fit():
    with pytest.raises(ParameterError, match="3 channels, expected 2"):
        convolve(np.zeros((1, 3, 8), np.float32), np.zeros((1, 2, 3), np.float32), np.zeros(1, np.float32))


def test_the_forward_pass_is_torchs():
    torch.manual_seed(1)
    net = recipe.SegmentNet(SMALL)
    for module in net.modules():  # as if trained: the normalization must be multiplied in
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    net.eval()
    x = np.random.default_rng(0).normal(size=(2, 330)).astype(np.float32)
    padded = torch.from_numpy(np.pad(x, ((0, 0), (0, 6))))[:, None]
    with torch.no_grad():
        expected = torch.softmax(net(padded), dim=1).numpy()[..., :330]
    found = SegmentingNetwork((net.layers(),)).probabilities(x)
    assert found.shape == (2, 4, 330)
    assert np.allclose(found, expected, atol=1e-5)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)


def test_members_are_averaged():
    nets = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        nets.append(recipe.SegmentNet(SMALL).eval().layers())
    x = np.random.default_rng(0).normal(size=(1, 320)).astype(np.float32)
    one, two, both = (SegmentingNetwork(tuple(chosen)).probabilities(x) for chosen in (nets[:1], nets[1:], nets))
    assert np.allclose(both, (one + two) / 2, atol=1e-6)


def test_a_long_recording_is_the_same_piece_by_piece():
    network = load_segmenting_network()
    step = 2 ** depth(network.members[0])
    assert PIECE % step == MARGIN % step == 0
    ecg = synthesize(3, finding="NORM", seconds=10)
    once = segment_input(segment_signal(ecg.signal[1:2], ecg.fs))
    long = np.tile(once, (1, 8))[:, : PIECE + 2000]
    whole = network.probabilities(long)
    seam = network.probabilities(long[:, PIECE - 2 * MARGIN : PIECE + 2 * MARGIN])  # the seam in the middle of a piece
    middle = slice(MARGIN, 3 * MARGIN)
    assert np.abs(whole[..., PIECE - 2 * MARGIN :][..., middle] - seam[..., middle]).max() < 0.02


def test_the_shipped_network_is_small_and_names_its_origin():
    path = data_folder() / "weights" / WEIGHTS
    assert path.stat().st_size <= 1_000_000
    card = path.with_name("README.md").read_text(encoding="utf-8")
    for word in ("LUDB", "ODC-By", "segment_recipe", "cross-validation"):
        assert word in card


@pytest.mark.parametrize("finding", ["NORM", "STACH", "SBRAD", "1AVB", "CLBBB", "LVH"])
def test_the_shipped_network_finds_the_waves_of_synthetic_ecgs(finding):
    right, of = 0, 0
    for seed in range(3):
        _, strips = known(900 + seed, finding)
        found = load_segmenting_network().probabilities(strips.x[1:2])[0].argmax(axis=0)
        marked = strips.weight[1] > 0
        right += (found == strips.y[1].argmax(axis=0))[marked].sum()
        of += marked.sum()
    assert right / of > 0.85


def test_a_missing_or_broken_file_is_named(tmp_path):
    load_segmenting_network.cache_clear()
    with pytest.raises(MissingPartError, match=r"nothing\.safetensors: can't be read"):
        load_segmenting_network(tmp_path / "nothing.safetensors")
    (tmp_path / "garbage.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(MissingPartError, match="can't be read"):
        load_segmenting_network(tmp_path / "garbage.safetensors")
    save_file({"0.down.0.weight": np.zeros((2, 1, 3), np.float32)}, tmp_path / "half.safetensors")
    with pytest.raises(MissingPartError, match="unexpected tensor"):
        load_segmenting_network(tmp_path / "half.safetensors")
    load_segmenting_network.cache_clear()


# --- marks -------------------------------------------------------------------------------------------------------


def test_stretches_end_between_samples():
    found = find_stretches(np.array([0.0, 0.25, 0.75, 1.0, 0.9, 0.1, 0.0]))
    assert np.allclose(found, [[1.5, 4.5]])
    assert np.allclose(find_stretches(np.array([1.0, 0.0, 0.0, 1.0])), [[0, 0.5], [2.5, 3]])
    assert find_stretches(np.zeros(5)).shape == (0, 2)
    assert find_stretches(np.ones(5)).tolist() == [[0, 4]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.floats(0, 5))
def test_stretches_are_in_order_apart_and_long_enough(values, least):
    found = find_stretches(np.array(values), least)
    assert (found[:, 1] - found[:, 0] >= least).all()
    assert (np.diff(found.ravel()) >= 0).all()
    if len(values) and least == 0:
        inside = np.zeros(len(values), bool)
        for start, stop in found:
            inside[math.ceil(start) : math.floor(stop) + 1] = True
        assert (inside >= (np.array(values) > 0.5)).all()


def test_waves_from_perfect_probabilities_are_the_marks():
    ecg, strips = known()
    marks = ecg.marks
    found = find_waves(strips.y[1], strips.x[1])
    for name in ("P", "QRS", "T"):
        expected = marks.wave(name) * SEGMENT_FS / ecg.fs
        assert len(found.wave(name)) == len(expected)
        assert np.abs(found.wave(name)[:, [0, 2]] - expected[:, [0, 2]]).max() < 1.01


def test_each_beat_gets_its_own_waves():
    p = np.array([[10, 15, 20.0], [60, 65, 70], [110, 115, 120]])  # the middle one isn't followed by a QRS complex
    qrs = np.array([[30, 33, 36.0], [130, 133, 136]])
    t = np.array([[40, 50, 58.0], [140, 150, 160]])
    each = waves_of_beats(WaveMarks(p, qrs, t), np.array([33.0, 80.0, 133.0]))
    assert each.qrs[:, 0].tolist()[::2] == [30, 130]
    assert np.isnan(each.qrs[1]).all()
    assert each.p[:, 0].tolist()[::2] == [10, 110]
    assert each.t[:, 2].tolist()[::2] == [58, 160]
    assert len(waves_of_beats(WaveMarks(), np.array([5.0])).p) == 1
    assert waves_of_beats(WaveMarks(p, qrs, t), np.zeros(0)).qrs.shape == (0, 3)


def test_marks_know_their_shape(tmp_path):
    with pytest.raises(ParameterError, match=r"expected \(wave, 3\)"):
        WaveMarks(np.zeros((2, 2)))
    with pytest.raises(RecordError, match="no readable annotations"):
        read_marks(tmp_path / "1", "ii")
    (tmp_path / "2.ii").write_bytes(b"\x00")
    with pytest.raises(RecordError):
        read_marks(tmp_path / "2", "ii")


# --- the recipe --------------------------------------------------------------------------------------------------


def test_coverage_is_the_share_of_each_sample():
    marks = WaveMarks(qrs=np.array([[10.0, 12, 16.0]]))
    y = recipe.coverage(marks, 12, SEGMENT_FS * 2)
    assert np.allclose(y.sum(axis=0), 1)
    assert np.allclose(y[CLASSES.index("QRS")], [0, 0, 0, 0, 0, 0.5, 1, 1, 0.5, 0, 0, 0])
    weight = recipe.marked_stretch(marks, 12, SEGMENT_FS * 2)
    assert weight.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0]
    assert recipe.marked_stretch(WaveMarks(), 5, 500).sum() == 0


def test_disturbing_moves_no_wave():
    _, strips = known()
    draw = np.random.default_rng(0)
    for _ in range(20):
        disturbed = recipe.disturb(strips.x[1], draw)
        assert abs(np.corrcoef(disturbed, strips.x[1])[0, 1]) > 0.8
    assert disturbed.dtype == np.float32


def test_stretching_moves_signal_and_marks_together():
    _, strips = known()
    rows = np.concatenate([strips.x[1:2], strips.y[1], strips.weight[1:2]])
    for speed in (0.85, 1.18):
        stretched = recipe._stretched(rows, speed)
        qrs = find_stretches(rows[3])[3:5, 0] / speed
        found = find_stretches(stretched[3])
        assert np.abs(found[:, 0][:, None] - qrs).min(axis=0).max() < 1.5


def test_the_loss_looks_only_at_what_is_marked():
    scores = torch.zeros(1, 4, 6)
    y = torch.zeros(1, 4, 6)
    y[:, 0] = 1
    weight = torch.tensor([[0, 0, 1, 1, 0, 0.0]])
    assert recipe.segment_loss(scores, y, weight).item() == pytest.approx(math.log(4))
    scores[..., :2] = torch.tensor([9.0, -9, -9, -9])[:, None] * -1  # wrong where nobody marked anything
    assert recipe.segment_loss(scores, y, weight).item() == pytest.approx(math.log(4))
    assert recipe.segment_loss(scores, y, torch.zeros(1, 6)).item() == 0


@pytest.mark.slow
def test_training_learns_and_the_same_seed_gives_the_same_weights(tmp_path):
    config = SMALL
    synthetic = recipe.synthetic_strips(config)
    first, second = (recipe.train_member([], synthetic, config, seed=4) for _ in range(2))
    other = recipe.train_member([], synthetic, config, seed=5)
    assert all(np.array_equal(first[name][0], second[name][0]) for name in first)
    assert not np.array_equal(first["head"][0], other["head"][0])
    untrained = recipe.SegmentNet(config).eval().layers()
    _, strips = known(77)
    marked = strips.weight[1] > 0

    def right(layers):
        found = SegmentingNetwork((layers,)).probabilities(strips.x[1:2])[0].argmax(axis=0)
        return (found == strips.y[1].argmax(axis=0))[marked].mean()

    assert right(first) > right(untrained) + 0.1
    recipe.save_network([first, other], tmp_path / "w" / "model.safetensors", {"config": "{}"})
    stored = load_file(tmp_path / "w" / "model.safetensors")
    assert np.array_equal(stored["1.head.weight"], other["head"][0].astype(np.float16))
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["model.safetensors"]


@pytest.mark.slow
def test_a_run_that_was_cut_off_takes_the_members_it_has(tmp_path, monkeypatch):
    ecg, _ = known()
    records = {1: (None, None)}
    monkeypatch.setattr(recipe, "strips", lambda *a: None)  # nothing is trained, so nothing is needed
    records = {1: (type("R", (), {"signal": ecg.signal, "fs": ecg.fs})(), [])}
    layers = recipe.SegmentNet(SMALL).eval().layers()
    recipe.save_network([layers], tmp_path / "member0.safetensors", {})
    network = recipe.train_network(records, [], SMALL, tmp_path)
    assert np.allclose(network.members[0]["head"][0], layers["head"][0], atol=1e-3)


def test_summary_counts_and_averages():
    nan = float("nan")
    pairs = {
        1: {"rr_ms": (800.0, 802.0), "pr_ms": (nan, nan), "qrs_ms": (90.0, 100.0), "qt_ms": (nan, 400.0)},
        2: {"rr_ms": (900.0, 896.0), "pr_ms": (150.0, nan), "qrs_ms": (110.0, 100.0), "qt_ms": (410.0, 400.0)},
        3: {"rr_ms": (700.0, 700.0), "pr_ms": (160.0, 150.0), "qrs_ms": (95.0, 95.0), "qt_ms": (390.0, 400.0)},
        4: {"rr_ms": (700.0, 700.0), "pr_ms": (140.0, 150.0), "qrs_ms": (95.0, 95.0), "qt_ms": (390.0, 400.0)},
    }
    summary = recipe.summarize(pairs)
    assert summary["rr_ms"]["mean_absolute_ms"] == 1.5
    assert summary["qrs_ms"]["worst_ms"] == 10
    assert (summary["pr_ms"]["n"], summary["pr_ms"]["measured_but_not_marked"]) == (2, 1)
    assert (summary["qt_ms"]["n"], summary["qt_ms"]["marked_but_not_measured"]) == (3, 1)


def test_intervals_from_marks():
    marks = WaveMarks(
        p=np.array([[420.0, 440, 460], [920, 940, 960]]),
        qrs=np.array([[0.0, 20, 45], [500, 520, 545], [1000, 1020, 1045]]),
        t=np.array([[150.0, 180, 200], [650, 680, 704]]),
    )
    found = recipe.marked_intervals(marks, 500.0)
    assert found == {"rr_ms": 1000.0, "pr_ms": 160.0, "qrs_ms": 90.0, "qt_ms": pytest.approx(404.0)}
    assert math.isnan(recipe.marked_intervals(WaveMarks(qrs=marks.qrs), 500.0)["pr_ms"])

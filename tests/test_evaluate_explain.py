"""Explanations and maps: attention is the model's own, occlusion finds what was planted, purity is counted right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from ecgchat_lib.coca.config import EcgEncoderConfig
from ecgchat_lib.coca.encoder import EcgEncoder
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.recording import Recording
from ecgchat_lib.errors import ParameterError
from ecgchat_lib.evaluate.explain import (
    ALL_LEADS,
    Occlusion,
    attention_maps,
    draw_importance,
    drawn_traces,
    moments_attended,
    occlusion,
    rollout,
)
from ecgchat_lib.evaluate.maps import neighbor_map, neighbor_purity, principal_map, silhouette

TINY = EcgEncoderConfig(seconds=2.0, width=24, layers=3, heads=4, embedding=8, patch_dropout=0.5)


def tiny():
    torch.manual_seed(0)
    return EcgEncoder(TINY)


def test_attention_is_what_the_blocks_use():
    encoder, windows = tiny(), torch.randn(2, 12, 200)
    maps = attention_maps(windows, encoder)
    assert maps.shape == (2, 3, 4, 21, 21)
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(2, 3, 4, 21))
    block, tokens = encoder.transformer.resblocks[0], encoder.embed_patches(windows)  # eval: no patch is dropped
    normed = block.ln_1(tokens)
    by_hand = torch.nn.functional.linear(normed, block.attn.in_proj_weight, block.attn.in_proj_bias)
    query, key, _ = by_hand.reshape(2, 21, 3, 4, 6).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(maps[:, 0], (query @ key.transpose(2, 3) / 6**0.5).softmax(-1), rtol=1e-4, atol=1e-5)


def test_rollout_by_hand():
    attention = torch.tensor([[[[[0.2, 0.8], [0.6, 0.4]]], [[[0.5, 0.5], [0.0, 1.0]]]]])  # 2 layers, 1 head, 2 tokens
    first = np.array([[0.6, 0.4], [0.3, 0.7]])
    second = np.array([[0.75, 0.25], [0.0, 1.0]])
    np.testing.assert_allclose(rollout(attention)[0], second @ first, atol=1e-6)
    maps = attention_maps(torch.randn(3, 12, 200), tiny())
    torch.testing.assert_close(rollout(maps).sum(dim=-1), torch.ones(3, 21))
    moments = moments_attended(torch.randn(70, 12, 200), tiny())
    assert moments.shape == (70, 20)
    np.testing.assert_allclose(moments.sum(axis=1), 1, rtol=1e-5)


def test_occlusion_finds_the_lead_and_the_moment_that_a_score_reads():
    window = torch.zeros(12, 400)
    window[LEADS.index("V2"), 210:240] = 1.0
    score = lambda windows: windows[:, LEADS.index("V2"), 200:260].sum(dim=1)  # noqa: E731
    found = occlusion(window, score, fs=100.0, seconds=0.5, step=0.5)
    lead, step = np.unravel_index(found.drop.argmax(), found.drop.shape)
    assert (LEADS[lead], found.starts[step]) == ("V2", 2.0)
    assert found.score == found.drop.max() == 30.0
    assert found.drop.sum() == 30.0  # nothing else counts
    together = occlusion(window, score, fs=100.0, seconds=0.5, step=0.25, leads=ALL_LEADS)
    assert together.drop.shape == (1, 15)
    whole = occlusion(window, score, fs=100.0, seconds=4.0)
    assert whole.drop.shape == (12, 1)


def test_a_hidden_piece_is_a_straight_line():
    window, seen = torch.randn(12, 100), []

    def score(windows):
        seen.append(windows.clone())
        return windows.sum(dim=(1, 2))

    occlusion(window, score, fs=100.0, seconds=0.4, step=0.6, leads=[["I", "V6"]])
    first = seen[0][0]
    np.testing.assert_allclose(first[0, :40], np.linspace(float(window[0, 0]), float(window[0, 39]), 40), atol=1e-6)
    np.testing.assert_array_equal(first[1:11], window[1:11])
    np.testing.assert_array_equal(first[:, 40:], window[:, 40:])


def test_times_take_the_mean_of_the_pieces_over_them():
    found = Occlusion(np.array([[1.0, 3.0]]), np.array([0.0, 0.5]), 1.0, 5.0, (("I",),))
    np.testing.assert_allclose(found.at(np.array([0.2, 0.7, 1.2])), [[1.0, 2.0, 3.0]])
    assert np.isnan(found.at(np.array([2.0]))).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": 5.0}, "don't fit"),
        ({"seconds": 0.001}, "don't fit"),
        ({"step": 0.0}, "don't fit"),
        ({"leads": [["V9"]]}, "V9"),
        ({"leads": [[]]}, "groups"),
        ({"leads": []}, "groups"),
    ],
)
def test_what_cannot_be_hidden(settings, message):
    with pytest.raises(ParameterError, match=message):
        occlusion(torch.zeros(12, 200), lambda w: w.sum(dim=(1, 2)), fs=100.0, **settings)
    with pytest.raises(ParameterError, match="one window"):
        occlusion(torch.zeros(1, 12, 200), lambda w: w.sum(dim=(1, 2)), fs=100.0)


@pytest.mark.slow
def test_occlusion_finds_premature_beats_in_synthetic_ecgs():
    """The shipped model's cosine to "ventricular premature complexes" falls most where such a beat is hidden."""
    from ecgchat_lib.coca.checkpoint import load_mini
    from ecgchat_lib.coca.embed import embed_texts
    from ecgchat_lib.coca.preprocess import front_end

    mini = load_mini()
    words = embed_texts(["normal ECG", "ventricular premature complexes"], mini)
    direction = words[1] - words[0]
    score = lambda windows: mini.encode_ecg(windows) @ direction  # noqa: E731
    hits, floor, seed, used = 0, 0.0, 0, 0
    while used < 8:
        ecg = synthesize(500 + seed, finding="PVC")
        seed += 1
        beats = ecg.truth["r_peaks"][np.array([kind == "V" for kind in ecg.truth["beat_types"]])] / ecg.fs
        if not 1 <= len(beats) <= 2:
            continue
        window = front_end(ecg.signal[None], mini.config.encoder, fs=ecg.fs)[0]
        with torch.inference_mode():
            found = occlusion(window, score, fs=mini.config.encoder.fs, seconds=0.6, step=0.2, leads=ALL_LEADS)
        middle = found.starts + found.seconds / 2
        near = np.abs(middle[:, None] - beats).min(axis=1) < 0.45
        hits += bool(near[found.drop[0].argmax()])
        floor += near.mean()
        used += 1
    assert hits >= 7
    assert floor < 3  # by guessing


def recording(seconds=10.0):
    signal = 0.3 * np.random.default_rng(0).normal(size=(12, round(500 * seconds))).astype("f4")
    return Recording(signal=signal, fs=500.0, leads=LEADS, name="made")


@pytest.mark.parametrize(("layout", "visible"), [("3x4+1", 1), ("6x2", 6), ("12x1", 12)])
def test_shades_lie_where_the_moment_is(layout, visible):
    moments = np.zeros(20)
    moments[5:7] = 1.0, 0.5  # 2.5 to 3.5 s
    figure = draw_importance(recording(), moments, layout=layout)
    bands = [p for p in figure.axes[0].patches if p.get_zorder() == 2]
    left = drawn_traces(figure.axes[0])[0][0][0]
    assert len(bands) == 2 * visible  # of 6x2, the second column begins at 5 s
    starts = sorted({round((band.get_x() - left) / 25, 2) for band in bands})
    assert starts == [2.5, 3.0]
    assert max(band.get_alpha() for band in bands) == pytest.approx(0.55)


def test_each_leads_own_trace_is_shaded():
    by_lead = np.zeros((12, 10))
    by_lead[LEADS.index("aVL"), 3] = 2.0  # 3 to 4 s; in 3x4+1 aVL is drawn from 2.5 to 5 s, in the second row
    figure = draw_importance(recording(), np.zeros(10), by_lead=by_lead)
    (band,) = [p for p in figure.axes[0].patches if p.get_zorder() == 2]
    traces = drawn_traces(figure.axes[0])
    assert len(traces) == 13
    middle = band.get_y() + band.get_height() / 2
    assert middle == pytest.approx(np.median(traces[5][1]))
    assert figure.axes[0].texts
    with pytest.raises(ParameterError, match="steps"):
        draw_importance(recording(), np.zeros((2, 2)))


def test_nothing_above_zero_shades_nothing():
    figure = draw_importance(recording(4.0), np.full(10, -1.0), by_lead=np.full((12, 10), np.nan))
    assert not [p for p in figure.axes[0].patches if p.get_zorder() == 2]


# --- maps --------------------------------------------------------------------------------------------------------


def clusters(spread, seed=0):
    generator = np.random.default_rng(seed)
    classes = np.repeat(["a", "b", "c"], (60, 30, 10))
    middle = {one: generator.normal(size=16) for one in "abc"}
    return np.stack([middle[one] + spread * generator.normal(size=16) for one in classes]), classes.tolist()


def test_purity_equals_counting_and_falls_to_chance():
    close, classes = clusters(0.1)
    assert neighbor_purity(close, classes, k=5)[0] == 1.0
    loose, _ = clusters(1.0)
    model = KNeighborsClassifier(5).fit(loose, classes)
    near = model.kneighbors(return_distance=False)
    same = np.array([[classes[j] == classes[i] for j in row] for i, row in enumerate(near)]).mean(axis=1)
    expected = np.mean([same[np.array(classes) == one].mean() for one in "abc"])
    assert neighbor_purity(loose, classes, k=5)[0] == pytest.approx(expected)
    nothing = np.random.default_rng(3).normal(size=(100, 16))
    purity, chance = neighbor_purity(nothing, classes, k=10)
    assert purity == pytest.approx(chance, abs=0.05)
    assert silhouette(close, classes) > 0.8 > silhouette(loose, classes) > silhouette(nothing, classes)


def test_maps_keep_close_classes_apart():
    close, classes = clusters(0.1)
    for made in (principal_map(close), neighbor_map(close)):
        assert made.shape == (100, 2)
        assert neighbor_purity(made, classes, k=5)[0] > 0.95
    np.testing.assert_array_equal(neighbor_map(close, seed=3), neighbor_map(close, seed=3))


def test_what_cannot_be_mapped():
    close, classes = clusters(0.1)
    for wrong in (close[:2], np.full((5, 3), np.nan), close[0]):
        with pytest.raises(ParameterError, match="three finite rows"):
            principal_map(wrong)
    with pytest.raises(ParameterError, match="99 classes"):
        neighbor_purity(close, classes[:-1])
    with pytest.raises(ParameterError, match="one record"):
        neighbor_purity(close, [*classes[:-1], "alone"])
    with pytest.raises(ParameterError, match="1 classes"):
        silhouette(close, ["a"] * 100)

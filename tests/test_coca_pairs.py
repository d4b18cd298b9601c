"""Pairs, and how the mini's recipe varies them: batches hold what they say, and numbers change with the ECG."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_coca import HashedTexts, model_and_pairs

from ecgchat_lib.coca.config import MINI
from ecgchat_lib.coca.pairs import Batch, PairedEcgs
from ecgchat_lib.coca.preprocess import recording_windows
from ecgchat_lib.coca.text import text_batch
from ecgchat_lib.datasets.reports import PHRASES
from ecgchat_lib.datasets.synthetic import FINDINGS, synthesize
from ecgchat_lib.ecg.measure import measure
from ecgchat_lib.ecg.recording import Recording
from ecgchat_lib.errors import ParameterError
from ecgchat_lib.evaluate.mini_data import (
    SCAFFOLDS,
    _stretch,
    kept,
    measured_windows,
    single_statements,
    vary,
    wordings,
)

NORMAL = next(iter(FINDINGS))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_batch_holds_each_records_own_things():
    _, pairs = model_and_pairs(rich=True)
    batch = pairs.draw(6, generator())
    for row in range(6):
        place = int((pairs.windows == batch.ecg[row]).all(dim=(1, 2)).nonzero())
        assert batch.keys[row] == pairs.keys[place]
        assert torch.equal(batch.text.numbers[row].nan_to_num(-1), pairs.numbers[place].nan_to_num(-1))
        assert torch.equal(batch.statements.present[row], pairs.present[place].float())
        states = batch.text.states[row][batch.text.mask[row].bool()]
        own = [pairs.states[k].float() for k in pairs.rows[place]]
        assert any(one.shape == states.shape and torch.equal(one, states) for one in own)
    assert len({tuple(one.flatten().tolist()) for one in batch.ecg}) == 6


def test_rows_of_a_batch_are_the_batch_again():
    _, pairs = model_and_pairs(rich=True)
    batch = pairs.draw(5, generator())
    parts = [batch.rows(0, 2), batch.rows(2, 5)]
    assert torch.equal(torch.cat([part.ecg for part in parts]), batch.ecg)
    assert torch.equal(torch.cat([part.text.states for part in parts]), batch.text.states)
    assert torch.equal(torch.cat([part.statements.present for part in parts]), batch.statements.present)
    assert parts[0].keys + parts[1].keys == batch.keys


def test_captions_may_differ_from_the_texts_and_must_match_them_in_number():
    model, _ = model_and_pairs()
    windows = torch.zeros(2, 12, 80)
    pairs = PairedEcgs(windows, [["w1", "w9"], ["w2"]], model, captions=[["w1", "w1"], ["w2"]])
    assert torch.equal(pairs.pieces[pairs.rows[0][0]], pairs.pieces[pairs.rows[0][1]])
    assert not torch.equal(pairs.states[pairs.rows[0][0]], pairs.states[pairs.rows[0][1]])
    with pytest.raises(ParameterError, match="one caption for each"):
        PairedEcgs(windows, [["w1", "w9"], ["w2"]], model, captions=[["w1"], ["w2"]])


def test_wrong_lengths_are_told():
    model, _ = model_and_pairs()
    model.report_encoder = HashedTexts()
    windows = torch.zeros(2, 12, 80)
    with pytest.raises(ParameterError, match="differ in length"):
        PairedEcgs(windows, [["w1"]], model)
    with pytest.raises(ParameterError, match="as many columns"):
        PairedEcgs(windows, [["w1"], ["w2"]], model, phrases=[("w1",)])
    with pytest.raises(ParameterError, match="larger than the 2 records"):
        PairedEcgs(windows, [["w1"], ["w2"]], model).draw(3, generator())


def batch_of(ecg: torch.Tensor, numbers: torch.Tensor) -> Batch:
    text = text_batch([torch.zeros(1, 4)] * len(ecg), numbers)
    return Batch(ecg, text, torch.zeros(len(ecg), 2).long(), list(range(len(ecg))))


def test_a_stretched_ecg_measures_what_its_numbers_say():
    """Measured again after the stretch, RR and QT are the numbers that went with it, to a few ms."""
    ecgs = [synthesize(seed, finding=NORMAL, fs=100.0) for seed in range(12)]
    ecg = torch.from_numpy(np.stack([one.signal for one in ecgs]))
    before = [measure(Recording("", one.signal, fs=100.0)) for one in ecgs]
    numbers = torch.tensor([[m.rr_ms, m.pr_ms, m.qrs_ms, m.qt_ms, m.qtc_ms, m.p_mv, m.r_mv, m.t_mv] for m in before])
    moved, said = _stretch(ecg, numbers, generator(1))
    changed = (said[:, 0] / numbers[:, 0] - 1).abs() > 0.02
    assert 2 < int(changed.sum()) < 12
    again = [measure(Recording("", one.numpy(), fs=100.0)) for one in moved[changed]]
    for found, expected in zip(again, said[changed], strict=True):
        assert found.rr_ms == pytest.approx(expected[0].item(), abs=15)
        assert found.qt_ms == pytest.approx(expected[3].item(), abs=25)
        assert expected[4].item() == pytest.approx(expected[3].item() / math.sqrt(expected[0].item() / 1000), rel=0.02)


def test_vary_is_seeded_leaves_its_input_and_hides_heights_with_lead_two():
    ecg, numbers = torch.randn(64, 12, 400, generator=generator()), torch.full((64, 8), 300.0)
    batch = batch_of(ecg.clone(), numbers.clone())
    one, two = vary(batch, generator(5)), vary(batch, generator(5))
    assert torch.equal(one.ecg, two.ecg)
    assert torch.equal(batch.ecg, ecg)
    assert torch.isfinite(one.ecg).all()
    hidden = (one.ecg[:, 1] == 0).all(dim=1)
    assert 0 < int(hidden.sum()) < 40
    assert torch.equal(one.text.numbers[:, 5:].isnan().all(dim=1), hidden)
    assert not one.text.numbers[:, :5].isnan().any()


def test_numbers_are_measured_on_the_recording_itself_and_kept(tmp_path):
    ecg = synthesize(3, finding=NORMAL)
    recording = Recording("", ecg.signal, fs=ecg.fs)
    calls = []

    def make():
        calls.append(1)
        return measured_windows([recording], MINI.encoder)

    first, second = kept(tmp_path / "w.npz", make, "a"), kept(tmp_path / "w.npz", make, "a")
    assert len(calls) == 1
    assert torch.equal(first.ecg, second.ecg)
    assert first.numbers[0, 0].item() == pytest.approx(measure(recording).rr_ms)
    torch.testing.assert_close(
        first.ecg[0].float(), recording_windows([recording], MINI.encoder)[0], rtol=1e-3, atol=1e-3
    )
    kept(tmp_path / "w.npz", make, "b")  # made by something else
    assert len(calls) == 2


def test_single_statements_are_asked_with_their_own_phrases():
    said = [(("LVH", 100.0), ("SR", 0.0))] * 3 + [(("NORM", 100.0), ("SR", 0.0))] * 3 + [(("AFIB", 0.0),)]
    phrases, present = single_statements(said, least=2)
    assert present.shape == (7, len(phrases))
    hypertrophy = [k for k, ways in enumerate(phrases) if PHRASES["LVH"][0] in ways]
    assert len(hypertrophy) == 1
    assert present[:, hypertrophy[0]].tolist() == [True] * 3 + [False] * 4
    assert len(phrases[hypertrophy[0]]) == len(SCAFFOLDS) * len(PHRASES["LVH"])
    assert not any(PHRASES["AFIB"][0] in ways for ways in phrases), "one record is fewer than two"


def test_wordings_say_everything_first_and_are_seeded():
    said = (("SR", 0.0), ("LVH", 100.0), ("LAFB", 100.0))
    texts = wordings(said, 5, 0.5, seed=4)
    assert texts == wordings(said, 5, 0.5, seed=4)
    assert any(word in texts[0].lower() for word in ("hypertrophy", "voltage"))
    assert len(set(texts)) > 1

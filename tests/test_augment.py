"""Augmentations: how many records they change, by how much, and what they leave true."""

import numpy as np
import pytest
import torch

from ecgchat_lib import augment as A
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.errors import ParameterError

FS = 500


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=400, total=600, seed=1):
    """Random leads that obey Einthoven's law: electrode noise, projected."""
    potentials = torch.randn((n, 9, total), generator=generator(seed))
    return torch.einsum("le,bet->blt", A.electrode_matrix(), potentials)


CALLS = {
    "baseline_wander": lambda x, g, p: A.baseline_wander(x, FS, g, probability=p),
    "powerline": lambda x, g, p: A.powerline(x, FS, g, probability=p),
    "muscle_noise": lambda x, g, p: A.muscle_noise(x, FS, g, probability=p),
    "mask_time": lambda x, g, p: A.mask_time(x, FS, g, probability=p),
    "mask_leads": lambda x, g, p: A.mask_leads(x, g, probability=p),
    "scale": lambda x, g, p: A.scale(x, g, probability=p),
    "shift": lambda x, g, p: A.shift(x, FS, g, probability=p, seconds=0.2),
}


def changed(before, after):
    return (before != after).flatten(1).any(dim=1).float()


@pytest.mark.parametrize("name", CALLS)
def test_it_changes_the_share_it_says(name):
    ecg = batch()
    for probability in (0.0, 0.3, 1.0):
        share = changed(ecg, CALLS[name](ecg, generator(3), probability)).mean().item()
        spread = 4 * (probability * (1 - probability) / len(ecg)) ** 0.5  # four standard deviations of a share
        assert abs(share - probability) <= spread + 0.01, (name, probability, share)


@pytest.mark.parametrize("name", CALLS)
def test_a_batch_of_one_is_changed_as_often(name):
    ecg, source = batch(1), generator(4)
    share = np.mean([changed(ecg, CALLS[name](ecg, source, 0.5)).item() for _ in range(300)])
    assert 0.38 < share < 0.62


@pytest.mark.parametrize("name", CALLS)
def test_records_do_not_mix_and_the_input_stays(name):
    ecg = batch(6)
    before = ecg.clone()
    whole = CALLS[name](ecg, generator(5), 1.0)
    assert torch.equal(ecg, before)
    other = ecg.clone()
    other[1:] = 7.0  # other patients in the batch
    again = CALLS[name](other, generator(5), 1.0)
    assert torch.equal(whole[0], again[0])  # the first record's outcome doesn't depend on the others


@pytest.mark.parametrize("name", CALLS)
def test_same_generator_same_result_and_dtype(name):
    ecg = batch(5)
    assert torch.equal(CALLS[name](ecg, generator(6), 0.5), CALLS[name](ecg, generator(6), 0.5))
    half = CALLS[name](ecg.to(torch.bfloat16), generator(6), 0.5)
    assert half.dtype == torch.bfloat16
    assert half.shape == ecg.shape


@pytest.mark.parametrize("name", [name for name in CALLS if name != "mask_leads"])
def test_einthoven_survives(name):
    ecg = CALLS[name](batch(20), generator(7), 1.0)
    assert (ecg[:, 0] + ecg[:, 2] - ecg[:, 1]).abs().max() < 1e-4
    assert ecg[:, 3:6].sum(dim=1).abs().max() < 1e-4


def test_electrode_matrix_is_goldbergers_and_wilsons():
    matrix = A.electrode_matrix()
    assert matrix.shape == (12, 9)
    assert torch.allclose(matrix.sum(dim=1), torch.zeros(12), atol=1e-6)  # a potential common to all is invisible
    potentials = torch.tensor([1.0, 2.0, 4.0, 5.0, 0, 0, 0, 0, 0])
    leads = matrix @ potentials
    assert leads[:7].tolist() == pytest.approx([1, 3, 2, -2, -0.5, 2.5, 5 - 7 / 3])


def test_wander_is_slow_and_bounded():
    still = torch.zeros(64, 12, 5000)
    drift = A.baseline_wander(still, FS, generator(8), probability=1.0, size_mv=0.25)
    spectrum = torch.fft.rfft(drift * torch.hann_window(5000)).abs() ** 2
    frequency = torch.fft.rfftfreq(5000, 1 / FS)
    assert spectrum[..., frequency > 0.6].sum() / spectrum.sum() < 1e-3
    assert 0.05 < drift.std() < 0.6
    assert drift.abs().max() <= 3 * 0.25 * 2 + 1e-6  # three cosines, two electrodes


def test_powerline_is_50_or_60_hz():
    hum = A.powerline(torch.zeros(64, 12, 5000), FS, generator(9), probability=1.0)
    frequency = torch.fft.rfftfreq(5000, 1 / FS)
    top = frequency[torch.fft.rfft(hum[:, 1]).abs().argmax(dim=1)]
    assert {round(value) for value in top.tolist()} == {50, 60}
    ecg = torch.zeros(2, 12, 100)
    assert torch.equal(A.powerline(ecg, 100, generator(9), probability=1.0), ecg)  # 60 Hz can't be told at 100 Hz


def test_muscle_noise_has_no_slow_part():
    noise = A.muscle_noise(torch.zeros(32, 12, 5000), FS, generator(10), probability=1.0)
    spectrum = torch.fft.rfft(noise).abs() ** 2
    frequency = torch.fft.rfftfreq(5000, 1 / FS)
    slow = spectrum[..., frequency < 2].mean()
    fast = spectrum[..., (frequency > 40) & (frequency < 200)].mean()
    assert slow < 0.02 * fast


def test_mask_time_windows_are_as_long_as_said():
    ecg = torch.ones(200, 12, 5000)
    masked = A.mask_time(ecg, FS, generator(11), probability=1.0, windows=1)
    hidden = (masked == 0).sum(dim=2)
    assert (hidden == hidden[:, :1]).all()  # the same in all leads
    assert hidden.min() >= 0.08 * FS - 1
    assert hidden.max() <= 0.18 * FS + 1
    runs = (masked[:, 0].diff(dim=1) != 0).sum(dim=1)
    assert runs.max() <= 2  # one window in one piece


def test_mask_leads_hides_one_to_most():
    masked = A.mask_leads(torch.ones(500, 12, 10), generator(12), probability=1.0, most=3)
    count = (masked == 0).all(dim=2).sum(dim=1)
    assert set(count.tolist()) == {1, 2, 3}
    assert (masked == 0).all(dim=2).float().mean(dim=0).min() > 0.1  # every lead has its turn


def test_scale_stays_within_bounds():
    ecg = batch(300)
    factor = (A.scale(ecg, generator(13), probability=1.0, most=0.1) / ecg).flatten(1)
    assert factor.min() > 0.9 - 1e-3
    assert factor.max() < 1.1 + 1e-3
    assert (factor.max(dim=1).values - factor.min(dim=1).values).max() < 1e-3  # one factor for all leads


def test_shift_moves_and_pads_with_zero():
    ecg = torch.arange(1, 1001, dtype=torch.float32).repeat(50, 12, 1)
    moved = A.shift(ecg, FS, generator(14), probability=1.0, seconds=0.5)
    for one in moved:
        kept = one[0][one[0] != 0]
        assert (kept.diff() == 1).all()  # in one piece, nothing rolled round
        assert len(kept) >= 1000 - 250
        assert torch.equal(one[0], one[7])


def test_reading_survives():
    """RR from the R peaks, before and after all disturbances: label-safe means that it stays."""
    from scipy.signal import find_peaks

    ecg = torch.from_numpy(np.stack([synthesize(seed, finding="NORM").signal for seed in range(16)]))
    augment = A.Augment(FS, **dict.fromkeys(CALLS, 1.0) | {"shift": 0.0, "mask_time": 0.0, "mask_leads": 0.0})
    after = augment(ecg, generator(15))

    def rr(signal):
        calm = np.apply_along_axis(np.convolve, 1, signal[[1, 7, 10]], np.ones(10) / 10, "valid")  # 20 ms: no hum
        steep = np.convolve(np.abs(calm[:, 5:] - calm[:, :-5]).sum(axis=0), np.ones(31) / 31, mode="same")
        return np.median(np.diff(find_peaks(steep, height=0.5 * np.quantile(steep, 0.99), distance=150)[0]))

    for one, two in zip(ecg.numpy(), after.numpy(), strict=True):
        assert abs(rr(one) - rr(two)) <= 5


def test_augment_as_a_whole():
    ecg = batch(200)
    augment = A.Augment(fs=FS)
    assert torch.equal(augment(ecg, generator(1)), augment(ecg, generator(1)))
    assert changed(ecg, augment(ecg, generator(1))).mean() > 0.9
    off = A.Augment(FS, **{name: 0.0 for name in CALLS})
    assert torch.equal(off(ecg, generator(1)), ecg)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: A.Augment(fs=FS, scale=1.5), "scale=1.5"),
        (lambda: A.scale(torch.zeros(12, 100), generator()), r"expected \(batch, 12, time\)"),
        (lambda: A.scale(torch.zeros(1, 12, 100), generator(), most=0.5), "0 to 0.3"),
        (lambda: A.shift(torch.zeros(1, 12, 100), FS, generator(), seconds=5), "0.2 s"),
        (lambda: A.mask_leads(torch.zeros(1, 12, 100), generator(), most=12), "1 to 11"),
        (lambda: A.mask_time(torch.zeros(1, 12, 20), FS, generator()), "windows 4"),
        (lambda: A.baseline_wander(torch.zeros(1, 12, 20), FS, generator(), probability=2), "0 to 1"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ParameterError, match=message):
        call()

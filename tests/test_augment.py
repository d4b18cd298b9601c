"""Augmentations: how many records they change, by how much, and what they leave true."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from ecgchat_lib import augment as A
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.ecg import filters
from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.measure import measure
from ecgchat_lib.ecg.recording import Patient, Recording
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
    "warp": lambda x, g, p: A.warp(x, g, probability=p),
    "stretch": lambda x, g, p: A.stretch(x, g, probability=p)[0],
    "resample": lambda x, g, p: A.resample(x, FS, g, probability=p),
}
SHARES = {name: getattr(A.Augment(FS), name) for name in CALLS}


def only(**shares):
    """An `Augment` with nothing else than what is named."""
    return A.Augment(FS, **dict.fromkeys(CALLS, 0.0) | shares)


def within(count, n, probability):
    """Whether a count of n is one that chance brings in all but one of 100,000 cases."""
    return binom.ppf(5e-6, n, probability) <= count <= binom.ppf(1 - 5e-6, n, probability)


def changed(before, after):
    return (before != after).flatten(1).any(dim=1).float()


@pytest.mark.parametrize("name", CALLS)
def test_it_changes_the_share_it_says(name):
    ecg = batch(1500, 200)
    for probability in (0.0, 0.1, 0.3, 0.75, 1.0):
        count = int(changed(ecg, CALLS[name](ecg, generator(3), probability)).sum())
        assert within(count, len(ecg), probability), (name, probability, count)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("share", [None, 0.4])
def test_so_does_augment(name, share):
    share = SHARES[name] if share is None else share
    ecg = batch(1000, 300)
    count = int(changed(ecg, only(**{name: share})(ecg, generator(3))).sum())
    assert within(count, len(ecg), share)


def test_which_records_are_changed_is_independent_from_one_to_the_next():
    ecg = batch(4000, 100)
    hit = changed(ecg, A.warp(ecg, generator(17), probability=0.5))
    assert within(int((hit[1:] == hit[:-1]).sum()), len(hit) - 1, 0.5)


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
    for kind, error in ((torch.float16, 0.02), (torch.bfloat16, 0.2), (torch.float64, 1e-3)):
        other = CALLS[name](ecg.to(kind), generator(6), 0.5)
        assert other.dtype == kind
        assert other.shape == ecg.shape
        assert (other - CALLS[name](ecg, generator(6), 0.5)).abs().max() < error  # values are up to about 10


@pytest.mark.parametrize("name", CALLS)
def test_unchanged_records_are_unchanged_to_the_bit(name):
    for kind in (torch.float16, torch.float64):
        ecg = batch(40).to(kind)
        after = CALLS[name](ecg, generator(6), 0.3)
        hit = changed(ecg, after) > 0
        assert hit.any()
        assert torch.equal(ecg[~hit], after[~hit])


@pytest.mark.parametrize("name", CALLS)
def test_draws_do_not_depend_on_the_device_of_the_ecg(name):
    """A tensor without storage stands for another machine: the generator must be where it was after a CPU's batch."""
    ecg = batch(30)
    one, two = generator(8), generator(8)
    CALLS[name](ecg, one, 0.5)
    assert CALLS[name](ecg.to("meta"), two, 0.5).device.type == "meta"
    assert torch.equal(one.get_state(), two.get_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", CALLS)
def test_same_result_on_a_gpu(name):
    ecg = batch(30)
    found = CALLS[name](ecg.cuda(), generator(8), 0.5).cpu()
    assert torch.allclose(found, CALLS[name](ecg, generator(8), 0.5), atol=1e-4)


def test_sizes_of_pieces_and_threads_do_not_matter(monkeypatch):
    ecg, everything = batch(30), A.Augment(FS, **dict.fromkeys(CALLS, 0.5))
    whole = everything(ecg, generator(9))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.allclose(whole, everything(ecg, generator(9)), atol=1e-5)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(A, "PIECE", 1)
    assert torch.allclose(whole, everything(ecg, generator(9)), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(260, 700), st.sampled_from([100.0, 250.0, 257.0, 500.0]), st.integers(0, 99))
def test_any_length_and_rate(n, total, fs, seed):
    ecg = batch(n, total, seed)
    share = dict.fromkeys(CALLS, 0.5)
    after, factors = A.Augment(fs, **share).with_factors(ecg[:, :, ::1], generator(seed))
    assert after.shape == ecg.shape
    assert after.isfinite().all()
    assert factors.time.shape == factors.size.shape == (n,)
    turned = ecg.transpose(1, 2).contiguous().transpose(1, 2)  # the same numbers, laid out otherwise
    assert torch.equal(A.Augment(fs, **share)(turned, generator(seed)), after)


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


def test_muscle_noise_is_as_large_as_said_and_nearly_normal():
    size = 0.02
    noise = A.muscle_noise(torch.zeros(400, 12, 1000), FS, generator(10), probability=1.0, size_mv=size)
    # Sizes are even up to `size`, so the mean square at an electrode is size² / 3, and a limb lead is between two.
    assert noise[:, 0].square().mean().item() == pytest.approx(2 * size**2 / 3, rel=0.1)
    each = noise / noise.std(dim=2, keepdim=True)
    assert (each**4).mean().item() == pytest.approx(3, abs=0.5)  # 1.8 for even numbers, 3 for normal ones
    assert (
        abs((noise[:, 6, 1:] * noise[:, 6, :-1]).mean() / noise[:, 6].square().mean()) < 0.02
    )  # white but for the lag


def test_nan_stays_in_its_record():
    ecg = batch(6)
    clean = A.Augment(FS, **dict.fromkeys(CALLS, 1.0))(ecg, generator(1))
    ecg[2, 3, 100] = torch.nan
    after = A.Augment(FS, **dict.fromkeys(CALLS, 1.0))(ecg, generator(1))
    others = [0, 1, 3, 4, 5]
    assert torch.equal(after[others], clean[others])


def ramp(n=60, total=1000):
    """Leads that say at which sample they are read; cubic interpolation gives straight lines back as they are."""
    return torch.arange(total, dtype=torch.float32).repeat(n, 12, 1)


@pytest.mark.parametrize("most", [0.005, 0.03, 0.1])
def test_warp_is_bounded_smooth_and_fixed_at_the_ends(most):
    read = A.warp(ramp(), generator(18), probability=1.0, most=most)
    assert (read[:, :, [0, -1]] - torch.tensor([0.0, 999.0])).abs().max() < 1e-2
    speed = read[:, 0].diff(dim=1)[:, 2:-2]
    assert (speed - 1).abs().max() < most + 2e-3  # places are read to a thousandth of a sample
    assert (speed - 1).abs().amax(dim=1).median() > most / 5  # and it does something
    smooth = speed.unfold(1, 50, 50).mean(dim=2)
    assert smooth.diff(dim=1).abs().max() < most / 2
    assert torch.equal(read[:, 0], read[:, 11])  # all leads at once
    assert len(set(read[:, 0, 300].tolist())) > 55  # each has its own


def test_stretch_multiplies_time_by_the_factor_it_returns():
    read, factors = A.stretch(ramp(), generator(19), probability=0.7, most=0.1)
    assert (factors.time >= 0.9).all()
    assert (factors.time <= 1.1).all()
    assert torch.equal(factors.size, torch.ones(60))
    assert torch.equal(factors.time != 1, changed(ramp(), read) > 0)
    slope = (read[:, 0, 700] - read[:, 0, 300]) / 400
    assert torch.allclose(slope, 1 / factors.time, atol=1e-4)
    assert torch.allclose(read[:, 0, 499:501].mean(dim=1), torch.tensor(499.5), atol=1e-2)  # the middle stays
    fast = factors.time < 0.99
    assert (read[fast][:, :, [0, -1]] == 0).all()  # nothing is known beyond the ends


def test_reading_between_samples_keeps_what_is_slower_than_a_quarter_of_the_rate():
    for hertz, error in ((5, 1e-4), (20, 0.003), (60, 0.12)):
        time = torch.arange(1000) / 250
        wave = torch.sin(2 * torch.pi * hertz * time).repeat(1, 12, 1)
        read = A._read(wave, torch.full((1, 1000), 0.5))[0, 0, 5:-5]
        expected = torch.sin(2 * torch.pi * hertz * (time + 0.002))[5:-5]
        assert (read - expected).abs().max() < error


@pytest.mark.parametrize(("fs", "rate"), [(500, 100), (500, 360), (500, 128), (500, 257), (257, 250), (100, 62.5)])
def test_resample_is_the_librarys_filter_there_and_back(fs, rate):
    ecg = torch.from_numpy(filters.bandpass(np.asarray(batch(3, 5 * fs)), fs)) + 0.4  # an offset must come through
    found = A.resample(ecg, fs, generator(20), probability=1.0, rates=(rate,))
    there = filters.resample(ecg.numpy(), fs, rate)
    expected = filters.resample(there, rate, fs)[..., : ecg.shape[2]]
    inner = slice(fs, 4 * fs)  # the ends are held, and there a line goes on
    assert np.abs(found.numpy()[..., inner] - expected[..., inner]).max() < 5e-3 * ecg.std()


def test_resample_takes_away_what_is_above_half_the_rate():
    time = torch.arange(5000) / FS
    ecg = torch.stack([torch.sin(2 * torch.pi * hertz * time) for hertz in (5, 30, 45, 60, 90, 120)]).repeat(1, 2, 1)
    left = A.resample(ecg, FS, generator(), probability=1.0, rates=(100,))[0, :6, 1000:4000].square().mean(dim=1) * 2
    assert left[:2].tolist() == pytest.approx([1, 1], abs=0.01)
    assert left[3:].max() < 1e-3


def test_each_rate_has_its_turn_and_others_are_left_out():
    impulse = torch.zeros(300, 12, 400)
    impulse[:, :, 200] = 1
    height = A.resample(impulse, FS, generator(21), probability=1.0, rates=(100, 250, 800)).amax(dim=(1, 2))
    few = height < 0.35
    assert within(int(few.sum()), 300, 0.5)
    assert torch.equal(A.resample(impulse, 100, generator(), probability=1.0), impulse)  # nothing below 100 Hz


def test_factors_of_measured_numbers():
    time, size = torch.tensor([1.0, 1.1]), torch.tensor([0.9, 1.0])
    found = A.Factors(time, size).of(("rr_ms", "qt_ms", "heart_rate_bpm", "r_mv"))
    assert found.tolist() == [pytest.approx([1, 1, 1, 0.9]), pytest.approx([1.1, 1.1, 1 / 1.1, 1])]
    rr, qt = 0.8, 400.0  # s, ms
    bazett, fridericia = A.Factors(time, size).of(("qtc_ms", "qtc_fridericia_ms"))[1].tolist()
    assert qt * 1.1 / (rr * 1.1) ** 0.5 == pytest.approx(bazett * qt / rr**0.5)
    assert qt * 1.1 / (rr * 1.1) ** (1 / 3) == pytest.approx(fridericia * qt / rr ** (1 / 3))


def test_augment_tells_its_factors():
    ecg = torch.ones(300, 12, 300)
    after, factors = only(scale=0.6).with_factors(ecg, generator(22))
    assert torch.allclose(after, factors.size[:, None, None].expand_as(after))
    assert torch.equal(factors.time, torch.ones(300))
    after, factors = only(stretch=0.6).with_factors(ramp(300, 300), generator(22))
    assert torch.allclose((after[:, 0, 200] - after[:, 0, 100]) / 100, 1 / factors.time, atol=1e-3)
    assert torch.equal(factors.size, torch.ones(300))
    assert within(int((factors.time != 1).sum()), 300, 0.6)


def measured(ecg, fs=FS):
    """The five measurements of time and R of each record."""
    rows = []
    for signal in ecg.numpy():
        found = measure(Recording("a", signal, fs, LEADS, Patient(), (), None, ()))
        rows.append([getattr(found, name) for name in MEASURED])
    return np.array(rows)


MEASURED = ("rr_ms", "pr_ms", "qrs_ms", "qt_ms", "qtc_ms", "r_mv")


def test_measured_numbers_follow_the_factors_and_bear_the_warp():
    ecg = torch.from_numpy(np.stack([synthesize(seed, finding="NORM").signal for seed in range(6)]))
    before = measured(ecg)
    slower, factors = A.stretch(ecg, generator(23), probability=1.0, most=0.1)
    expected = before * factors.of(MEASURED).numpy()
    assert np.isfinite(before).mean() > 0.9
    bound = np.array([10, 8, 8, 12, 14, 0.05])  # ms, mV: by what two measurements of one heart differ
    assert np.nanmax(np.abs(measured(slower) - expected) / bound) < 1
    warped = measured(A.warp(ecg, generator(23), probability=1.0))
    assert np.nanmax(np.abs(warped - before) / (bound + 0.01 * before)) < 1  # of the 3 % at most at a place


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


TIME_OR_LOSS = ("shift", "mask_time", "mask_leads", "warp", "stretch")


def test_reading_survives():
    """RR from the R peaks, before and after all disturbances: label-safe means that it stays."""
    from scipy.signal import find_peaks

    ecg = torch.from_numpy(np.stack([synthesize(seed, finding="NORM").signal for seed in range(16)]))
    augment = A.Augment(FS, **dict.fromkeys(CALLS, 1.0) | dict.fromkeys(TIME_OR_LOSS, 0.0))
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
    assert torch.equal(only()(ecg, generator(1)), ecg)
    assert A.Augment(FS).stretch == 0  # the text would have to follow


def test_augment_at_100_hz():
    """12 × 1000 samples: no hum, which would fold, and no lower rate; the rest as at 500 Hz."""
    ecg = batch(200, 1000)
    slow = {name: A.Augment(100, **dict.fromkeys(CALLS, 0.0) | {name: 0.5}) for name in CALLS}
    shares = {name: changed(ecg, augment(ecg, generator(2))).mean().item() for name, augment in slow.items()}
    assert shares["powerline"] == shares["resample"] == 0
    assert all(0.3 < share < 0.7 for name, share in shares.items() if name not in ("powerline", "resample"))
    everything = A.Augment(100, **dict.fromkeys(CALLS, 1.0) | {"mask_leads": 0.0})(ecg, generator(2))
    assert (everything[:, 0] + everything[:, 2] - everything[:, 1]).abs().max() < 1e-4


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
        (lambda: A.warp(torch.zeros(1, 12, 20), generator(), most=0.5), "0 to 0.1"),
        (lambda: A.stretch(torch.zeros(1, 12, 20), generator(), most=0.5), "0 to 0.2"),
        (lambda: A.resample(torch.zeros(1, 12, 20), FS, generator(), rates=(0,)), "expected Hz"),
        (lambda: A.resample(torch.zeros(1, 12, 20), FS, generator(), rates=(float("nan"),)), "expected Hz"),
        (lambda: A.scale(torch.zeros(1, 12, 20, dtype=torch.int16), generator()), "floating"),
        (lambda: A.scale(torch.zeros(0, 12, 20), generator()), r"\(0, 12, 20\)"),
        (lambda: A.Factors(torch.ones(1), torch.ones(1)).of(("rr", "qt_ms")), r"\['rr'\]"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ParameterError, match=message):
        call()

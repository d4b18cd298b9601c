from __future__ import annotations

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.quality import flat_leads, identity_residuals, judge
from ecgchat_lib.ecg.recording import Recording, read_recording
from ecgchat_lib.paths import data_folder

SAMPLES = sorted(path.with_suffix("") for path in (data_folder() / "real_sample").glob("*.hea"))
GOOD = read_recording(SAMPLES[1])


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def damaged(change):
    signal = GOOD.signal.copy()
    return replace(GOOD, signal=np.asarray(change(signal), dtype=np.float32))


def with_rows(signal, rows, values):
    signal[rows] = values
    return signal


def derived(signal):
    """Disturb I, II and the chest leads, and derive the others as a cardiograph does: the identities still hold."""
    i, ii = signal[0], signal[1]
    signal[2:6] = ii - i, -(i + ii) / 2, i - ii / 2, ii - i / 2
    return signal


def gap(signal, part):
    signal[:, : round(part * signal.shape[1])] = np.nan
    return signal


T = np.arange(GOOD.signal.shape[1]) / GOOD.fs
NOISE = np.random.default_rng(0).normal(0, 0.2, GOOD.signal.shape)
SPIKES = (np.arange(GOOD.signal.shape[1]) % 400 < 2) * 1.0
DAMAGE = {
    "flat lead": (lambda x: with_rows(x, 7, 0), True, "flat or missing: V2"),
    "six flat leads": (lambda x: with_rows(x, slice(6, 12), 0.3), False, "flat or missing: V1, V2, V3, V4, V5, V6"),
    "missing lead": (lambda x: with_rows(x, 7, np.nan), True, "flat or missing: V2"),
    "a gap": (lambda x: gap(x, 0.1), True, "10.0% of the samples are missing"),
    "mostly gap": (lambda x: gap(x, 0.7), False, "70.0% of the samples are missing"),
    "clipped": (
        lambda x: with_rows(x, slice(6, 12), x[6:].clip(-0.15, 0.15)),
        True,
        "clipped at the amplifier's limit",
    ),
    "noise": (lambda x: derived(x + NOISE), True, "noise above 40 Hz"),
    "mains": (lambda x: derived(x + 0.2 * np.sin(2 * np.pi * 50 * T)), True, "noise above 40 Hz"),
    "wander": (lambda x: derived(x + 1.5 * np.sin(2 * np.pi * 0.2 * T)), True, "the baseline wanders"),
    "microvolts": (lambda x: x * 1000, False, "check electrode, gain and unit"),
    "volts": (lambda x: x / 1000, False, "flat or missing"),
    "a twentieth": (lambda x: x / 20, False, "no lead reaches 0.15 mV"),
    "I and II swapped": (lambda x: x[[1, 0, *range(2, 12)]], False, r"II is not I \+ III"),
    "aVR upside down": (lambda x: with_rows(x, 3, -x[3]), False, r"aVR \+ aVL \+ aVF is not 0"),
    "lead III of another gain": (lambda x: with_rows(x, 2, 2 * x[2]), True, "with other gains"),
    "half a second": (lambda x: x[:, :250], False, "only 0.50 s long"),
    "three seconds": (lambda x: x[:, :1500], True, "too short to judge the rhythm"),
    "no sample": (lambda x: x[:, :0], False, "only 0.00 s long"),
    "pacemaker": (lambda x: derived(x + SPIKES), True, "spikes as of a pacemaker"),
}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_the_real_recordings_are_usable(path):
    assert judge(read_recording(path)).usable


def test_a_good_recording_has_no_warning():
    assert judge(GOOD) == type(judge(GOOD))(True, ())


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name):
    change, usable, words = DAMAGE[name]
    found = judge(damaged(change))
    assert found.usable is usable, found.warnings
    assert any(re.search(words, warning) for warning in found.warnings), found.warnings


def test_leads_derived_from_each_other_leave_no_rest():
    i, ii = np.random.default_rng(1).normal(size=(2, 1000))
    limb = [i, ii, ii - i, -(i + ii) / 2, i - ii / 2, ii - i / 2]
    rest = identity_residuals(np.stack([*limb, *np.zeros((6, 1000))]))
    assert rest["Einthoven"] < 1e-12
    assert rest["Goldberger"] < 1e-12
    assert identity_residuals(np.zeros((12, 10))) == {"Einthoven": 0.0, "Goldberger": 0.0}
    assert all(value > 0.5 for value in identity_residuals(np.random.default_rng(2).normal(size=(12, 1000))).values())


def test_a_lead_that_lives_for_a_second_is_not_flat():
    signal = np.zeros((12, 5000), np.float32)
    signal[:, 1000:1500] = np.sin(np.arange(500) / 20)
    assert flat_leads(Recording("x", signal, 500.0)) == ()
    signal[4] = 0
    assert flat_leads(Recording("x", signal, 500.0)) == (LEADS[4],)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1200),
    st.sampled_from([1.0, 40.0, 100.0, 500.0, 5000.0]),
    st.integers(0, 10**6),
    st.floats(1e-6, 1e6),
)
def test_whatever_comes_is_judged(time, fs, seed, scale):
    signal = np.random.default_rng(seed).normal(0, scale, (12, time)).astype(np.float32)
    found = judge(Recording("x", signal, fs))
    assert all(isinstance(warning, str) and "\n" not in warning for warning in found.warnings)
    assert found.usable or found.warnings

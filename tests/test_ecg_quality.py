from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.quality import Quality, flat_leads, identity_residuals, judge
from ecgchat_lib.ecg.recording import Recording, read_recording
from ecgchat_lib.ecg.reversal import CHEST_SWAPS, LIMB_SWAPS, SWAPS, swap_electrodes
from ecgchat_lib.errors import ParameterError
from ecgchat_lib.paths import data_folder, project_root

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
    "mains": (lambda x: derived(x + 0.2 * np.sin(2 * np.pi * 50 * T)), True, "mains hum of 50 Hz, up to 0.2"),
    "American mains": (lambda x: derived(x + 0.1 * np.sin(2 * np.pi * 60 * T)), True, "mains hum of 60 Hz, up to 0.1"),
    "a burst": (lambda x: derived(x + 2 * NOISE * ((T > 3) & (T < 5))), True, "a burst of noise"),
    "a jump": (lambda x: with_rows(x, 8, x[8] + 1.0 * (T > 4.2)), True, "the level jumps by up to 1.0 mV"),
    "still": (lambda x: with_rows(x, (8, slice(1000, 2500)), 0.1), True, "without any change for up to 3.0 s: V3"),
    "V1 twice": (lambda x: with_rows(x, 7, x[6]), True, "the same signal twice: V1 and V2"),
    "noise alone": (lambda x: derived(NOISE.copy()), False, "no heartbeats stand out"),
    "arms swapped": (lambda x: swap_electrodes(x, "RA/LA"), True, r"of right arm and left arm \(RA/LA\)"),
    "right arm and leg": (lambda x: swap_electrodes(x, "RA/RL"), True, r"of right arm and right leg \(RA/RL\)"),
    "V1 and V2 swapped": (lambda x: swap_electrodes(x, "V1/V2"), True, "of V1 and V2 may be in each other's place"),
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
    assert judge(GOOD) == Quality(True, ())


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


@pytest.mark.parametrize("name", DAMAGE)
def test_findings_say_the_same_with_numbers(name):
    found = judge(damaged(DAMAGE[name][0]))
    assert tuple(item.words for item in found.findings) == found.warnings
    assert found.usable == all(item.severity == "warn" for item in found.findings)
    assert found.reasons == tuple(item.words for item in found.findings if item.severity == "abstain")
    content = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert content["usable"] is found.usable
    for item in content["findings"]:
        assert set(item) == {"kind", "severity", "words", "leads", "number", "limit", "unit"}
        assert set(item["leads"]) <= set(LEADS)
        assert item["number"] is not None
        assert item["limit"] is not None


def test_reasons_of_a_verdict_without_findings():
    assert Quality(False, ("flat", "short")).reasons == ("flat", "short")
    assert Quality(True, ("flat",)).reasons == ()


def test_the_gravest_comes_first():
    found = judge(damaged(lambda x: with_rows(1000 * derived(x + 0.2 * np.sin(2 * np.pi * 50 * T)), 7, 0)))
    assert [item.severity for item in found.findings][:2] == ["abstain", "warn"]


def potentials(rng):
    return rng.normal(size=(10, 200))  # RA, LA, LL, RL, V1-V6


def recorded(electrodes):
    right, left, foot, _, *chest = electrodes
    wilson = (right + left + foot) / 3
    limb = [left - right, foot - right, foot - left, right - (left + foot) / 2]
    limb += [left - (right + foot) / 2, foot - (right + left) / 2]
    return np.stack([*limb, *(electrode - wilson for electrode in chest)])


@pytest.mark.parametrize("swap", SWAPS)
def test_the_algebra_is_that_of_the_electrodes(swap):
    electrodes = potentials(np.random.default_rng(3))
    electrodes[3] = electrodes[2]  # both legs have one potential
    names = ["RA", "LA", "LL", "RL", "V1", "V2", "V3", "V4", "V5", "V6"]
    one, other = (names.index(name) for name in swap.split("/"))
    exchanged = electrodes.copy()
    exchanged[[one, other]] = exchanged[[other, one]]
    assert swap_electrodes(recorded(electrodes), swap) == pytest.approx(recorded(exchanged), abs=1e-12)


@pytest.mark.parametrize("swap", [*LIMB_SWAPS, *CHEST_SWAPS])
def test_an_exchange_undoes_itself_and_breaks_no_identity(swap):
    true = recorded(potentials(np.random.default_rng(4)))
    swapped = swap_electrodes(true, swap)
    assert not np.allclose(swapped, true)
    assert swap_electrodes(swapped, swap) == pytest.approx(true, abs=1e-12)
    assert max(identity_residuals(swapped).values()) < 1e-12


def test_only_exchanges_that_exist():
    with pytest.raises(ParameterError, match="RA/LA"):
        swap_electrodes(GOOD.signal, "RA/V1")


def called(recording):
    return [item.words for item in judge(recording).findings if item.kind == "reversal"]


def test_no_gain_no_rate_and_no_offset_changes_what_is_called():
    from ecgchat_lib.ecg.filters import resample

    swapped = swap_electrodes(GOOD.signal, "RA/LA").astype(np.float32)
    words = called(replace(GOOD, signal=swapped))
    assert words
    assert called(replace(GOOD, signal=2 * swapped + np.float32(0.7))) == words
    for fs in (250.0, 360.0, 1000.0):
        assert called(replace(GOOD, signal=resample(swapped, 500, fs), fs=fs)) == words


def test_the_samples_with_swapped_arms_are_noticed_and_none_is_without():
    recordings = [read_recording(path) for path in SAMPLES]
    assert [called(recording) for recording in recordings] == [[]] * 10
    for swap in ("RA/LA", "RA/LL"):
        swapped = [replace(r, signal=swap_electrodes(r.signal, swap).astype(np.float32)) for r in recordings]
        assert sum(any(swap in words for words in called(recording)) for recording in swapped) >= 9


def test_a_lead_that_fell_off_is_no_exchange():
    assert called(damaged(lambda x: with_rows(x, 1, 0))) == []


def test_a_pacemaker_s_rhythm_is_not_asked_about_electrodes():
    spiky = damaged(lambda x: derived(swap_electrodes(x, "RA/LA") + SPIKES))
    assert called(spiky) == []


@pytest.mark.parametrize("shape", ["sine", "square", "walk", "same ECG in all leads", "ramp", "steps"])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_no_ecg_is_refused(shape, seed):
    rng = np.random.default_rng(seed)
    one = {
        "sine": np.sin(2 * np.pi * rng.uniform(0.5, 9) * T),
        "square": np.sign(np.sin(2 * np.pi * rng.uniform(0.5, 3) * T)),
        "walk": np.cumsum(rng.normal(0, 0.02, len(T))),
        "same ECG in all leads": GOOD.signal[1].astype(float) * 2,
        "ramp": T / 5,
        "steps": np.repeat(rng.normal(size=len(T) // 250), 250),
    }[shape]
    gains = rng.uniform(0.3, 1, 12) * rng.choice([-1, 1], 12)
    signal = derived(gains[:, None] * one + rng.normal(0, 0.004, (12, len(T))))
    assert not judge(Recording("x", signal.astype(np.float32), 500.0)).usable


def test_two_chest_leads_of_a_sample_are_one():
    assert "the same signal twice: V3 and V4" in judge(read_recording(SAMPLES[8])).warnings


def test_a_held_last_value_is_no_clipping():
    assert judge(damaged(lambda x: with_rows(x, (9, slice(-60, None)), x[9].max() + 0.3))).warnings == ()


@pytest.mark.slow
@pytest.mark.real_data
def test_the_recorded_shares_hold_on_ludb():
    if not os.environ.get("ECGCHAT_REAL_DATA"):
        pytest.skip("ECGCHAT_REAL_DATA isn't set: reversals in LUDB not counted")
    sys.path.insert(0, str(project_root() / "benchmarks"))
    try:
        from quality import reversals
        from real_records import others, real_folder
    finally:
        sys.path.pop(0)
    found = reversals({"LUDB": [real for real in others(real_folder()) if real.source == "LUDB"]})["LUDB"]
    recorded_shares = json.loads((data_folder() / "results" / "quality.json").read_text(encoding="utf-8"))
    expected = recorded_shares["reversals, by lead algebra"]["LUDB"]
    assert found.keys() == expected.keys()
    for swap in ("RA/LA", "RA/LL"):
        assert found[swap]["rightly named"]["share"] >= 0.9
        assert found[swap]["called as they are"]["found"] == 0


def test_the_benchmark_says_what_it_needs():
    environment = {key: value for key, value in os.environ.items() if key != "ECGCHAT_REAL_DATA"}
    command = [sys.executable, str(project_root() / "benchmarks" / "quality.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode != 0
    assert "ECGCHAT_REAL_DATA" in done.stderr

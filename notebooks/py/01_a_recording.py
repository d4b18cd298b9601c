# %% tags=["parameters"]
PROFILE = "ci"  # which machine the sizes are for: ci|cpu|t4|h100
SEED = 7  # seed of every random draw, 0..2147483647
RECORD = "A0001"  # the recording to read: A0001|A0002|A0003|A0004|A0005|A0006|A0007|A0008|A0009|A0010
NOISE_MV = 0.2  # standard deviation of the noise that spoils the damaged copy, 0.1..5.0

# %% tags=["setup"]
from ecgchat_lib.course import check, start

run = start("01", globals())

# %% [markdown]
# ## 1. On paper
#
# The heart is a muscle that is told by electricity when to contract. Ten electrodes on the skin pick up what is left of
# that electricity at the surface: about a thousandth of a volt. From them, a cardiograph computes twelve *leads*,
# twelve views of the same heart, and prints them on millimeter paper. For a hundred years the scale has been the same:
# **25 mm are one second, 10 mm are one millivolt.**

# %%
from ecgchat_lib.course.figures import f01
from ecgchat_lib.ecg.measure import measure
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.paths import data_folder

sample = data_folder() / "real_sample"
recording = read_recording(sample / RECORD)
run.show(f01.on_paper, recording, measure(recording))

# %% [markdown]
# How to read it:
#
# | on paper | is |
# | --- | --- |
# | a small box, 1 mm | 40 ms across, 0.1 mV up |
# | a large box, 5 mm | 200 ms across, 0.5 mV up |
# | the step at the left of each row | the calibration pulse: 1 mV high, 200 ms wide |
# | the small, round wave before the spike | **P**: the atria are excited |
# | the sharp spikes | **QRS**: the ventricles are excited |
# | the round wave after them | **T**: the ventricles recover |
#
# The columns follow each other in time: aVR begins where I ends. Lead II runs along the foot without a break, so that
# one can follow the rhythm.
#
# **Predict:** count the large boxes between two neighboring QRS complexes in the bottom row. Five large boxes are a
# second, so 300 divided by that count is the heart rate. Write your number down; section 6 measures it.
#
# ## 2. Twelve leads, and two of them would do for six
#
# A lead is a *difference of potentials*. Three limb electrodes, on the right arm (R), left arm (L) and left foot (F),
# give three differences (Einthoven) and three comparisons of one limb with the mean of the other two (Goldberger).
# With potentials that we make up, in millivolts, by hand:

# %%
right, left, foot = -0.2, 0.3, 0.9
one, two, three = left - right, foot - right, foot - left
avr, avl, avf = right - (left + foot) / 2, left - (right + foot) / 2, foot - (right + left) / 2
print(f"I {one:.2f}   II {two:.2f}   III {three:.2f}   and I + III = {one + three:.2f}")
print(f"aVR {avr:.2f}   aVL {avl:.2f}   aVF {avf:.2f}   and their sum = {abs(avr + avl + avf):.2f}")

# %% [markdown]
# Whatever the potentials are, **II = I + III** and **aVR + aVL + aVF = 0**. So two of the six limb leads hold all there
# is to know (exercise 01.1), and a recording that breaks an identity is broken, or its leads carry wrong names. The six
# chest leads V1–V6 are something else: nothing ties them together.
#
# Does the real recording obey? What should be zero, as a fraction of the leads' own size:

# %%
from ecgchat_lib.ecg.quality import identity_residuals

lead = dict(zip(recording.leads, recording.signal.astype(float), strict=True))
print(f"largest |I + III - II|:        {abs(lead['I'] + lead['III'] - lead['II']).max():.3f} mV")
print(f"largest |aVR + aVL + aVF|:     {abs(lead['aVR'] + lead['aVL'] + lead['aVF']).max():.3f} mV")
for law, rest in identity_residuals(recording.signal).items():
    print(f"{law:10} is off by {rest:.1%} of the leads' size")

# %% [markdown]
# A thousandth of a millivolt is one step of this file's integers (next section): rounding, no more.
#
# Why are six views worth having, if they are computed from two? Because a clinician sees at a glance where the
# excitation goes. Each lead shows the shadow of one arrow on its own direction. To find the arrow, take the mean of the
# QRS complex in I (which points left) and aVF (which points down). Goldberger's leads are shorter by √3/2, so aVF is
# divided by that.

# %%
import math

from ecgchat_lib.ecg.delineate import delineate
from ecgchat_lib.ecg.measure import typical_beat

measured = measure(recording)
peaks, beat = typical_beat(recording)
marks = delineate(beat, measured.rr_ms / 1000)
on, off = int(marks.qrs_on), int(marks.qrs_off)
net = (beat.signal[:, on : off + 1] - beat.signal[:, on : on + 1]).mean(axis=-1)
views = dict(zip(recording.leads[:6], net[:6].tolist(), strict=True))
axis = math.degrees(math.atan2(views["aVF"] * 2 / math.sqrt(3), views["I"]))
assert math.isclose(axis, measured.axis_deg, abs_tol=1e-6)
run.show(f01.six_views, views, axis)

# %% [markdown]
# Most hearts' arrows point somewhere between −30 and 90 degrees, to the left and down. That of A0001 points to the
# upper right: the path to its right ventricle is blocked (it is labeled *right bundle branch block*), so the right side
# is excited last, and alone.
#
# **Predict:** which lead would be tallest if the arrow pointed to 60 degrees? Which would be nearly flat? (Look for the
# lead along the arrow, and for the one across it.)
#
# ## 3. What the file holds
#
# On disk a recording is two files: integers from the analog-to-digital converter (ADC), and a text *header* that says
# what they mean.

# %%
for line in (sample / f"{RECORD}.hea").read_text().splitlines()[:3]:
    print(line)

# %% [markdown]
# The first line: the record's name, **12** signals, **500** samples a second, and how many samples. Then one line for
# each signal: its file, the format (**16** bits, behind 24 bytes of something else), **1000.0(0)/mV**: a thousand ADC
# units are one millivolt and the ADC value 0 is 0 mV; at the end of the line, the lead's name. That is enough to read
# it by hand:

# %%
import numpy as np

raw = np.fromfile(sample / f"{RECORD}.mat", dtype="<i2", offset=24).reshape(-1, 12).T
gain, baseline = 1000.0, 0
by_hand = (raw.astype(float) - baseline) / gain
print("integers of lead II:", raw[1, :6].tolist())
print("millivolts:         ", by_hand[1, :6].tolist())
assert np.array_equal(by_hand.astype(np.float32), recording.signal)

# %% [markdown]
# Six lines, and equal to the library's to the last bit. Why, then, is the library's reader longer? Because a header is
# *untrusted*. It can claim a billion samples, a gain of 0, a file in another folder. A reader that believes it runs out
# of memory or computes nonsense. `read_recording` checks every claim against the files before it lets `wfdb` decode
# them, and says in one line what is wrong and what to do:

# %%
import shutil

from ecgchat_lib.errors import RecordError


def write_liars(folder):
    folder.mkdir()
    good = (sample / f"{RECORD}.hea").read_text()
    shutil.copy(sample / f"{RECORD}.mat", folder)
    first, rest = good.split("\n", 1)
    name, leads, fs, samples = first.split()[:4]
    (folder / "long.hea").write_text(f"{name} {leads} {fs} 1000000000\n{rest}")
    (folder / "still.hea").write_text(f"{name} {leads} 0 {samples}\n{rest}")
    (folder / "elsewhere.hea").write_text(good.replace(f"{RECORD}.mat", f"../{RECORD}.mat"))
    (folder / "uncalibrated.hea").write_text(good.replace("1000.0(0)/mV", "0/mV"))
    (folder / "eleven.hea").write_text(good.replace(" V6\n", " resp\n"))


liars = run.artefact("01_liars", write_liars, record=RECORD)
for name in ("long", "still", "elsewhere", "uncalibrated", "eleven"):
    try:
        read_recording(liars / name)
    except RecordError as error:
        print(f"{name}: {error.found}.\n    {error.remedy}.")

# %% [markdown]
# ## 4. By name, not by position
#
# Nothing says that lead II is the second signal, or that it is written `II`. The original ECG-Chat takes leads by
# position and the sampling rate for granted. Here is the same recording, written backward and in capitals; WFDB allows
# both.

# %%
import wfdb

names = [name.upper() for name in recording.leads[::-1]]


def write_backward(folder):
    folder.mkdir()
    raw[::-1].T.tofile(folder / "backward.dat")
    lines = [f"backward.dat 16 1000/mV 16 0 0 0 0 {name}" for name in names]
    (folder / "backward.hea").write_text("\n".join([f"backward 12 {recording.fs:g} {raw.shape[1]}", *lines]))


path = run.artefact("01_backward", write_backward, record=RECORD) / "backward"
signal, _ = wfdb.rdsamp(str(path))
again = read_recording(path)
print("the file's order:       ", *names)
print("by position, 'lead II' is", names[1], "-", np.array_equal(signal[:, 1], by_hand[10]))
print("by name, all leads equal:", np.array_equal(again.signal, recording.signal), "-", *again.notes)

# %% [markdown]
# And the sampling rate: the same numbers, taken for 250 instead of 500 samples a second.
#
# **Predict:** does the heart rate double or halve? What happens to the width of the QRS complex?

# %%
from dataclasses import replace

slow = measure(replace(recording, fs=recording.fs / 2))
print(f"read right:        {measured.heart_rate_bpm:.0f} beats per minute, QRS {measured.qrs_ms:.0f} ms")
print(f"fs taken as 250:   {slow.heart_rate_bpm:.0f} beats per minute, QRS {slow.qrs_ms:.0f} ms")

# %% [markdown]
# No error, no warning: a healthy-looking number that is wrong. That is why `fs` travels with the signal, in one object,
# through the whole library.
#
# ## 5. Sampling
#
# Two devices rarely agree on a rate, and a model wants one. Taking every fifth sample of 500 Hz to get 100 Hz looks
# harmless. With a hum of 80 Hz, five samples by hand:

# %%
n = np.arange(5)
print("80 Hz at 100 samples/s: ", np.sin(2 * np.pi * 80 * n / 100).round(3).tolist())
print("20 Hz, upside down:     ", (-np.sin(2 * np.pi * 20 * n / 100)).round(3).tolist())

# %% [markdown]
# The same numbers: once sampled, nobody can tell them apart. The hum comes back disguised as something slow, in the
# middle of where heartbeats live (*aliasing*). So whatever the new rate can't hold, above half of it, must be filtered
# out first. `resample` does:

# %%
from ecgchat_lib.ecg.filters import resample

hum = np.sin(2 * np.pi * 80 * np.arange(5000) / 500)
print(f"every fifth sample: {abs(hum[::5][50:-50]).max():.2f} mV of a hum that isn't there")
print(f"resample:           {abs(resample(hum, 500, 100)[50:-50]).max():.2f} mV")

# %%
sharp = recording.leads[int(abs(np.diff(by_hand, axis=1)).max(axis=1).argmax())]
rates = (500.0, 250.0, 100.0, 50.0)
versions = [(rate, resample(recording.lead(sharp), recording.fs, rate)) for rate in rates]
middle = float(peaks[len(peaks) // 2] / 500)
run.show(f01.sampling_rates, versions, sharp, (middle - 0.25, middle + 0.35))

# %% [markdown]
# This is the lead with the sharpest wave of the recording. At 100 Hz every wave is still there, the sharpest a little
# lower; at 50 Hz the QRS complex is cut down. The mini models of this course look at 100 Hz, to be fast; the paper's
# encoder looks at 500.
#
# ## 6. Where the beats are
#
# The eye finds a beat where something is *steep*. So does this: take the difference of neighboring samples. On eight
# numbers by hand:

# %%
toy = np.array([0, 0, 1, 8, 2, 0, 0, 0])
print("signal:    ", toy.tolist())
print("steepness: ", abs(np.diff(toy)).tolist(), " highest beside the peak")

# %% [markdown]
# Now for real. One lead can be small or noisy, so all twelve vote: each is filtered to where QRS complexes live (5 to
# 25 Hz), differentiated, divided by its own 99th percentile so that every lead counts, and averaged.

# %%
from scipy.ndimage import uniform_filter1d
from scipy.signal import find_peaks

from ecgchat_lib.ecg.filters import bandpass

fs = recording.fs
steep = abs(np.gradient(bandpass(recording.signal, fs, 5, 25).astype(float), axis=-1))
steep /= np.percentile(steep, 99, axis=-1, keepdims=True)
energy = uniform_filter1d(steep.mean(axis=0), round(0.08 * fs), mode="constant")
apart = round(0.24 * fs)  # no heart beats 250 times a minute
candidates, _ = find_peaks(energy, distance=apart)
enough = 0.4 * np.percentile(energy[candidates], 90)
found, _ = find_peaks(energy, distance=apart, height=enough)

# %%
from ecgchat_lib.ecg.beats import find_r_peaks

assert np.array_equal(found, find_r_peaks(recording.signal, fs))
run.show(f01.beats, recording, energy, found)
rr = np.median(np.diff(found)) * 1000 / fs
print(f"{len(found)} beats, {rr:.0f} ms apart in the median: {60_000 / rr:.0f} beats per minute")

# %% [markdown]
# Equal to the library's. How near was your count of large boxes? (The library does two things more: it takes
# pacemaker spikes out first, and it refuses where nothing stands out.)
#
# ## 7. What a clinician measures
#
# The beats are cut out, aligned, and their median taken beat against beat: noise goes, the common shape stays. On that
# one clean beat, four points are sought.
#
# - **QRS begins and ends** where all leads together stop being steep.
# - **P begins** where the tangent to its steepest rise meets the baseline, **T ends** where the tangent to its steepest
#   descent does; in lead II, with the other leads holding it in place.

# %%
run.show(f01.measured_beat, beat, marks, measured)

# %% [markdown]
# A P wave must also be *consistent*. In atrial fibrillation the atria quiver: there is something before each QRS
# complex, but something else each time. So the beats are dealt into two halves like cards, and the mean of each half
# must show the same wave. If not, PR is not a number, and the reason is kept.
#
# **Predict:** four of the ten recordings are labeled atrial fibrillation (A0003, A0004, A0007, A0009). Will all four be
# without a PR interval?

# %%
ten = [read_recording(path) for path in sorted(sample.glob("*.hea"))]
values = {item.name: measure(item) for item in ten}
print("record   /min    PR   QRS    QT   QTc  axis  rhythm")
for name, m in values.items():
    shown = (m.pr_ms, m.qrs_ms, m.qt_ms, m.qtc_ms, m.axis_deg)
    numbers = [f"{value:5.0f}" if math.isfinite(value) else "  n/a" for value in shown]
    print(f"{name}   {m.heart_rate_bpm:4.0f} {' '.join(numbers)}  {'even' if m.regular else 'uneven'}")
for name, m in values.items():
    if "pr_ms" in m.reasons:
        print(f"{name}: no PR, {m.reasons['pr_ms']}")

# %% [markdown]
# Three of the four. In A0007 most beats come evenly, and the same small wave stands before them: by these rules it has
# a PR interval. A label is what somebody wrote down; a measurement is what a rule found. Neither is the truth, and
# where they disagree, one looks at the paper (run this notebook with `RECORD = "A0007"`).
#
# QTc is QT corrected for the heart rate, by Bazett's formula: QT / √RR, RR in seconds. By hand:

# %%
by_formula = measured.qt_ms / math.sqrt(measured.rr_ms / 1000)
print(f"{measured.qt_ms:.0f} ms / sqrt({measured.rr_ms / 1000:.3f} s) = {by_formula:.0f} ms")
assert math.isclose(by_formula, measured.qtc_ms)

# %% [markdown]
# **How good is it?** LUDB holds recordings in which cardiologists marked every wave by hand. `benchmarks/measure.py`
# compares lead II; the constants were chosen on records 1–25, so only 26–50 count. Beside it stands what the original's
# method gets, measured for this course on LUDB's other records, 51–200. (Other records: compare the sizes, not the
# decimals.)

# %%
import json

recorded = json.loads((data_folder() / "results" / "measure_ludb.json").read_text())["results"]
original = {"rr_ms": 22, "pr_ms": 18, "qrs_ms": 35, "qt_ms": 48}
print("mean absolute difference from the cardiologists, ms")
print("interval   this course (26-50)    n    the original's method (51-200)")
for name, theirs in original.items():
    row = recorded["records 26-50 (untouched)"][name]
    print(f"{name[:-3].upper():10} {row['mean_absolute_ms']:19.1f} {row['n']:4} {theirs:33}")

# %% [markdown]
# What is behind the distance? Two of the original's habits, on this recording. It calls the *mean sample number* of the
# peaks their "wave". And it takes the width of the QRS complex from the Q peak to the S peak, and not from where the
# complex begins to where it ends.

# %%
lead_ii = beat.signal[recording.leads.index("II"), on : off + 1]
top = int(lead_ii.argmax())
q, s = int(lead_ii[: top + 1].argmin()), top + int(lead_ii[top:].argmin())
shifted = found + round(fs)  # the same recording, started a second earlier
print(f"'R wave' as a mean sample number: {found.mean():.0f}; started a second earlier: {shifted.mean():.0f}")
print(f"R wave as a height:               {measured.r_mv:.2f} mV, both times")
print(f"QRS from Q peak to S peak:        {(s - q) * 2} ms; from beginning to end: {measured.qrs_ms:.0f} ms")

# %% [markdown]
# These numbers end up in a sentence that is appended to each report before training (*waveform data enhancement*, WDE).
# Ours has the original's order, with heights as heights; and what couldn't be measured says so. The original turned
# every failure into a zero, and zero is then a measurement.

# %%
from ecgchat_lib.ecg.measure import wde_text

for name in (RECORD, "A0009"):
    print(f"{name}:{wde_text(values[name])}")

# %% [markdown]
# ## 8. Can it be trusted?
#
# A recording can be read, measured, and still be worthless. `judge` says what is wrong in words. We damage copies on
# purpose.
#
# **Predict:** two electrodes are swapped (R and L), and nothing else. Which leads change? Does an identity of section 2
# break?

# %%
from ecgchat_lib.ecg.quality import judge


def damaged(change):
    signal = recording.signal.copy()
    change(signal)
    return replace(recording, signal=signal)


def wrong_names(x):
    x[[0, 1]] = x[[1, 0]]  # the file calls I what is II, and II what is I


def swapped_arms(x):
    x[[1, 2]], x[[3, 4]], x[0] = x[[2, 1]], x[[4, 3]], -x[0]


# %%
noise = run.rng.normal(0, NOISE_MV, recording.signal.shape)
copies = {
    "as it is": recording,
    "I and II renamed": damaged(wrong_names),
    "arms swapped": damaged(swapped_arms),
    "V2 fell off": damaged(lambda x: x.__setitem__(7, 0)),
    "noise in the chest": damaged(lambda x: x.__setitem__(slice(6, 12), x[6:] + noise[6:])),
    "microvolts": damaged(lambda x: x.__imul__(1000)),
}
for name, copy in copies.items():
    quality = judge(copy)
    print(f"{name}: {'usable' if quality.usable else 'NOT USABLE'}", *quality.warnings, sep="\n    ")

# %% [markdown]
# Renamed leads break Einthoven's identity, so they are found. **Swapped arms are not**: I is turned over, II and III
# change places, aVR and aVL too, and every identity still holds, since they hold for any potentials. Such a swap can
# only be seen in the heart itself: a P wave that is upside down in lead I. Rules know what they were told; keep that in
# mind when a rule says *usable*.
#
# ## Exercises
#
# ### Exercise 01.1 Four leads from two (★☆☆, 10 min)
#
# Write `derive_leads(lead_i, lead_ii)`: return III, aVR, aVL and aVF, in this order. Many cardiographs store only I, II
# and the chest leads, and compute the rest just so.
#
# <details><summary>Hint 1</summary>Einthoven: II = I + III.</details>
# <details><summary>Hint 2</summary>Put R = 0 (only differences count). Then L = I and F = II. Now write aVR = R − (L +
# F)/2, and so on.</details>


# %% tags=["solution"]
def derive_leads(lead_i, lead_ii):
    # <solution>
    return lead_ii - lead_i, -(lead_i + lead_ii) / 2, lead_i - lead_ii / 2, lead_ii - lead_i / 2
    # </solution>


# %%
check("01.1", derive_leads)

# %% [markdown]
# ### Exercise 01.2 Millivolts from integers (★☆☆, 8 min)
#
# Write `to_millivolts(counts, gain, baseline)`: `counts` is an array of 16-bit integers, `gain` the ADC units per
# millivolt, `baseline` the count that is 0 mV. In WFDB's format 16 the count −32768 marks a missing sample: make it
# NaN.
#
# <details><summary>Hint 1</summary>First subtract the baseline, then divide by the gain.</details>
# <details><summary>Hint 2</summary>16-bit integers overflow: <code>counts.astype(float)</code> comes first.</details>
# <details><summary>Hint 3</summary><code>np.where(condition, np.nan, values)</code>.</details>


# %% tags=["solution"]
def to_millivolts(counts, gain, baseline):
    # <solution>
    values = (counts.astype(float) - baseline) / gain
    return np.where(counts == -32768, np.nan, values)
    # </solution>


# %%
check("01.2", to_millivolts)

# %% [markdown]
# ### Exercise 01.3 Leads by name (★★☆, 12 min)
#
# Write `rows_by_name(names)`: `names` are a file's signals, in any order and any case, with strangers among them.
# Return twelve rows: where the file has I, II, III, aVR, … V6; `None` for a lead that isn't there. (The library's
# `canonical_lead` also knows prefixes such as `MDC_ECG_LEAD_V1`.)
#
# <details><summary>Hint 1</summary>Bring both sides to lower case before you compare.</details>
# <details><summary>Hint 2</summary>Compare whole names: "i" is also in "iii" and in "resp v1".</details>


# %% tags=["solution"]
def rows_by_name(names):
    # <solution>
    lower = [name.lower() for name in names]
    wanted = [lead.lower() for lead in recording.leads]
    return [lower.index(lead) if lead in lower else None for lead in wanted]
    # </solution>


# %%
check("01.3", rows_by_name)

# %% [markdown]
# ## Recap
#
# - Two limb leads hold the other four (exercise 01.1), and the identities find wrong names, but not swapped arms.
# - A recording is integers and a header; the header gives the millivolts (exercise 01.2) and is checked before it is
#   believed (section 3).
# - Leads are found by name (exercise 01.3), and the sampling rate travels with the signal.
# - Beats are where all leads are steep; intervals are measured on their median (sections 6 and 7), or there is a reason
#   why not.
# - A recording is judged before it is used (section 8).
#
# **What to copy.** `read_recording(path)` for any 12-lead WFDB record; `measure(recording)`; `judge(recording)`;
# `draw_paper(recording)`. They are the folder `ecgchat_lib/ecg`, need numpy, scipy, wfdb and matplotlib, and know
# nothing of the rest of the course.
#
# **Common errors.** *11 of 12 leads*: a lead is missing, or carries a name that isn't a lead's. *Truncated*: the copy
# of the data file is incomplete. *Missing samples*: `read_recording(path, allow_missing=True)` keeps them as NaN. A
# heart rate that is exactly twice or half of what you expect: look at `fs`.
#
# ## References and licenses
#
# - Recordings: CPSC2018, Liu et al. 2018, doi [10.1166/jmihi.2018.2442](https://doi.org/10.1166/jmihi.2018.2442), by
#   way of the PhysioNet/CinC Challenge 2020, Perez Alday et al., doi
#   [10.1088/1361-6579/abc960](https://doi.org/10.1088/1361-6579/abc960). CC BY 4.0.
# - Marks by cardiologists: LUDB, Kalyakulina et al. 2020, doi
#   [10.1109/ACCESS.2020.3029211](https://doi.org/10.1109/ACCESS.2020.3029211). ODC-By 1.0.
# - Einthoven, Fahr and de Waart 1913, doi [10.1007/BF01680996](https://doi.org/10.1007/BF01680996); Goldberger 1942,
#   doi [10.1016/S0002-8703(42)90293-X](https://doi.org/10.1016/S0002-8703(42)90293-X).
# - Lepeschkin and Surawicz 1952 (where T ends), doi [10.1161/01.CIR.6.3.378](https://doi.org/10.1161/01.CIR.6.3.378).
# - Zhao et al. 2024, *ECG-Chat*, arXiv 2408.08849: the original whose habits are quoted here from its released code.
# - Code: Apache-2.0; text: CC BY 4.0.

# %%
metrics = {name: value for name, value in measured.as_dict().items() if name != "reasons"}
run.finish({"record": RECORD, "beats": len(found), **metrics, "usable": judge(recording).usable})

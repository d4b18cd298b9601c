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
from ecgchat_lib.ecg.measure import NUMBERS, analyze, measure
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.paths import data_folder

sample = data_folder() / "real_sample"
recording = read_recording(sample / RECORD)
analysis = analyze(recording)
measured = analysis.measurements
run.show(f01.on_paper, recording, measured, analysis.marks)

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
# | the bars below the bottom row | where P (thin), QRS (thick) and T (dashed) begin and end; notebook 03 finds them |
#
# The columns follow each other in time: aVR begins where I ends. Lead II runs along the foot without a break, so that
# one can follow the rhythm. Above stand what was measured and, at the foot, speed and gain: a drawing without them
# can't be read. For fast rhythms and small waves a cardiograph also prints at **50 mm/s**, for tall waves at **5
# mm/mV**:

# %%
run.show(f01.other_scale, recording)

# %% [markdown]
# The step at the left is still 1 mV and 200 ms; it only looks different. Check it first on any print.
#
# Who can't see a picture needs it in words, and so does a program that checks a picture. They are computed from the
# data, like the picture itself:

# %%
import textwrap

from ecgchat_lib.ecg.paper import describe

print(textwrap.fill(describe(recording, measured, marks=analysis.marks), 110))

# %% [markdown]
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

beat = analysis.beat  # the median beat: notebook 03 makes it
on, off = analysis.qrs_ends  # of its QRS complex, over all leads
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
# Equal to the library's to the last bit. `wfdb`, the package of the format's own authors, divides in 64 bits. Ours
# divides in 32, which takes half the memory.
#
# **Predict:** for how many of the 65,536 integers that 16 bits can hold does the rounding differ?

# %%
every = np.arange(-32768, 32768)
for divisor in (1000.0, 1716.0, 102.3):
    in_64 = (every / divisor).astype(np.float32)  # divide in float64, then round
    in_32 = every.astype(np.float32) / np.float32(divisor)
    print(f"gain {divisor:6}: {(in_64 != in_32).sum():5} of {len(every)} differ")

# %% [markdown]
# None, where the gain itself fits 32 bits: a float32 has 24 binary digits, so an integer of 16 fits, and float64's 53
# are more than twice 24 and two more. Then a quotient that is rounded twice ends where one that is rounded once does
# (Figueroa 1995). 102.3 has no end in binary: `np.float32(102.3)` is another number. The library looks, and divides in
# 64 bits there. So this is its fast way in three lines, and it equals `wfdb`'s:

# %%
import wfdb

signal, fields = wfdb.rdsamp(str(sample / RECORD))
counts = np.fromfile(sample / f"{RECORD}.mat", dtype="<i2", offset=24).reshape(-1, 12)
quick = counts.T.astype(np.float32)
quick /= np.float32(1000)
assert np.array_equal(quick, signal.T.astype(np.float32))
assert np.array_equal(quick, recording.signal)

# %% [markdown]
# How fast is a question for a quiet machine; `benchmarks/reading.py` asks it on real records and writes down what it
# finds.

# %%
import json

speed = json.loads((data_folder() / "results" / "reading.json").read_text())
for what, found in speed["results"].items():
    print(f"{what}: {found['equal_to_wfdb']} equal to wfdb's")
    for name, values in found["readers"].items():
        print(f"    {name:33}{values['times_wfdb']:6.1f} times as fast as wfdb.rdsamp")

# %% [markdown]
# The library has *both* ways: this one for format 16, and `wfdb` for the dozen other formats (8 to 32 bits, two samples
# in three bytes, FLAC), which it decodes well. Between the two and the bytes alone stand the checks. Why so many?
# Because a header is *untrusted*. It can claim a billion samples, a gain of 0, a file in another folder. A reader that
# believes it runs out of memory or computes nonsense. `read_recording` checks every claim against the files before
# anything is decoded, and says in one line what is wrong and what to do:

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
# Are those all the lies there are? One can't think of all of them, so a machine does: `benchmarks/fuzz_reading.py`
# breaks sound records at random (bytes, numbers, lines, names of files, links, lengths), and demands that each is read
# or refused in one line: no other exception, no file outside the folder, no hanging, no gigabytes.

# %%
fuzz = json.loads((data_folder() / "results" / "fuzz_reading.json").read_text())
print(f"{fuzz['n']} broken records:", fuzz["all"])

# %% [markdown]
# ### In pieces, and at several rates
#
# A monitor records for days, and cables come off. WFDB then keeps *segments*, each a record of its own, and a header
# that lists them; `~` is a gap. By hand, one second each:
#
# **Predict:** what will `read_recording` say to the gap?


# %%
def write_pieces(folder):
    folder.mkdir()
    for name, first in (("one", 0), ("two", 1000)):
        raw[:, first : first + 500].T.tofile(folder / f"{name}.dat")
        lines = [f"{name}.dat 16 1000/mV 16 0 0 0 0 {lead}" for lead in recording.leads]
        (folder / f"{name}.hea").write_text("\n".join([f"{name} 12 500 500", *lines]))
    (folder / "whole.hea").write_text("whole/3 12 500 1500\none 500\n~ 500\ntwo 500\n")
    table = {"delimiter": ",", "header": ",".join(recording.leads), "comments": "", "fmt": "%.9g"}
    np.savetxt(folder / "table.csv", recording.signal.T, **table)


pieces = run.artefact("01_pieces", write_pieces, record=RECORD)
try:
    read_recording(pieces / "whole")
except RecordError as error:
    print(f"{error.found}.\n    {error.remedy}.")
whole = read_recording(pieces / "whole", allow_missing=True)
print("missing, by second:", np.isnan(whole.lead("II")).reshape(3, 500).sum(axis=1).tolist(), "-", *whole.notes)
assert np.array_equal(whole.signal[:, 1000:], recording.signal[:, 1000:1500])

# %% [markdown]
# A gap is not a flat line. Whether to cut it, to bridge it or to give up is a decision, so the caller has to take it.
#
# Leads may also be stored at different rates: `16x4` in the format's place means four samples in each *frame*, and the
# header's rate counts frames. All leads are then brought to the fastest one's rate, and `notes` says which were. (How,
# is section 5.)
#
# ### Other files
#
# `read_any` opens other files too. What a file doesn't say must be said by you. Nothing is guessed: a rate that is
# guessed wrong gives a heart rate that is wrong and looks right (section 4).
#
# | file | says | you say |
# | --- | --- | --- |
# | WFDB, EDF or BDF, DICOM waveform | all | nothing |
# | csv, first row with the leads' names | names, sometimes a unit or the time | `fs`, if there is no column `time` |
# | npy | nothing | `fs`, `leads` in its order, `unit` |
# | h5 as SPH ships it: `ecg`, float16, (12, time) | nothing | nothing: SPH's layout is known |

# %%
from ecgchat_lib.ecg.formats import read_any
from ecgchat_lib.errors import EcgChatError

try:
    read_any(pieces / "table.csv")
except EcgChatError as error:
    print(error)
table = read_any(pieces / "table.csv", fs=500, unit="mV")
assert np.array_equal(table.signal, recording.signal)

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
middle = float(analysis.beats.positions[len(analysis.beats.positions) // 2])
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
# The beats are cut out, aligned, and their median taken beat against beat: noise goes, the common shape stays. And in
# lead II a small network marks where each P wave, QRS complex and T wave begins and ends. Notebook 03 builds both, and
# measures by how much they are off. Here is what comes out:

# %%
run.show(f01.measured_beat, beat, analysis.beat_marks, measured)

# %% [markdown]
# - **PR**: from the beginning of P to the beginning of QRS. The way from the atria to the ventricles.
# - **QRS**: how long the ventricles take to be excited. Its end can lie flat in one lead, so there are two numbers: in
#   lead II, and over all leads.
# - **QT**: from the beginning of QRS to the end of T. It shortens as the heart speeds up, so it is corrected for the
#   rate. By Bazett's formula, QTc = QT / √RR, with RR in seconds. By hand:

# %%
by_formula = measured.qt_ms / math.sqrt(measured.rr_ms / 1000)
print(f"{measured.qt_ms:.0f} ms / sqrt({measured.rr_ms / 1000:.3f} s) = {by_formula:.0f} ms")
assert math.isclose(by_formula, measured.qtc_ms)

# %% [markdown]
# A P wave must be *consistent*: before most beats, at the same time before the QRS complex, of the same shape. In
# atrial fibrillation the atria quiver: there is something before each QRS complex, but something else each time. Then
# PR is not a number, and the reason is kept.
#
# **Predict:** four of the ten recordings are labeled atrial fibrillation (A0003, A0004, A0007, A0009). Will all four be
# without a PR interval? And which of the ten have a bundle branch block?

# %%
ten = [read_recording(path) for path in sorted(sample.glob("*.hea"))]
values = {item.name: measure(item) for item in ten}
print("record   /min    PR   QRS  QRS, all leads    QT   QTc  axis  rhythm")
for name, m in values.items():
    shown = (m.pr_ms, m.qrs_ms, m.qrs_global_ms, m.qt_ms, m.qtc_ms, m.axis_deg)
    pr, qrs, over_all, *rest = (f"{value:5.0f}" if math.isfinite(value) else "  n/a" for value in shown)
    kind = "even" if m.regular else "uneven"
    print(f"{name}   {m.heart_rate_bpm:4.0f} {pr} {qrs} {over_all:>15} {' '.join(rest)}  {kind}")
for name, m in values.items():
    if "pr_ms" in m.reasons:
        print(f"{name}: no PR, {m.reasons['pr_ms']}")

# %% [markdown]
# Three of the four. In A0007 most beats come evenly, and the same small wave stands before them: by these rules it has
# a PR interval. A label is what somebody wrote down; a measurement is what a rule found. Neither is the truth, and
# where they disagree, one looks at the paper (run this notebook with `RECORD = "A0007"`). A QRS complex of 120 ms and
# more over all leads is a bundle branch block: A0001 and A0010, as labeled. Lead II alone would have missed the first.
#
# ## 8. Can it be trusted?
#
# A recording can be read, measured, and still be worthless. So somebody must look at it before anything is concluded.
# `judge` does: each of its findings has a *kind*, a *number* with the *limit* that it was compared with, a sentence,
# and a severity: *warn*, or *abstain* where nothing should be concluded at all. We damage copies on purpose.
#
# **Predict:** which of these will it refuse?

# %%
from ecgchat_lib.ecg.quality import judge
from ecgchat_lib.ecg.reversal import derive_limb_leads, swap_electrodes


def damaged(change):
    signal = recording.signal.astype(float)
    return replace(recording, signal=change(signal).astype(np.float32))


def with_noise(x, noise):  # in I, II and V1-V6, as in life; the cardiograph derives the others
    return np.concatenate([derive_limb_leads(x[0] + noise[0], x[1] + noise[1]), x[6:] + noise[2:]])


# %%
t = np.arange(recording.signal.shape[1]) / recording.fs
noise = run.rng.normal(0, NOISE_MV, (8, len(t)))
hum = np.broadcast_to(0.1 * np.sin(2 * np.pi * 50 * t), noise.shape)
sine = 0.3 * np.sin(2 * np.pi * 1.2 * t)  # 72 times a minute
copies = {
    "as it is": recording,
    "noise": damaged(lambda x: with_noise(x, noise)),
    "mains": damaged(lambda x: with_noise(x, hum)),
    "V2 fell off": damaged(lambda x: np.where(np.arange(12)[:, None] == 7, 0, x)),
    "I and II renamed": damaged(lambda x: x[[1, 0, *range(2, 12)]]),
    "microvolts": damaged(lambda x: 1000 * x),
    "noise alone": damaged(lambda x: with_noise(0 * x, noise)),
    "a sine": damaged(lambda x: with_noise(0 * x, np.array([[2], [3], [1], [2], [3], [4], [3], [2]]) * sine)),
}
for name, copy in copies.items():
    print(f"{name}: {'usable' if judge(copy).usable else 'NOT USABLE'}")
    for item in judge(copy).findings:
        print(f"    {item.severity}, {item.kind}: {textwrap.shorten(item.words, 84)}")

# %% [markdown]
# *Noise alone* and *a sine* have leads of the right size that obey every identity, and still they are refused: no
# heartbeat stands out, or what stands out isn't the same from beat to beat. That is also what ventricular fibrillation
# looks like, and the sentence says so. A judge of recordings must not judge the heart.
#
# ### Two electrodes in each other's place
#
# The commonest mistake at the bedside: the cables of the two arms exchanged. With the potentials of section 2, by hand:
#
# **Predict:** which of the six limb leads change? Does an identity break?

# %%
swapped_right, swapped_left = left, right  # the cable named R hangs on the left arm
one_, two_, three_ = swapped_left - swapped_right, foot - swapped_right, foot - swapped_left
print(f"right:    I {one:+.2f}   II {two:+.2f}   III {three:+.2f}")
rest = abs(one_ + three_ - two_)
print(f"swapped:  I {one_:+.2f}   II {two_:+.2f}   III {three_:+.2f}   and I + III - II = {rest:.2f}")
swapped = replace(recording, signal=swap_electrodes(recording.signal, "RA/LA").astype(np.float32))
print({law: f"{rest:.4f}" for law, rest in identity_residuals(swapped.signal).items()})

# %% [markdown]
# I is turned over, II and III change places. aVL and aVR do too, and aVF stays. **Every identity still holds**: they
# hold for any potentials, so they can't see who gave them. But the drawing now shows another heart:

# %%
normal = read_recording(sample / "A0002")
run.show(f01.swapped_arms, normal, swap_electrodes(normal.signal, "RA/LA"))

# %% [markdown]
# A P wave upside down in lead I, and a lead I that no longer resembles V6, although both look at the heart from the
# left: that is how a person notices. A program can learn the same from recordings that it swaps itself.
# `benchmarks/fit_reversal.py` takes the average beat of each of 1,901 real recordings, swaps electrodes by algebra (10
# ways), and fits a linear model that tells each swap from none. Here it is on the ten recordings of the sample (`.`: no
# swap called):


# %%
def called(signal, record):
    findings = judge(replace(record, signal=np.asarray(signal, dtype=np.float32))).findings
    return next((item.words.split("(")[-1][:5] for item in findings if item.kind == "reversal"), ".")


swaps = ("RA/LA", "RA/LL", "LA/LL", "RA/RL")
print("record   as it is", *(f"{swap:>7}" for swap in swaps))
for record in (read_recording(path) for path in sorted(sample.glob("*.hea"))):
    row = [called(swap_electrodes(record.signal, swap), record) for swap in swaps]
    print(f"{record.name} {called(record.signal, record):>10}", *(f"{found:>7}" for found in row))

# %% [markdown]
# Some of the ten were among those that the model was fitted on, so this table proves little. What counts are recordings
# that it never saw: `benchmarks/quality.py` swaps and spoils them, and also counts what it says of recordings as they
# are. The share in brackets is the 95 % interval.

# %%
import json

quality = json.loads((data_folder() / "results" / "quality.json").read_text())


def shown(item):
    low, high = item["interval"]
    return f"{item['found']:4} of {item['n']:3}   {item['share']:6.1%}  ({low:.1%} to {high:.1%})"


unseen = quality["reversals, by lead algebra"]["PTB-XL fold 9, sinus rhythm"]
print(f"{'any swap called, as they are':38}{shown(unseen['as they are']['any'])}")
for swap in ("RA/LA", "RA/LL", "LA/LL", "RA/RL", "V1/V2", "V3/V4", "V5/V6"):
    print(f"{swap + ' swapped, rightly named':38}{shown(unseen[swap]['rightly named'])}")
for name in ("white noise, 0.05 mV", "mains of 50 Hz, 0.05 mV", "wander of 2.0 mV", "a jump of 1.0 mV"):
    print(f"{name + ' added, found':38}{shown(quality['spoiled (PTB-XL, raw)'][name])}")
print(f"{'no ECG at all, refused':38}{shown(quality['no ECG']['all'])}")
print(f"{'real ECG, refused (PTB-XL)':38}{shown(quality['as they are']['PTB-XL']['abstain'])}")

# %% [markdown]
# The arms are safe, and so are the right arm and the left leg. **The left arm and the left leg** are hard: I and II
# look alike in many people, and so do III and its own mirror image. Neighbors among the chest leads differ by so little
# that many swaps of V5 and V6 change nothing that matters. And what is called on a recording as it is may be no false
# alarm: nobody looked at these electrodes. So `judge` only *warns* of a swap.
#
# Notebook 13's chat and report ask `judge` first. Where it abstains, so do they.
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
# ### Exercise 01.4 Undo the swap (★★☆, 12 min)
#
# A recording came in with the cables of right and left arm exchanged. Write `undo_arms(signal)`: `signal` has twelve
# rows in the course's order; return what would have been recorded with the cables right, as a new array. (Doing it
# twice must give back what was there.)
#
# <details><summary>Hint 1</summary>I = L − R. With R and L exchanged, it is R − L.</details>
# <details><summary>Hint 2</summary>II = F − R and III = F − L: they trade places. Which of aVR, aVL, aVF do?</details>
# <details><summary>Hint 3</summary>The chest leads' reference is the mean of R, L and F.</details>


# %% tags=["solution"]
def undo_arms(signal):
    # <solution>
    i, ii, iii, avr, avl, avf, *chest = signal
    return np.stack([-i, iii, ii, avl, avr, avf, *chest])
    # </solution>


# %%
check("01.4", undo_arms)

# %% [markdown]
# ### Exercise 01.5 Two samples in three bytes (★★★, 20 min)
#
# Many older recordings are in WFDB's format 212: samples of twelve bits, two of them in three bytes. Of the bytes `a`,
# `b`, `c`, the first sample is `a` and above it the *lower* four bits of `b`; the second is `c` and above it the
# *upper* four bits of `b`. Both are two's complement: 2048 and above are negative, 4095 is −1. Write
# `unpack_212(data)`: `data` is an array of bytes (`uint8`), a multiple of three long; return the samples in their
# order.
#
# <details><summary>Hint 1</summary><code>a, b, c = data.reshape(-1, 3).astype(int).T</code>: as bytes, they would
# overflow.</details>
# <details><summary>Hint 2</summary><code>b & 15</code> are the lower four bits, <code>b >> 4</code> the upper ones; 256
# times them stands above a byte.</details>
# <details><summary>Hint 3</summary>Stack both samples side by side, <code>ravel</code>, and take 4096 from those of
# 2048 and more.</details>


# %% tags=["solution"]
def unpack_212(data):
    # <solution>
    a, b, c = data.reshape(-1, 3).astype(int).T
    samples = np.stack([a + 256 * (b & 15), c + 256 * (b >> 4)], axis=1).ravel()
    return np.where(samples >= 2048, samples - 4096, samples)
    # </solution>


# %%
check("01.5", unpack_212)

# %% [markdown]
# ## Recap
#
# - Two limb leads hold the other four (exercise 01.1), and the identities find wrong names, but not swapped arms, which
#   can be undone once they are known (exercise 01.4).
# - A recording is integers (exercise 01.5) and a header; the header gives the millivolts (exercise 01.2) and is checked
#   before it is believed (section 3). Gaps stay gaps.
# - Leads are found by name (exercise 01.3), and the sampling rate travels with the signal.
# - Beats are where all leads are steep (section 6); intervals are medians over them, or there is a reason why not
#   (section 7, and notebook 03).
# - A recording is judged before it is used, and how often the judge is right is measured (section 8).
#
# **What to copy.** `read_recording(path)` for any 12-lead WFDB record, `read_any(path)` for other files;
# `measure(recording)`; `judge(recording)`; `draw_paper(recording)`. They are the folder `ecgchat_lib/ecg`, need numpy,
# scipy, wfdb and matplotlib, and know nothing of the rest of the course.
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
# - Rounding twice: Figueroa 1995, *When is double rounding innocuous?*, doi
#   [10.1145/221332.221334](https://doi.org/10.1145/221332.221334). SPH: Liu et al. 2022, doi
#   [10.1038/s41597-022-01403-5](https://doi.org/10.1038/s41597-022-01403-5).
# - The network that marks the waves was trained on LUDB, Kalyakulina et al. 2020, doi
#   [10.1109/ACCESS.2020.3029211](https://doi.org/10.1109/ACCESS.2020.3029211). ODC-By 1.0.
# - Einthoven, Fahr and de Waart 1913, doi [10.1007/BF01680996](https://doi.org/10.1007/BF01680996); Goldberger 1942,
#   doi [10.1016/S0002-8703(42)90293-X](https://doi.org/10.1016/S0002-8703(42)90293-X).
# - Exchanged electrodes: *Simulating Arbitrary Electrode Reversals in Standard 12-Lead ECG*, Sensors 19 (2019) 2920,
#   doi [10.3390/s19132920](https://doi.org/10.3390/s19132920); found by a network: Hedén et al. 1996, Am J
#   Cardiol 78, 600.
# - Recordings that the judge's numbers come from: PTB-XL, Wagner et al. 2020, doi
#   [10.1038/s41597-020-0495-6](https://doi.org/10.1038/s41597-020-0495-6). CC BY 4.0.
# - Zhao et al. 2024, *ECG-Chat*, arXiv 2408.08849: the original whose habits are quoted here from its released code.
# - Code: Apache-2.0; text: CC BY 4.0.

# %%
metrics = {name: getattr(measured, name) for name in NUMBERS}
run.finish({"record": RECORD, "beats": len(found), **metrics, "usable": judge(recording).usable})

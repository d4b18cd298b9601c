# %% tags=["parameters"]
PROFILE = "ci"  # which machine the sizes are for: ci|cpu|t4|h100
SEED = 7  # seed of every random draw, 0..2147483647
RECORDS = 32  # synthetic ECGs in the batch, 4..4096
CALLS = 4000  # repetitions where a share is counted, 500..1000000

# %% tags=["setup"]
from ecgchat_lib.course import check, start

run = start("04", globals())

# %% [markdown]
# ## 1. Disturb without lying
#
# An augmentation changes the ECG and keeps the report. That is allowed only as far as the report stays true.
# Electrodes slip, people breathe, sockets hum: such disturbances happen anyway, and a reader looks through them. But a
# signal played slower is another heart rate, and a signal twice as high is another diagnosis.
#
# First the disturbances, and by hand. A lead is a difference of electrode potentials. Say the right arm drifts by 0.2
# mV while the left arm and the foot rest:

# %%
right, left, foot = 0.2, 0.0, 0.0  # mV at the electrodes RA, LA, LL
one, two, three = left - right, foot - right, foot - left
print(f"I {one:+.1f}  II {two:+.1f}  III {three:+.1f}   I + III - II = {one + three - two:.1f}")

# %% [markdown]
# One loose electrode shows in some leads and not in others, and always so that I + III = II. The released code of
# ECG-Chat instead multiplies one drift by a random factor for each lead. The result is a disturbance that no
# electrocardiograph can record:

# %%
import math

import torch

from ecgchat_lib.augment import electrode_matrix

generator = run.generator()
time = torch.arange(5000) / 500  # seconds
drift = 0.3 * torch.cos(2 * math.pi * 0.15 * time)  # one slow cosine, mV
per_lead = torch.normal(1.0, 0.5, (12, 1), generator=generator) * drift
per_electrode = electrode_matrix() @ (torch.normal(0.0, 0.5, (9, 1), generator=generator) * drift)
for name, leads in (("a factor per lead", per_lead), ("a factor per electrode", per_electrode)):
    error = (leads[0] + leads[2] - leads[1]).abs().max().item()
    print(f"{name:23} I + III - II is up to {error:.2f} mV")

# %% [markdown]
# `electrode_matrix` holds the weights of all twelve leads over nine electrodes. Each row adds up to zero (what all
# electrodes share, no lead sees), and a row of a chest lead subtracts the mean of the three limb electrodes.

# %%
matrix = electrode_matrix()  # (12 leads, 9 electrodes)
assert torch.allclose(matrix.sum(dim=1), torch.zeros(12), atol=1e-6)
assert torch.allclose(matrix[:3, :3] @ torch.tensor([right, left, foot]), torch.tensor([one, two, three]))
print(matrix[[0, 1, 3, 6], :5])

# %% [markdown]
# Now all of the library's augmentations on one ECG. Each takes a batch, draws from one generator, and leaves the input
# alone.
#
# **Predict:** which of the panels would make you write another report?

# %%
import numpy as np

from ecgchat_lib import augment
from ecgchat_lib.course.figures import f04
from ecgchat_lib.datasets.synthetic import FINDINGS, synthesize

names = list(FINDINGS)
ecgs = [synthesize(SEED + k, finding=names[k % len(names)]) for k in range(RECORDS)]
batch = torch.from_numpy(np.stack([ecg.signal for ecg in ecgs]))  # (batch, 12, 5000) mV

FS = 500
always = {"probability": 1.0}
after = {
    "baseline wander": augment.baseline_wander(batch, FS, run.generator(), **always),
    "powerline, 0.1 mV": augment.powerline(batch, FS, run.generator(), **always, size_mv=0.1),
    "muscle noise, 0.06 mV": augment.muscle_noise(batch, FS, run.generator(), **always, size_mv=0.06),
    "masked windows": augment.mask_time(batch, FS, run.generator(), **always, windows=8),
    "masked leads": augment.mask_leads(batch, run.generator(), **always),
    "scale": augment.scale(batch, run.generator(), **always),
    "shift": augment.shift(batch, FS, run.generator(), **always),
    "warp": augment.warp(batch, run.generator(), **always),
    "resample, as if at 100 Hz": augment.resample(batch, FS, run.generator(), **always, rates=(100,)),
    "all together": augment.Augment(FS)(batch, run.generator()),
}
run.show(f04.gallery, batch[:, 1].numpy(), {name: ecg[:, 1].numpy() for name, ecg in after.items()}, FS)

# %% [markdown]
# The answer should be *none*. In one panel lead II is gone altogether, but there are eleven more.
#
# ### Exercise 04.1 · Wander at the electrodes (★★☆, 15 min)
#
# Write `add_wander(ecg, fs, frequency, size)`: add a cosine of `frequency` Hz that starts at its maximum, with `size`
# (batch, 9) mV at the electrodes, to a batch (batch, 12, time). Return a new tensor.
#
# <details><summary>Hint 1</summary>
#
# The potentials have the shape (batch, 9, time): `size[:, :, None] * torch.cos(...)`. How many seconds is a sample?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `torch.einsum("le,bet->blt", electrode_matrix(), potentials)` turns nine electrodes into twelve leads.
#
# </details>


# %% tags=["solution"]
def add_wander(ecg, fs, frequency, size):
    # <solution>
    time = torch.arange(ecg.shape[-1]) / fs
    potentials = size[:, :, None] * torch.cos(2 * math.pi * frequency * time)  # (batch, 9, time)
    return ecg + torch.einsum("le,bet->blt", electrode_matrix(), potentials)
    # </solution>


# %%
check("04.1", add_wander)

# %% [markdown]
# ## 2. On a batch, not on one recording
#
# "Mask with probability 0.3" can be read in two ways: draw a number of records, or draw each record. The released code
# follows the first: it draws the count from a normal distribution with mean 0.3 n and standard deviation 0.1 n, and
# rounds it. That works for a batch of 64. But the code runs in the data loader, on one recording at a time: n = 1.
#
# By hand: with n = 1 the count is 1 if a normal draw with mean 0.3 and standard deviation 0.1 is above 0.5, which is
# two standard deviations away.


# %%
def chance_above(x, mean, spread):
    """P(X > x) of a normal distribution."""
    return 0.5 * math.erfc((x - mean) / spread / math.sqrt(2))


print(f"asked for: 30 %, fires: {chance_above(0.5, 0.3, 0.1):.2%}")

# %% [markdown]
# (A run of the released code counted 2.8 % in its calls.) Count it here as well, for batches of several sizes, beside
# the other way, which draws each record on its own:


# %%
def rounded_count(n, share, rng):
    """The count as in the released code: a rounded normal number of records."""
    return round(float(np.clip(rng.normal(n * share, 0.1 * n), 0, n)))


sizes, rng = (1, 2, 4, 8, 16, 32, 64), run.rng
counted = [sum(rounded_count(n, 0.3, rng) for _ in range(CALLS)) / (CALLS * n) for n in sizes]
each = [float((rng.random((CALLS, n)) < 0.3).mean()) for n in sizes]
run.show(f04.firing, sizes, counted, each, 0.3)

# %% [markdown]
# The library draws each record on its own, so the share is the same at any batch size:

# %%
small = batch[:1, :, :500]
source = run.generator()
fired = [bool((augment.mask_time(small, FS, source) != small).any()) for _ in range(500)]
print(f"mask_time on batches of one: fires in {np.mean(fired):.0%} of {len(fired)} calls (asked for: 30 %)")

# %% [markdown]
# The second augmentation of the released code is *CutMix*: replace a window of each ECG by the same window of another
# one of the batch. In a loader with one recording, the other one is itself:


# %%
def cutmix(ecgs, first, last, generator):
    """Paste samples first to last of a shuffled batch; returns the batch and where each window came from."""
    order = torch.randperm(len(ecgs), generator=generator)
    mixed = ecgs.clone()
    mixed[:, :, first:last] = ecgs[order, :, first:last]
    return mixed, order


mixed, _ = cutmix(batch[:1], 1500, 3500, run.generator())
print("CutMix on a batch of one changes something:", bool((mixed != batch[:1]).any()))

# %% [markdown]
# Doing nothing is the lucky case. **Predict:** what happens to the pair of ECG and report when CutMix works as
# designed? Take two real recordings, and give the first one four seconds of the second:

# %%
from ecgchat_lib.datasets.cpsc2018 import load_real_sample
from ecgchat_lib.datasets.labels import STATEMENTS
from ecgchat_lib.ecg.recording import read_recording

sample = load_real_sample()
said = [" and ".join(STATEMENTS[code].description for code, _ in given) for given in sample.statements]
real = torch.stack([torch.from_numpy(read_recording(path).signal[:, : 10 * FS]) for path in sample.path])
records = list(sample.record)
sinus, fibrillating = records.index("A0002"), records.index("A0003")
mixed = real[sinus].clone()
mixed[:, 1500:3500] = real[fibrillating, :, 1500:3500]
run.show(f04.splice, mixed[1].numpy(), (1500, 3500), (said[sinus], said[fibrillating]), FS)

# %% [markdown]
# And in numbers, measured as in notebook 03. `n/a` is what can't be measured: atrial fibrillation has no PR interval.

# %%
from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.measure import measure
from ecgchat_lib.ecg.recording import Patient, Recording

NAMES = ("rr_ms", "pr_ms", "qrs_ms", "qt_ms", "qtc_ms", "r_mv")


def measured(ecg):
    """Measurements of one (12, time) tensor at FS."""
    return measure(Recording("candidate", ecg.numpy(), FS, LEADS, Patient(), (), None, ()))


for name, ecg in (("A0002", real[sinus]), ("A0003", real[fibrillating]), ("mixed", mixed)):
    found = measured(ecg)
    pr = "n/a" if math.isnan(found.pr_ms) else f"{found.pr_ms:.0f}"
    print(f"{name:6} RR {found.rr_ms:4.0f} ms, spread {found.rr_sd_ms:3.0f} ms, PR {pr:>4} ms, even: {found.regular}")

# %% [markdown]
# The mixed recording has the rhythm of neither patient, and its report still says sinus rhythm. For classes one can mix
# the labels in the same proportion; a sentence can't be mixed, and the mean of two RR intervals is nobody's. In
# contrastive training it is worse: the spliced ECG is pushed away from the report that describes its middle.
#
# ### Exercise 04.3 · Count the wrong pairs (★☆☆, 5 min)
#
# `order[k]` says from which record the window in ECG `k` was pasted. Write `wrong_pairs(order, reports)`: the share of
# the ECGs whose window comes from a record with *another* report.
#
# <details><summary>Hint</summary>
#
# Compare `reports[k]` with `reports[int(order[k])]`; a window from the record itself, or from one with the same report,
# tells no lie.
#
# </details>


# %% tags=["solution"]
def wrong_pairs(order, reports):
    # <solution>
    return sum(reports[k] != reports[int(source)] for k, source in enumerate(order)) / len(reports)
    # </solution>


# %%
check("04.3", wrong_pairs)

# %%
_, order = cutmix(real, 1500, 3500, run.generator())
if (share := wrong_pairs(order, said)) is not None:
    print(f"CutMix on the {len(real)} real recordings: {share:.0%} of the ECGs have a part that their report denies")

# %% [markdown]
# So the library has no CutMix, and a test shows that what happens to one record never depends on the others of the
# batch:

# %%
whole = augment.Augment(FS)(batch[:4], run.generator())
others = batch[:4].clone()
others[1:] = 0.0  # three other patients
alone = augment.Augment(FS)(others, run.generator())
print("the first record comes out the same whoever is beside it:", torch.equal(whole[0], alone[0]))

# %% [markdown]
# ### Exercise 04.2 · A mask on a batch (★★☆, 10 min)
#
# Write `mask(ecg, start, length, chosen)`: in the records where `chosen` (batch,) is True, set `length` samples from
# `start` (batch,) on to zero, in all leads. Return a new tensor.
#
# <details><summary>Hint 1</summary>
#
# No loop: compare `torch.arange(time)` with `start[:, None]`; that gives (batch, time).
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `ecg.masked_fill(hidden[:, None, :], 0.0)` gives a new tensor.
#
# </details>


# %% tags=["solution"]
def mask(ecg, start, length, chosen):
    # <solution>
    time = torch.arange(ecg.shape[-1])
    hidden = (time >= start[:, None]) & (time < start[:, None] + length) & chosen[:, None]  # (batch, time)
    return ecg.masked_fill(hidden[:, None, :], 0.0)
    # </solution>


# %%
check("04.2", mask)

# %% [markdown]
# ## 3. Time and rate
#
# No heart keeps time exactly: RR changes by some percent with each breath. `warp` imitates that. It reads the recording
# a little faster here and slower there; the place that is read runs ahead and falls behind by three half waves, and
# comes back to the end. By hand, with one half wave over T samples and a largest change of speed of 3 %: the place is
# ahead by d(n) = 0.03 T / π · sin(π n / T), whose slope is largest at the ends and there just 0.03.

# %%
T = 10 * FS
ahead = 0.03 * T / math.pi
print(f"at most {ahead:.0f} samples ahead, {1000 * ahead / FS:.0f} ms, in the middle of {T / FS:.0f} s")
print(
    f"an RR interval of 800 ms changes by at most {0.03 * 800:.0f} ms, a QT interval of 400 ms by {0.03 * 400:.0f} ms"
)

# %% [markdown]
# A recording whose samples are their own numbers shows where each sample was read. **Predict:** will the median RR
# interval change by 3 %?

# %%
places = augment.warp(torch.arange(float(T)).repeat(6, 12, 1), run.generator(), **always)[:, 0]
speeds = places.unfold(1, 101, 1)[:, :, [0, -1]].diff(dim=2)[:, :, 0] / 100  # over 0.2 s
speeds = torch.nn.functional.pad(speeds[:, None], (50, 50), mode="replicate")[:, 0]
bold = int((places - torch.arange(T)).abs().amax(dim=1).argmax())  # the one that strays most
speeds = torch.cat([speeds[[bold]], speeds])
warped = augment.warp(real[[sinus] * 6], run.generator(), **always)[bold]  # the same draws
run.show(f04.warps, speeds.numpy(), real[sinus, 1].numpy(), warped[1].numpy(), FS, augment.MOST_WARP)

# %% [markdown]
# A change of the *whole* tempo is another matter. `stretch` plays a record slower or faster by up to 3 %, and each
# interval changes by exactly that factor. A text that says *RR: 832* is then wrong. So it returns the factors, and is
# off in `Augment` unless asked for. Bazett's QTc is QT / √RR: with all times × f, it is multiplied by f / √f = √f.
#
# `resample` makes a recording look as if a recorder with fewer samples per second had made it: what is faster than half
# its rate is lost, for good. Measure six ECGs before and after each of the three:

# %%
six = torch.from_numpy(np.stack([synthesize(SEED + k, finding="NORM").signal for k in range(6)]))
stretched, factors = augment.stretch(six, run.generator(), **always)
timed = {
    "stretch": stretched,
    "warp": augment.warp(six, run.generator(), **always),
    "resample, 100 Hz": augment.resample(six, FS, run.generator(), **always, rates=(100,)),
}


def table(ecgs):
    """(ecg, measurement)."""
    return np.array([[getattr(measured(ecg), name) for name in NAMES] for ecg in ecgs])


before = table(six)
ratios = {name: table(ecgs) / before for name, ecgs in timed.items()}
for name, ratio in ratios.items():
    largest = np.nanmax(np.abs(ratio - 1), axis=0)
    print(f"{name:17} largest change:", "  ".join(f"{n[:-3]} {v:.1%}" for n, v in zip(NAMES, largest, strict=True)))
labels = ("RR", "PR", "QRS", "QT", "QTc", "R wave")
run.show(f04.moved, ratios, labels, {"stretch": factors.of(NAMES).numpy()})

# %% [markdown]
# The rings are what `factors.of` predicts. Stretched numbers lie in them, apart from what measuring itself is unsure
# of. The warp hardly moves a median: some beats come early, others late. A lower rate leaves the intervals and takes a
# little from the steep R wave.
#
# ### Exercise 04.4 · Restate the numbers (★★☆, 10 min)
#
# Write `restate(numbers, factor)`: `numbers` (batch, 5) holds RR, PR, QRS, QT and Bazett's QTc in ms, NaN where
# unknown; return what they are after each record was stretched by its `factor` (batch,). Leave the input alone.
#
# <details><summary>Hint 1</summary>
#
# `factor[:, None]` has the shape (batch, 1): one factor for a row.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A factor to the power of 1 for the first four columns, of 1/2 for the last: `factor[:, None] ** powers`.
#
# </details>


# %% tags=["solution"]
def restate(numbers, factor):
    # <solution>
    powers = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5])
    return numbers * factor[:, None] ** powers
    # </solution>


# %%
check("04.4", restate)

# %%
times = NAMES[:5]
told = torch.from_numpy(before[:, :5]) * factors.of(times)
if (mine := restate(torch.from_numpy(before[:, :5]), factors.time)) is not None:
    print("equal to the library's:", bool(torch.allclose(mine, told, equal_nan=True, rtol=1e-5)))

# %% [markdown]
# ## 4. Which changes lie?
#
# Measure before and after. The rate comes from the measurements of notebook 01, the voltage from the rule of Sokolow
# and Lyon (the S wave in V1 plus the R wave in V5; 3.5 mV or more counts as a sign of left ventricular hypertrophy).
# Four candidates that one meets in augmentation libraries stand beside the library's own.


# %%
def rate_and_voltage(ecg):
    """Heart rate in beats per minute and Sokolow-Lyon voltage in mV of one (12, time) tensor."""
    signal = ecg.numpy()
    centered = signal - np.median(signal, axis=1, keepdims=True)
    deep, high = np.quantile(-centered[6], 0.999), np.quantile(centered[10], 0.999)
    return measured(ecg).heart_rate_bpm, float(deep + high)


normals = [torch.from_numpy(synthesize(SEED + k, finding="NORM").signal) for k in range(5)]
normal = max(normals, key=lambda ecg: rate_and_voltage(ecg)[1])  # a strong but normal heart
rate, voltage = rate_and_voltage(normal)
print(f"before: {rate:.0f} beats per minute, {voltage:.1f} mV")

# %%
one = normal[None]
candidates = {
    "baseline wander": augment.baseline_wander(one, FS, run.generator(), **always),
    "powerline": augment.powerline(one, FS, run.generator(), **always),
    "muscle noise": augment.muscle_noise(one, FS, run.generator(), **always),
    "scale by at most 10 %": augment.scale(one, run.generator(), **always),
    "shift": augment.shift(one, FS, run.generator(), **always),
    "warp by at most 3 %": augment.warp(one, run.generator(), **always),
    "as if at 100 Hz": augment.resample(one, FS, run.generator(), **always, rates=(100,)),
    "scale by 2": one * 2.0,
    "stretch time by 1.5": torch.nn.functional.interpolate(one, scale_factor=1.5, mode="linear")[:, :, :5000],
    "flip the sign": -one,
    "play backwards": one.flip(2),
}
for name, ecg in candidates.items():
    new_rate, new_voltage = rate_and_voltage(ecg[0])
    verdict = "same" if abs(new_rate - rate) < 4 else "CHANGED"
    size = "same side of 3.5 mV" if (new_voltage >= 3.5) == (voltage >= 3.5) else "crosses 3.5 mV"
    print(f"{name:22} rate {verdict:8} voltage {size}")

# %% [markdown]
# Stretching time changes the rate, doubling changes a voltage criterion. The last two pass both tests and lie all the
# same: a flipped lead I is what swapped arm electrodes give, and in a backward ECG the T wave comes before its QRS. A
# test that passes shows only what it tests; that is why the list of allowed changes is short.
#
# Masks deserve a second look. A window of 0.18 s can hide the one premature beat that the report names:

# %%
beat = synthesize(SEED, finding="PVC")
ectopic = [int(p) for p, kind in zip(beat.truth["r_peaks"], beat.truth["beat_types"], strict=True) if kind == "V"]
window, total = 4 * 0.13, 10.0  # seconds: four windows of 0.13 s on average
print(f"{len(ectopic)} ventricular beats in {total:g} s; four windows cover {window / total:.1%} of the recording")
print(f"chance that one given beat is touched: about {4 * (0.13 + 0.16) / total:.0%}, all {len(ectopic)}: far less")

# %% [markdown]
# ## 5. All together
#
# `Augment` holds the shares and applies everything in the order in which it would happen: the heart, the recording, the
# recorder, the loss of signal. All draws come from one generator, so a run can be repeated, and the draws are made on
# the generator's device, so that a GPU sees the same ones.

# %%
disturb = augment.Augment(fs=FS, mask_leads=0.2)
first, again = disturb(batch, run.generator()), disturb(batch, run.generator())
print("same generator, same result:", torch.equal(first, again))
print("shape and type stay:", first.shape == batch.shape and first.dtype == batch.dtype)
print(f"records changed: {int((first != batch).flatten(1).any(dim=1).sum())} of {len(batch)}")

# %% [markdown]
# A text with measured numbers goes through `with_factors`, which tells what happened to times and heights. At 100 Hz,
# where the encoder of this course works, hum and lower rates leave the batch alone: 60 Hz can't be told there.

# %%
slow, factors = augment.Augment(fs=100, stretch=0.5).with_factors(batch[:, :, ::5], run.generator())
print("100 Hz:", tuple(slow.shape), "factors of RR and R:", tuple(factors.of(("rr_ms", "r_mv")).shape))

# %% [markdown]
# An augmentation runs once per record and epoch, so it must not be what training waits for. This is a recorded result
# (`benchmarks/augment.py`, on one core of a machine that others used as well): batches of the course beside
# torch_ecg's augmenters, and beside the same steps written for one record at a time. Few records at a time go through
# all steps, so that their samples stay near the processor; noise is drawn for the chosen records only.

# %%
import json

from ecgchat_lib.paths import data_folder

recorded = json.loads((data_folder() / "results" / "augment.json").read_text(encoding="utf-8"))
cpu = {
    case: {name: found["by_cpu_seconds"]["records_per_second"]["median"] for name, found in methods.items()}
    for case, methods in recorded["cases"].items()
}
order = sorted(cpu, key=lambda case: ("together" in case or "all" in case, -cpu[case]["this course"]))
run.show(f04.speed, {case: cpu[case] for case in order})

# %%
print("torch_ecg", recorded["torch_ecg"])
for case in ("baseline_wander", "mask_time", "three together", "all, default shares"):
    for name, found in recorded["cases"][case].items():
        faster = found["by_cpu_seconds"].get("course_is_times_as_fast")
        if faster:
            low, middle, high = (faster[key] for key in ("lower_quartile", "median", "upper_quartile"))
            print(f"{case:20} {middle:5.1f} times {name:26} (quartiles {low:.1f} to {high:.1f})")

# %% [markdown]
# ## Recap
#
# - Disturbances are drawn at nine electrodes and projected, so Einthoven's law holds in what the model sees.
# - Each record of a batch is drawn on its own; a rounded count fires on about 2 % instead of 30 % at batch size one.
# - CutMix is the identity on a batch of one, and on a larger one puts two patients under one report.
# - A warp moves single beats and hardly a median; a stretch multiplies every interval, and the text must follow.
# - Before adding an augmentation, ask which sentence of the report could become false.
#
# **What to copy**: `ecgchat_lib/augment.py`; it needs torch alone, and one error class. `Augment(fs)(ecg, generator)`
# for reports of words, `with_factors` for reports with numbers.
#
# **Common errors**
#
# - *expected (batch, 12, time)*: a single ECG was passed. Add a batch axis: `ecg[None]`.
# - The same disturbance in each epoch: the generator was made anew inside the loop. Make it once.
# - Filtering after augmenting: a 0.5–40 Hz filter takes wander and hum out again. Decide which comes first; in this
#   course the encoder's front end filters, and the augmentations teach it what gets past the filter.
#
# ## References
#
# - Zhao Y, et al. ECG-Chat. arXiv 2408.08849 (2024). Its augmentations follow torch_ecg.
# - Moody G, Muldrow W, Mark R. A noise stress test for arrhythmia detectors. Computers in Cardiology 11 (1984) 381.
# - Yun S, et al. CutMix. ICCV (2019). [doi:10.1109/ICCV.2019.00612](https://doi.org/10.1109/ICCV.2019.00612).
# - Keys R. Cubic convolution interpolation for digital image processing. IEEE Trans ASSP 29 (1981) 1153.
#   [doi:10.1109/TASSP.1981.1163711](https://doi.org/10.1109/TASSP.1981.1163711). How `warp` reads between samples.
# - Sokolow M, Lyon T. The ventricular complex in left ventricular hypertrophy. Am Heart J 37 (1949) 161.
#   [doi:10.1016/0002-8703(49)90562-1](https://doi.org/10.1016/0002-8703(49)90562-1).

# %%
run.finish(
    {
        "records": len(batch),
        "share_rounded_count_batch_1": round(counted[0], 4),
        "share_each_batch_1": round(each[0], 4),
        "expected_rounded_count_batch_1": round(chance_above(0.5, 0.3, 0.1), 4),
    }
)

# %% tags=["parameters"]
PROFILE = "ci"  # which machine the sizes are for: ci|cpu|t4|h100
SEED = 7  # seed of every random draw, 0..2147483647
RECORD = "A0002"  # the real recording: A0001|A0002|A0003|A0004|A0005|A0006|A0007|A0008|A0009|A0010
RECORDS = 16  # synthetic recordings that the small network learns from, 4..2000
EPOCHS = 8  # how often it sees each of them, 1..200
COMPARED = 40  # synthetic recordings whose measurements are compared with their known marks, 20..2000

# %% tags=["setup"]
from ecgchat_lib.course import check, start

run = start("03", globals())

# %% [markdown]
# ## 1. Marks
#
# A cardiologist who measures an ECG sets marks: where each P wave, QRS complex and T wave begins (*onset*), is largest
# (*peak*) and ends (*offset*). Everything else is arithmetic. On synthetic ECGs nobody needs to set them; the generator
# of notebook 02 knows where it put each wave.

# %%
from ecgchat_lib.course.figures import f03
from ecgchat_lib.datasets.synthetic import synthesize

ecg = synthesize(SEED, finding="NORM")
run.show(f03.known_marks, ecg.signal[1], ecg.fs, ecg.marks, 1)

# %% [markdown]
# | interval | from | to | says |
# | --- | --- | --- | --- |
# | RR | an R peak | the next one | how fast the heart beats |
# | PR | onset of P | onset of QRS | how long the excitation takes to reach the ventricles |
# | QRS | onset of QRS | offset of QRS | how long it takes to spread in them |
# | QT | onset of QRS | offset of T | how long until they have recovered |
#
# By hand, from marks in samples at 500 Hz, where one sample is 2 ms:

# %%
p_onset, qrs_onset, qrs_offset, t_offset, r_peak, next_r_peak = 100, 180, 225, 370, 200, 600
print("PR ", (qrs_onset - p_onset) * 2, "ms")
print("QRS", (qrs_offset - qrs_onset) * 2, "ms")
print("QT ", (t_offset - qrs_onset) * 2, "ms")
print("RR ", (next_r_peak - r_peak) * 2, "ms:", 60_000 // ((next_r_peak - r_peak) * 2), "beats per minute")

# %% [markdown]
# A recording has many beats, and one wants one number of each. The library takes the median over the beats:

# %%
import numpy as np

from ecgchat_lib.datasets.segment_recipe import marked_intervals

known = marked_intervals(ecg.marks, ecg.fs)
qrs = np.median(ecg.marks.qrs[:, 2] - ecg.marks.qrs[:, 0]) * 1000 / ecg.fs
rr = np.median(np.diff(ecg.marks.qrs[:, 1])) * 1000 / ecg.fs
assert np.allclose([qrs, rr], [known["qrs_ms"], known["rr_ms"]])
print({name: round(value) for name, value in known.items()})

# %% [markdown]
# **Predict:** a lead may show the first 10 ms of the QRS complex as a flat line, because the excitation runs across it.
# Will the marks of another lead give the same QRS duration?

# %%
widths = {lead: marked_intervals(ecg.lead_marks(lead), ecg.fs)["qrs_ms"] for lead in ("I", "II", "III", "V1", "V3")}
print({lead: f"{width:.0f} ms" for lead, width in widths.items()})

# %% [markdown]
# They don't, and cardiologists' marks don't either. So a duration belongs to a lead. This course measures in lead II,
# as the original does; only `qrs_global_ms` goes from where the complex begins in any lead to where it ends in any.
#
# ## 2. What the original did
#
# ECG-Chat's authors appended measured values to each report before training. Read in the released code: the QRS
# duration is the *S peak minus the Q peak*; the "P/R/T wave" is the *mean sample index* of the peaks; and an exception
# becomes a zero. On a real beat:

# %%
from ecgchat_lib.ecg.measure import analyze
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.paths import data_folder

sample = data_folder() / "real_sample"
recording = read_recording(sample / RECORD)
analysis = analyze(recording)
measured, beat, beat_marks = analysis.measurements, analysis.beat, analysis.beat_marks
on, off = round(beat_marks.qrs[0, 0]), round(beat_marks.qrs[0, 2])
lead_two = beat.signal[recording.leads.index("II")]
top = on + int(lead_two[on : off + 1].argmax())
q = on + int(lead_two[on : top + 1].argmin())
s = top + int(lead_two[top : off + 1].argmin())
run.show(f03.two_widths, beat, beat_marks, q, s)

# %% [markdown]
# The complex has begun before Q is deepest, and isn't over when S is. (Where there is no Q wave, the lowest point
# before R stands in for it.) Now the "waves":
#
# **Predict:** the recording is started one second earlier. What happens to the original's "R wave", and what to the
# height of the R wave?

# %%
shift = round(recording.fs)  # samples in a second
for name, wave in (("P", "P"), ("R", "QRS"), ("T", "T")):
    peaks = analysis.marks.wave(wave)[:, 1]
    if len(peaks):
        told = f"{peaks.mean():.0f}, started a second earlier: {(peaks + shift).mean():.0f}"
        print(f"{name} as a mean sample index: {told}")
print(f"R as a height: {measured.r_mv:.2f} mV, whenever it is started")

# %% [markdown]
# The number says how long the recording was, and nothing of the heart. And the zeros? Three patients, of whom one is in
# fibrillation and has no PR interval at all:

# %%
pr = np.array([160.0, 180.0, np.nan])
print(f"mean PR, unknown left out:   {np.nanmean(pr):.0f} ms")
print(f"mean PR, unknown taken as 0: {np.nan_to_num(pr).mean():.0f} ms, which no patient has")

# %% [markdown]
# Once it is a zero, nobody can tell it from a measurement: not the mean, and not a language model that is trained on
# the sentence. In this library unknown is NaN, with a reason (section 8).
#
# How does one find where a wave begins? Rules (the steepest tangent, a threshold on the slope) need one more exception
# for each heart. People who mark ECGs have seen many. So: let a small network look at many.
#
# ## 3. A network that you can read
#
# Its only operation is the **convolution**: slide a few weights along the signal, and at each place add up what they
# multiply. On eight numbers, with the weights −1, 0, 1, and zeros beyond both ends:

# %%
x = [0, 0, 1, 3, 1, 0, 0, 0]
weight = [-1, 0, 1]
padded = [0, *x, 0]
by_hand = [sum(weight[k] * padded[place + k] for k in range(3)) for place in range(8)]
print(x, "\n" + str(by_hand), " positive where it rises, negative where it falls")

# %% [markdown]
# These weights see steepness. Which weights are useful is what training finds out. The library's convolution does all
# places at once, in one matrix product; it equals the sum by hand, and torch's:

# %%
import torch

from ecgchat_lib.ecg.segment import convolve

signal, kernel = (np.array(values, dtype=np.float32)[None, None] for values in (x, weight))
ours = convolve(signal, kernel, np.zeros(1, dtype=np.float32))
theirs = torch.nn.functional.conv1d(torch.from_numpy(signal), torch.from_numpy(kernel), padding=1)
assert ours[0, 0].tolist() == by_hand == theirs[0, 0].tolist()
print("every second place:", convolve(signal, kernel, np.zeros(1, dtype=np.float32), stride=2)[0, 0].tolist())

# %% [markdown]
# A stride of 2 keeps every second place: half as many samples, and the next convolution sees twice as far. That is the
# way down. On the way up, each sample is doubled, and the detail that was kept on the way down is added. Drawn, it is a
# **U**:

# %%
from ecgchat_lib.ecg.segment import depth, load_segmenting_network

network = load_segmenting_network()
layers = network.members[0]
run.show(f03.unet, layers)

# %% [markdown]
# All of it, from top to bottom (`relu` cuts off what is negative):


# %%
def unet(layers, x):
    relu, kept, levels = lambda values: np.maximum(values, 0), [], depth(layers)
    for level in range(levels):
        x = relu(convolve(x, *layers[f"down.{level}"], stride=2))
        x = x + relu(convolve(x, *layers[f"encode.{level}"]))
        kept.append(x)
    for level in reversed(range(levels - 1)):
        x = np.repeat(relu(convolve(x, *layers[f"up.{level}"])), 2, axis=-1) + kept[level]
        x = x + relu(convolve(x, *layers[f"decode.{level}"]))
    return convolve(x, *layers["head"])  # at half the rate: 4 classes for an even and 4 for an odd sample


# %% [markdown]
# What goes in: one lead at 250 Hz, without drift and what lies above 40 Hz, at unit variance. What comes out: four
# scores at each sample (nothing, P, QRS, T), which the softmax turns into probabilities. Several members were trained
# from different random numbers; their probabilities are averaged.

# %%
from ecgchat_lib.ecg.segment import SEGMENT_FS, segment_input, segment_signal, without_spikes

clean = segment_signal(without_spikes(recording.signal, recording.fs), recording.fs)
leads = segment_input(clean)[:, : clean.shape[-1] // 32 * 32]  # whole multiples of 2 ** 5
found = []
for member in network.members:
    scores = unet(member, leads[1:2, None])  # lead II alone: (1, 8, half the time)
    scores = scores.reshape(4, 2, -1).swapaxes(1, 2).reshape(4, -1)
    powers = np.exp(scores - scores.max(axis=0))
    found.append(powers / powers.sum(axis=0))
probabilities = np.mean(found, axis=0)
assert np.allclose(probabilities, network.probabilities(leads[1:2])[0], atol=1e-5)
print(len(network.members), "members of", sum(w.size + b.size for w, b in layers.values()), "numbers each")

# %% [markdown]
# Equal to the library's, in twenty lines without a network framework. What it says of a real lead:

# %%
run.show(f03.probabilities, clean[1], probabilities, recording.name, (2.0, 5.0))

# %% [markdown]
# **Predict:** how many seconds of ECG does the answer at one sample rest on? A convolution of width 7 reaches 3 samples
# to each side, and on level *k* a sample stands for 2*ᵏ* of the first.

# %%
reach = 0
for name, (weights, _) in layers.items():
    stage, _, level = name.partition(".")
    rate = {"down": 0, "encode": 1, "up": 2, "decode": 1, "head": 1}[stage]  # up is computed one level lower
    reach += weights.shape[-1] // 2 * 2 ** (int(level or 0) + rate)
print(f"{reach} samples to each side: {2 * reach / SEGMENT_FS:.1f} s in all")

# %% [markdown]
# Several beats: enough to know what this lead's P waves look like, and not enough to learn whole patients by heart.
#
# ### Training, small and live
#
# The shipped network learned from LUDB's records 1–50, marked by cardiologists in all twelve leads, and from synthetic
# ECGs beside them (`python -m ecgchat_lib.datasets.segment_recipe`). LUDB isn't part of the project, so here a smaller
# copy learns from synthetic ECGs alone, with the recipe's own functions:

# %%
from ecgchat_lib.datasets.segment_recipe import SegmentConfig, SegmentNet, batches, segment_loss, strips

config = SegmentConfig(widths=(8, 12, 16, 16), strip=640, epochs=EPOCHS)
learned = []
for number in range(RECORDS):
    one = synthesize(1000 * SEED + number)
    learned.append(strips(one.signal, one.fs, [one.lead_marks(lead) for lead in recording.leads]))

# %% [markdown]
# What is to be learned is how much of each sample a wave covers: a QRS complex from 10.3 to 12.0 covers 0.2 of sample
# 10 (which lasts from 9.5 to 10.5), all of 11, and half of 12. So the marks keep their fractions:

# %%
from ecgchat_lib.datasets.segment_recipe import coverage
from ecgchat_lib.ecg.marks import WaveMarks

one_wave = WaveMarks(qrs=np.array([[10.3, 11.0, 12.0]]))
print("QRS:", coverage(one_wave, 15, SEGMENT_FS)[2, 9:14].astype(float).round(2).tolist(), " samples 9 to 13")

# %%
torch.manual_seed(SEED)
net, draw = SegmentNet(config), np.random.default_rng(SEED)
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
losses = []
for _ in range(config.epochs):
    for batch in batches(learned, (), config, draw):  # lead, four classes, weight: (batch, 6, time)
        loss = segment_loss(net(batch[:, :1]), batch[:, 1:5], batch[:, 5])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

# %%
run.show(f03.training, losses, RECORDS, EPOCHS, SEED)

# %% [markdown]
# Before it is used, the normalization of training is multiplied into the weights, so that only convolutions are left.
# From then on torch isn't needed: numpy computes the same.

# %%
from ecgchat_lib.ecg.segment import SegmentingNetwork

little = SegmentingNetwork((net.layers(),))
net.eval()
with torch.no_grad():
    by_torch = torch.softmax(net(torch.from_numpy(leads[:, None])), dim=1).numpy()
assert abs(by_torch - little.probabilities(leads)).max() < 1e-4
print(sum(w.size + b.size for w, b in little.members[0].values()), "numbers; numpy and torch agree to 1e-4")

# %% [markdown]
# **Predict:** on synthetic recordings that neither has seen, how much better is the shipped network, with its many more
# numbers? And on the real recording: at how many of the samples do the two name the same class?

# %% tags=["nbval-ignore-output"]
# nbval ignores this output: what training arrives at differs in the last digits from CPU to CPU.
from ecgchat_lib.ecg.recording import Recording

unseen = [synthesize(1000 * SEED + 900 + number, finding="NORM") for number in range(6)]
for name, model in (("little", little), ("shipped", network)):
    errors = []
    for one in unseen:
        got = analyze(Recording("synthetic", one.signal, one.fs), model).measurements
        errors.append([abs(getattr(got, interval) - one.truth[interval]) for interval in known])
    told = dict(zip(known, np.nanmean(errors, axis=0).round().astype(int).tolist(), strict=True))
    print(f"{name:8}mean absolute error in ms, synthetic: {told}")
same = little.probabilities(leads).argmax(axis=1) == network.probabilities(leads).argmax(axis=1)
print(f"on {recording.name}, twelve leads, both name the same class at {same.mean():.0%} of the samples")

# %% [markdown]
# On the generator's ECGs the little one does about as well: it has learned the generator's habits, and they are
# what it is asked about. That is what a synthetic test can't show; section 7 asks cardiologists.
#
# ## 4. From probabilities to marks
#
# A wave is a stretch where its probability is above one half. Its ends lie *between* two samples, where a straight line
# from one to the next crosses one half. At 250 Hz a sample lasts 4 ms, so this matters. By hand:

# %%
toy = np.array([0.1, 0.3, 0.7, 0.9, 0.6, 0.2])
start_at = 1 + (0.5 - 0.3) / (0.7 - 0.3)  # half way between samples 1 and 2
stop_at = 4 + (0.6 - 0.5) / (0.6 - 0.2)  # a quarter of the way from 4 to 5
print(f"from {start_at:.2f} to {stop_at:.2f}: {(stop_at - start_at) * 4:.0f} ms; in whole samples {(4 - 2) * 4} ms")

# %%
from ecgchat_lib.ecg.delineate import find_stretches, find_waves

assert np.allclose(find_stretches(toy), [[start_at, stop_at]])
waves = find_waves(probabilities, clean[1])
for name in ("P", "QRS", "T"):
    first = (waves.wave(name)[:1] * 1000 / SEGMENT_FS).round().astype(int).tolist()
    print(f"{name:3} {len(waves.wave(name)):3} marked; the first: {first} ms")

# %% [markdown]
# And in all twelve leads, laid over the recording:

# %%
scale = recording.fs / SEGMENT_FS
marks = {}
for name, lead, likely in zip(recording.leads, clean, network.probabilities(leads), strict=True):
    one = find_waves(likely, lead)
    marks[name] = WaveMarks(*(one.wave(wave) * scale for wave in ("P", "QRS", "T")))
run.show(f03.every_wave, recording, marks)

# %% [markdown]
# The network looks at each lead alone: it doesn't know that the P wave in V1 and the one in II are the same event. Look
# for leads where it misses a small wave that its neighbors show.
#
# ## 5. One beat out of many
#
# **Predict:** a recording has a few ectopic beats (PVC): early, broad, of another shape. By how much does the *mean*
# QRS duration rise? By how much the median?

# %%
early = synthesize(SEED, finding="PVC")
durations = (early.marks.qrs[:, 2] - early.marks.qrs[:, 0]) * 1000 / early.fs
print("known QRS durations, beat by beat:", durations.round().astype(int).tolist())
print(f"mean {durations.mean():.0f} ms, median {np.median(durations):.0f} ms")

# %%
from ecgchat_lib.ecg.beats import align_beats, find_r_peaks

places = early.truth["r_peaks"]
window = np.arange(-150, 300)
inside = places[(places >= 150) & (places + 300 <= early.signal.shape[1])]
cut = early.signal[1][inside[:, None] + window]
kinds = np.array(early.truth["beat_types"])[np.isin(places, inside)]
run.show(f03.mean_and_median, cut - np.median(cut, axis=1, keepdims=True), early.fs, int((kinds == "V").sum()))

# %% [markdown]
# The median is right as long as most beats are. Better still not to ask the ectopic ones: `align_beats` lays the QRS
# complexes on each other in all leads and calls those *alike* that correlate with the typical one. Nobody told it which
# are ectopic:

# %%
signal = segment_signal(without_spikes(early.signal, early.fs), early.fs)
beats = align_beats(signal, SEGMENT_FS, find_r_peaks(signal, SEGMENT_FS))
print("known:", "".join(early.truth["beat_types"]))
print("alike:", "".join("." if alike else "x" for alike in beats.alike))

# %% [markdown]
# The first and the last beat of a recording are another matter. Where the recording begins or ends within a wave, the
# wave looks short. We end one 20, 40 and 60 ms after its sixth QRS complex has begun:
#
# **Predict:** what does the network say of the duration of that complex? What does the library report?

# %%
from dataclasses import replace

for after in (20, 40, 60):
    last = round(ecg.marks.qrs[5, 0] + after * ecg.fs / 1000)
    short = analyze(Recording("cut", ecg.signal[:, :last], ecg.fs))
    sixth = short.marks.qrs[short.marks.qrs[:, 0] > ecg.marks.qrs[4, 2]]
    told = [f"{(end - begin) * 1000 / ecg.fs:.0f} ms" for begin, _, end in sixth] or ["not seen"]
    print(f"cut off after {after} ms: the sixth {told[0]}; reported {short.measurements.qrs_ms:.0f} ms")

# %% [markdown]
# So of five or more beats the first and the last are left out. All together, the library's way to an interval:

# %%
from ecgchat_lib.ecg.delineate import waves_of_beats
from ecgchat_lib.ecg.measure import complete

beats = align_beats(clean, SEGMENT_FS, find_r_peaks(clean, SEGMENT_FS))
each = waves_of_beats(waves, beats.positions * SEGMENT_FS)  # one row per beat, NaN where a wave wasn't found
kept = complete(beats.positions)  # without the first and the last
qrs = (each.qrs[kept, 2] - each.qrs[kept, 0])[beats.alike[kept]] * 1000 / SEGMENT_FS
assert abs(np.nanmedian(qrs) - measured.qrs_ms) < 0.1
print(f"QRS of {recording.name}: {np.nanmedian(qrs):.0f} ms, the median of {np.isfinite(qrs).sum()} beats")

# %% [markdown]
# The beats themselves are treated the same way: cut out, put on one level (just before the QRS complex), and their
# median taken. Heights are read from this *median beat*, `analysis.beat`.
#
# ## 6. Heights, and what follows from them
#
# The height of the R wave is the largest value within the QRS complex. A P wave often stands on a slope, so its height
# counts from the line between its ends. **ST** is the level 60 ms after the J point, where the QRS complex ends (in
# the leads where it ends last): near zero in a healthy heart, lifted where a piece of muscle gets no blood.

# %%
begin, j = analysis.qrs_ends  # first and last sample of the complex over all leads
r_height = lead_two[begin : j + 1].max()
st = beat.signal[:, j + 30 - 2 : j + 30 + 3].mean(axis=1)  # 500 Hz: 30 samples are 60 ms; 5 are averaged
assert np.isclose(r_height, measured.r_mv)
assert np.allclose(st, [measured.st_mv[lead] for lead in recording.leads])
print(f"R {measured.r_mv:.2f} mV, P {measured.p_mv:.2f} mV, T {measured.t_mv:.2f} mV")

# %%
infarctions = (synthesize(SEED + k, finding="AMI") for k in range(100))
anterior = next(one for one in infarctions if one.truth["stage"] == "acute")
ischemic = analyze(Recording("synthetic", anterior.signal, anterior.fs)).measurements
run.show(f03.heights, measured, ischemic, (recording.name, "a synthetic acute infarction"))

# %% [markdown]
# From V1 to V6 one walks around the heart, from its thin right side to its thick left one, so **R grows** and S
# shrinks; where R first is the larger is the *transition*. The **axis** was made in notebook 01 from I and aVF; it uses
# the area of the whole complex.
#
# ### Even or uneven
#
# In sinus rhythm RR changes slowly, with breathing. In fibrillation, each RR is independent of the one before. One
# early beat is neither. So: the change from one RR to the next, its median, as a part of RR. By hand:
#
# **Predict:** which of these three is called uneven, by a limit of 7 %?

# %%
for name, rr in {
    "breathing": [800, 820, 850, 860, 840, 810],
    "one early": [800, 810, 500, 1100, 800, 810, 800, 790],
    "fibrillation": [620, 810, 540, 930, 700, 610],
}.items():
    changes = abs(np.diff(rr))
    print(f"{name:13} changes {changes.tolist()}, median {np.median(changes) / np.median(rr):.0%} of RR")
print(f"{recording.name}: {'even' if measured.regular else 'uneven'}, RR {measured.rr_ms:.0f} ms")

# %% [markdown]
# ### QTc
#
# A fast heart recovers faster, so QT is *corrected* to what it would be at 60 beats a minute. Three formulas, RR in
# seconds: Bazett QT / √RR, Fridericia QT / ∛RR, Framingham QT + 154 ms · (1 − RR). Say, a heart's QT is 425 ms at 50,
# 400 ms at 60 and 327 ms at 110 beats a minute:

# %%
import math

for rate, qt in ((50, 425), (60, 400), (110, 327)):
    rr = 60 / rate
    bazett, fridericia, framingham = qt / math.sqrt(rr), qt / math.cbrt(rr), qt + 154 * (1 - rr)
    print(f"{rate:3}/min, QT {qt}: Bazett {bazett:.0f}, Fridericia {fridericia:.0f}, Framingham {framingham:.0f}")
by_hand = measured.qt_ms / math.sqrt(measured.rr_ms / 1000)
assert math.isclose(by_hand, measured.qtc_ms)

# %% [markdown]
# A correction is good if the corrected value *doesn't* depend on the rate. This heart's QT goes with the cube root. The
# square root changes more than the heart does, so Bazett **overcorrects**: too long when the heart is fast, too short
# when it is slow. The same person of our generator (which follows Fridericia, so it can't prove that he is right) at
# many rates:

# %%
same_person = [synthesize(k, finding=f, patient_seed=SEED) for f in ("SBRAD", "NORM", "STACH") for k in range(4)]
points = sorted((one.truth["heart_rate_bpm"], one.truth["qt_ms"], one.truth["rr_ms"] / 1000) for one in same_person)
corrected = {
    "Bazett": [qt / math.sqrt(rr) for _, qt, rr in points],
    "Fridericia": [qt / math.cbrt(rr) for _, qt, rr in points],
    "Framingham": [qt + 154 * (1 - rr) for _, qt, rr in points],
}
run.show(f03.corrections, [rate for rate, _, _ in points], corrected)

# %% [markdown]
# And real hearts? In 539 healthy adults Bazett's QTc followed the rate more than Fridericia's or the Framingham one (a
# study of 2021, see the references), and the American societies' recommendations of 2009 advise against it. In infants,
# whose hearts are fast, it holds better. It is still what most cardiographs print and what the original's sentence
# holds, so `qtc_ms` is Bazett's and says so (`qtc_formula`); the others stand beside it.
#
# ### As a sentence
#
# The original appends the values to each report (*waveform data enhancement*, WDE). `wde_text` does both styles:

# %%
from ecgchat_lib.ecg.measure import wde_text

fibrillating = synthesize(SEED, finding="AFIB")
without_p = analyze(Recording("synthetic", fibrillating.signal, fibrillating.fs)).measurements
for name, values in ((recording.name, measured), ("fibrillation", without_p)):
    print(f"{name}, course:  {wde_text(values)}")
    print(f"{name}, original:{wde_text(values, style='original')}")

# %% [markdown]
# Order and punctuation are the original's in both. `style="original"` is there for models that were trained on such
# sentences, and says PR 0 where there is no P wave; ours says `n/a`. The heights are heights in both: a mean sample
# index isn't worth being compatible with.
#
# ## 7. How good is it?
#
# How far is a measurement from the truth? One number isn't enough: it can be wrong by the same amount each time
# (*bias*), or by another amount each time (*spread*). Bland and Altman (1986) draw the **difference** against the mean
# of both. 95 % of the differences lie between bias − 1.96 SD and bias + 1.96 SD, if they are spread normally: the
# *limits of agreement*. Four pairs by hand:

# %%
ours, marked = np.array([102, 98, 110, 90]), np.array([100, 94, 104, 90])
differences = ours - marked
bias, spread = differences.mean(), differences.std(ddof=1)
print(f"differences {differences.tolist()}, bias {bias:.1f}, SD {spread:.2f}")
print(f"limits of agreement {bias - 1.96 * spread:.1f} to {bias + 1.96 * spread:.1f} ms")

# %% [markdown]
# First against the generator, which knows its marks. Five findings, so that there are narrow and broad complexes, slow
# and fast hearts.
#
# **Predict:** which interval will have the widest limits? Which end of which wave is hardest to see?

# %%
findings = ("NORM", "SBRAD", "STACH", "CRBBB", "AMI")
cases = []
for number in range(COMPARED):
    finding = findings[number % len(findings)]
    one = synthesize(2000 * SEED + number, finding=finding)
    cases.append((finding, analyze(Recording("synthetic", one.signal, one.fs)).measurements, one.truth))
pairs = {name: tuple(np.array([(getattr(got, name), one[name]) for _, got, one in cases]).T) for name in known}
run.show(f03.against_known_marks, pairs)

# %% [markdown]
# A plot shows what one number hides: whether all hearts are a little off, or a few of them far. Which ones?

# %%
print("bias in ms     " + "".join(f"{name[:-3].upper():>6}" for name in known))
for k, finding in enumerate(findings):
    off_by = [np.nanmean(found[k :: len(findings)] - truth[k :: len(findings)]) for found, truth in pairs.values()]
    print(f"{finding:15}" + "".join(f"{round(value):6}" for value in off_by))
blocked = [(got.qrs_ms, got.qrs_global_ms, one["qrs_ms"]) for finding, got, one in cases if finding == "CRBBB"]
told = [f"{value:.0f}" for value in np.nanmean(blocked, axis=0)]
print(f"CRBBB, mean QRS in ms: lead II {told[0]}, over all leads {told[1]}, marked in II {told[2]}")

# %% [markdown]
# In a right bundle branch block (CRBBB) the last part of the complex runs toward the right and the front: tall in V1,
# almost flat in II. What the eye (and the network) takes for its end in II is too early. That is what `qrs_global_ms`
# is for. In fast hearts (STACH) the P wave stands on the T wave before it, and where one ends and the other begins is
# anybody's guess. And the end of T fades into the baseline without a corner in every heart.
#
# But the network has learned from this generator. So now the question that counts: **cardiologists**, on LUDB's records
# 1–50. By *cross-validation*: the records are dealt into parts; each part is measured by a network that was trained on
# the others, so no record is measured by a network that has seen it.

# %%
import json

recorded = json.loads((data_folder() / "results" / "measure_ludb.json").read_text())
validated = recorded["cross_validation"]


def numbers(pair):
    return [math.nan if value is None else value for value in pair]


by_record = [{name: numbers(row[name]) for name in known} for row in validated["pairs"].values()]
pairs = {name: tuple(np.array([row[name] for row in by_record]).T) for name in known}
run.show(f03.against_cardiologists, pairs)

# %%
print("interval   n  mean absolute error (95 %)  median    bias    SD  worst  not measured  not marked")
for name in known:
    row = validated["summary"][name]
    error = (
        f"{row['mean_absolute_ms']:.1f} ms ({row['mean_absolute_low_ms']:.1f} to {row['mean_absolute_high_ms']:.1f})"
    )
    spread = f"{row['median_absolute_ms']:7.1f}{row['bias_ms']:+8.1f}{row['sd_ms']:6.1f}{row['worst_ms']:7.1f}"
    lacks = f"{row['marked_but_not_measured']:14}{row['measured_but_not_marked']:12}"
    print(f"{name[:-3].upper():8}{row['n']:4}  {error:26}{spread}{lacks}")

# %% [markdown]
# Where the mean of the sizes lies far above their median, a few records do it: find them in the plot. The limits of
# agreement, which square each difference, are widened by them most.
#
# *Not measured* counts records that have such marks and for which the library has no answer; *not marked* is the
# reverse. A mean error without them could be made as small as one likes, by answering only where it is easy.
#
# What do others reach? On the same fifty records, and on one core, side by side (mean absolute error in ms):

# %%
print("method                  RR    PR   QRS    QT   records a second")
for name, method in recorded["methods"].items():
    errors = method.get("errors") or validated["summary"]
    told = "".join(f"{errors[interval]['mean_absolute_ms']:6.1f}" for interval in known)
    speed = f"{method['records_per_second']['median']:.0f} ({method['leads']} lead{'s' * (method['leads'] > 1)})"
    print(f"{name:20}{told}   {speed}")

# %% [markdown]
# And, measured for this course on LUDB's other records, 51–200 (150 of them), in lead II. Other hearts: compare the
# sizes, not the decimals.
#
# | method | RR | PR | QRS | QT | records a second |
# | --- | --- | --- | --- | --- | --- |
# | the original's (NeuroKit2, S peak minus Q peak) | 22 | 18 | 35 | 48 | 19 |
# | NeuroKit2, wavelets (`dwt`), medians over beats | 16 | 49 | 74 | 51 | not run |
# | ECGdeli ("fixed") | 7 | 13 | 19 | 24 | 3 |
#
# ## 8. When there is no answer
#
# Not every recording has an answer, and "there is no P wave" is one. Fibrillation, noise alone, a lead II that fell
# off, and two beats only:
#
# **Predict:** in which of these is there still a QRS duration?

# %%
whole = Recording("whole", ecg.signal, ecg.fs)
noise = run.rng.normal(0, 0.3, ecg.signal.shape).astype(np.float32)
fallen = np.where(np.arange(12)[:, None] == 1, 0, ecg.signal).astype(np.float32)
before_third = round(ecg.marks.qrs[2, 0] - 0.2 * ecg.fs)
cases = {
    "fibrillation": Recording("fibrillation", fibrillating.signal, fibrillating.fs),
    "noise alone": replace(whole, signal=noise),
    "II fell off": replace(whole, signal=fallen),
    "two beats": replace(whole, signal=ecg.signal[:, :before_third]),
}

# %%
for name, case in cases.items():
    got = analyze(case).measurements
    shown = {n[:-3].upper(): getattr(got, n) for n in known}
    told = "  ".join(f"{n} {'n/a' if math.isnan(value) else f'{value:.0f}'}" for n, value in shown.items())
    print(f"{name}: {told}, in lead {got.interval_lead}")
    for why in dict.fromkeys(got.reasons.values()):
        lacking = [n for n, reason in got.reasons.items() if reason == why]
        print(f"    {', '.join(lacking[:4])}{', …' * (len(lacking) > 4)}: {why}")

# %% [markdown]
# Each NaN has its reason, under its own name; what can be measured still is. With II flat, the lead that moves most
# takes its place, and the result says which (`interval_lead`), since a duration belongs to a lead (section 1).
#
# And a trap that remains: where every second beat is ectopic (bigeminy), neither kind is "most".
#
# **Predict:** which QRS duration will be reported: that of the normal beats, or that of the others?

# %%
twins = synthesize(SEED, finding="BIGU")
got = analyze(Recording("synthetic", twins.signal, twins.fs))
widths = (twins.marks.qrs[:, 2] - twins.marks.qrs[:, 0]) * 1000 / twins.fs
print("known:   ", widths.round().astype(int).tolist())
print(f"reported: {got.measurements.qrs_ms:.0f} ms, rhythm {'even' if got.measurements.regular else 'uneven'}")

# %% [markdown]
# Where neither kind is clearly more common, the narrower one is taken: it came the normal way. Still it is a duration
# of half the beats. The rhythm is called uneven, and that is the hint to look at the paper.
#
# ## Exercises
#
# ### Exercise 03.1 Three corrections of QT (★☆☆, 8 min)
#
# Write `correct_qt(qt_ms, rr_ms)`: return QTc by Bazett, by Fridericia and by Framingham, in this order, in ms. Both
# arguments are in milliseconds.
#
# <details><summary>Hint 1</summary>At 60 beats a minute, RR = 1 s, all three must leave QT as it is.</details>
# <details><summary>Hint 2</summary><code>rr = rr_ms / 1000</code> first. <code>math.cbrt</code> is the cube root.
# </details>


# %% tags=["solution"]
def correct_qt(qt_ms, rr_ms):
    # <solution>
    rr = rr_ms / 1000
    return qt_ms / math.sqrt(rr), qt_ms / math.cbrt(rr), qt_ms + 154 * (1 - rr)
    # </solution>


# %%
check("03.1", correct_qt)

# %% [markdown]
# ### Exercise 03.2 Where a wave begins and ends (★★☆, 20 min)
#
# Write `stretches(probability)`: return an array of shape (wave, 2) with first and last place of each stretch above one
# half, between two samples by a straight line. A stretch that is cut off by an end of the array begins or ends at that
# sample. (Don't call `find_stretches`; it is what you are compared with.)
#
# <details><summary>Hint 1</summary>First find runs of samples above 0.5. With a False put before and after,
# <code>np.diff</code> of the booleans as integers is 1 where a run begins and −1 just after it ends.</details>
# <details><summary>Hint 2</summary>From the sample inside (value a) toward the one outside (value b), the line crosses
# one half after (a − 0.5) / (a − b) of a sample.</details>
# <details><summary>Hint 3</summary>At sample 0 and at the last sample there is nothing outside: keep the sample
# itself. End with <code>np.array(rows).reshape(-1, 2)</code>, so that no wave gives shape (0, 2).</details>


# %% tags=["solution"]
def stretches(probability):
    # <solution>
    above = np.concatenate([[False], probability > 0.5, [False]]).astype(int)
    rows = []
    for first, stop in zip(np.flatnonzero(np.diff(above) == 1), np.flatnonzero(np.diff(above) == -1), strict=True):
        begin, end = float(first), float(stop - 1)
        if first > 0:
            begin -= (probability[first] - 0.5) / (probability[first] - probability[first - 1])
        if stop < len(probability):
            end += (probability[stop - 1] - 0.5) / (probability[stop - 1] - probability[stop])
        rows.append((begin, end))
    return np.array(rows).reshape(-1, 2)
    # </solution>


# %%
check("03.2", stretches)

# %% [markdown]
# ### Exercise 03.3 The typical beat (★★☆, 12 min)
#
# Write `typical(values, alike)`: `values` is one interval of each beat in ms, NaN where it wasn't found; `alike` says
# which beats look like most. Return the median over the beats that are alike and known, without the first and the last
# if there are five beats or more (of any kind); NaN if none is left.
#
# <details><summary>Hint 1</summary>Cut off both ends of <i>both</i> arrays first, then select.</details>
# <details><summary>Hint 2</summary><code>values[alike & np.isfinite(values)]</code> keeps what counts.</details>
# <details><summary>Hint 3</summary>The median of an empty array warns and is NaN by accident. Ask for
# <code>len(kept)</code> and return <code>math.nan</code> on purpose.</details>


# %% tags=["solution"]
def typical(values, alike):
    # <solution>
    if len(values) >= 5:
        values, alike = values[1:-1], alike[1:-1]
    kept = values[alike & np.isfinite(values)]
    return float(np.median(kept)) if len(kept) else math.nan
    # </solution>


# %%
check("03.3", typical)

# %% [markdown]
# ### Exercise 03.4 Limits of agreement (★★★, 15 min)
#
# Write `limits_of_agreement(measured, marked)`: return how many pairs count, the bias, and the lower and upper limit of
# agreement. Pairs in which either value is NaN don't count.
#
# <details><summary>Hint 1</summary>Subtract first: NaN minus anything is NaN, so one test finds all.</details>
# <details><summary>Hint 2</summary>The pairs are a sample of all patients: <code>std(ddof=1)</code>.</details>
# <details><summary>Hint 3</summary>Measured minus marked: too long is positive. Keep the sign.</details>


# %% tags=["solution"]
def limits_of_agreement(measured, marked):
    # <solution>
    differences = measured - marked
    differences = differences[np.isfinite(differences)]
    bias, spread = differences.mean(), differences.std(ddof=1)
    return len(differences), bias, bias - 1.96 * spread, bias + 1.96 * spread
    # </solution>


# %%
check("03.4", limits_of_agreement)

# %% [markdown]
# ## Recap
#
# - A convolution is a sum that slides along; a U-Net is a few of them, down and up again, and runs without a framework
#   (section 3).
# - A wave begins where its probability crosses one half, between two samples (exercise 03.2).
# - An interval is a median over complete beats that look alike, and NaN, with a reason, where there is none (exercise
#   03.3, section 8).
# - Corrections of QT differ where the heart is fast or slow; RR is in seconds (exercise 03.1).
# - How good a measurement is takes n, bias, limits, and how often there was no answer (exercise 03.4, section 7).
#
# **What to copy.** `analyze(recording)`: measurements, marks, beats and the median beat; `measure(recording)` if the
# numbers are enough. They are the folder `ecgchat_lib/ecg` and one file of weights of less than a megabyte, and need
# numpy, scipy and safetensors. On the command line: `ecgchat measure RECORD --json`.
#
# **Common errors.** *QTc of 13 ms*: RR was in milliseconds. *PR is n/a although you see a P wave*: it has to be there
# in most beats, at the same distance, and higher than noise; look at `reasons`. *Intervals all doubled or halved*: the
# sampling rate is wrong. *MissingPartError: ecg-segment-mini*: the weights were left out of the copy.
#
# ## References and licenses
#
# - Marks by cardiologists: LUDB, Kalyakulina et al. 2020, doi
#   [10.1109/ACCESS.2020.3029211](https://doi.org/10.1109/ACCESS.2020.3029211). ODC-By 1.0.
# - U-Net: Ronneberger et al. 2015, doi
#   [10.1007/978-3-319-24574-4_28](https://doi.org/10.1007/978-3-319-24574-4_28); for ECGs: Moskalenko et al. 2020, doi
#   [10.1007/978-3-030-30425-6_29](https://doi.org/10.1007/978-3-030-30425-6_29).
# - Agreement: Bland and Altman 1986, doi
#   [10.1016/S0140-6736(86)90837-8](https://doi.org/10.1016/S0140-6736%2886%2990837-8).
# - QTc: Bazett 1920, Heart 7, 353; Fridericia 1920, in English with doi
#   [10.1046/j.1542-474X.2003.08413.x](https://doi.org/10.1046/j.1542-474X.2003.08413.x); Framingham: Sagie et al. 1992,
#   doi [10.1016/0002-9149(92)90562-D](https://doi.org/10.1016/0002-9149%2892%2990562-D). Compared: in adults,
#   [PMC8275798](https://pmc.ncbi.nlm.nih.gov/articles/PMC8275798); in infants, Phan et al. 2015, doi
#   [10.1016/j.jpeds.2014.12.037](https://doi.org/10.1016/j.jpeds.2014.12.037).
# - Standards of measuring: Kligfield et al. 2007 (AHA/ACC/HRS, part I), doi
#   [10.1016/j.jacc.2007.01.024](https://doi.org/10.1016/j.jacc.2007.01.024); Rautaharju et al. 2009 (part IV: ST, T,
#   QT), doi [10.1016/j.jacc.2008.12.014](https://doi.org/10.1016/j.jacc.2008.12.014).
# - NeuroKit2: Makowski et al. 2021, doi [10.3758/s13428-020-01516-y](https://doi.org/10.3758/s13428-020-01516-y), MIT.
#   ECGdeli: Pilia et al. 2021, doi [10.1016/j.softx.2020.100639](https://doi.org/10.1016/j.softx.2020.100639), GPL: it
#   was compared with, and nothing of it is used here.
# - Recordings: CPSC2018, Liu et al. 2018, doi
#   [10.1166/jmihi.2018.2442](https://doi.org/10.1166/jmihi.2018.2442), by way of the PhysioNet/CinC Challenge 2020. CC
#   BY 4.0.
# - Zhao et al. 2024, *ECG-Chat*, arXiv 2408.08849: the original whose habits are quoted here from its released code.
# - Code: Apache-2.0; text: CC BY 4.0.

# %%
run.finish(
    {
        "record": RECORD,
        "steps": len(losses),
        "loss_fell_to_less_than_half": bool(np.median(losses[-8:]) < losses[0] / 2),
        "compared": COMPARED,
        "qrs_ms": measured.qrs_ms,
        "q_to_s_ms": (s - q) * 1000 / beat.fs,
        "ludb_records": len(validated["pairs"]),
        "ludb_mean_absolute_ms": {name: row["mean_absolute_ms"] for name, row in validated["summary"].items()},
    }
)

# %% tags=["parameters"]
PROFILE = "ci"  # which machine the sizes are for: ci|cpu|t4|h100
SEED = 7  # seed of every random draw, 0..2147483647
RECORDS = 160  # synthetic recordings to make, 40..99999
DATA = "synthetic"  # "synthetic", or the folder of PTB-XL as published

# %% tags=["setup"]
from ecgchat_lib.course import check, start

run = start("02", globals())

# %% [markdown]
# ## 1. What there is
#
# ECG-Chat was trained on three public datasets and evaluated on two more. Their sizes, licenses and sources stand in
# the data cards of this project, one file per dataset, where each also lists its traps. None of the five is downloaded
# here.

# %%
from ecgchat_lib.datasets.cards import read_cards

cards = read_cards()
print(cards[["name", "records", "patients", "license", "role"]].to_string(index=False, max_colwidth=44))

# %% [markdown]
# The last line is the dataset that needs no download: the project makes it. A *heart vector* with three components (to
# the left, to the foot, to the back) is written as a sum of bell-shaped waves. What a lead sees is a weighted sum of
# the three. By hand, for one instant and the two leads I and II, with the weights of Dower's matrix:

# %%
import numpy as np

vector = np.array([1.0, 0.8, 0.3])  # mV: to the left, to the foot, to the back
one = 0.632 * vector[0] - 0.235 * vector[1] + 0.059 * vector[2]
two = 0.235 * vector[0] + 1.066 * vector[1] - 0.132 * vector[2]
print(f"I = {one:.3f} mV, II = {two:.3f} mV, so III = II - I = {two - one:.3f} mV")

# %% [markdown]
# The library's matrix gives the same, and its synthetic ECGs keep Einthoven's law (I + III = II) to the last stored
# digit, which many real files don't, since each lead was rounded on its own.

# %%
from ecgchat_lib.datasets.synthetic import DOWER, FINDINGS, synthesize

assert np.allclose(DOWER[:2] @ vector, [one, two])
ecg = synthesize(SEED, finding="CLBBB")
units = np.round(ecg.signal * 1000).astype(int)  # stored as whole microvolts
print("I + III = II in every sample:", bool((units[0] + units[2] == units[1]).all()))
print("statements:", ecg.statements)
print("report:    ", ecg.report)
known = ("heart_rate_bpm", "rr_ms", "pr_ms", "qrs_ms", "qt_ms", "axis_deg")
print("truth:     ", {name: ecg.truth[name] for name in known})

# %% [markdown]
# **Predict:** which of the strips below is the real one, and how could you tell if the titles were missing?

# %%
from ecgchat_lib.course.figures import f02
from ecgchat_lib.datasets.cpsc2018 import load_real_sample
from ecgchat_lib.datasets.signals import load_recording

shown = ("NORM", "AFIB", "CLBBB", "PVC", "IMI")
strips = {f"synthetic, {name}": synthesize(SEED, finding=name).signal for name in shown}
real = load_recording(load_real_sample(), "A0002")
strips["real, A0002 of CPSC2018, labeled normal"] = real.signal[:, :5000]
run.show(f02.strips, strips, 500)

# %% [markdown]
# By eye it is hard to tell, and that is the danger. The synthetic ones have one cause per finding, clean onsets, and
# the same few sources of noise; real ones have several diseases at once, loose electrodes, and waves that no sum of
# bells gives. Synthetic ECGs test code against a known truth. What they can't do is say how good a model is for
# patients; a result on them never stands in one table with a result on PTB-XL.
#
# ## 2. From a published layout to one table
#
# PTB-XL comes as one table, `ptbxl_database.csv`, and one pair of WFDB files per recording. The next cell writes
# synthetic ECGs in exactly that layout, so that everything from here on also runs on PTB-XL itself: set `DATA` to its
# folder.

# %%
from pathlib import Path

from ecgchat_lib.datasets.synthetic import write_synthetic

folder = Path(DATA)
if DATA == "synthetic":
    folder = run.artefact("synthetic_ptbxl", lambda path: write_synthetic(path, RECORDS, SEED), records=RECORDS)
print("\n".join(sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))))

# %% [markdown]
# First by hand. A row of the table holds the statements as the text of a Python dictionary. `ast.literal_eval` reads
# such a text and, unlike `eval`, can't run anything.

# %%
import ast

import pandas as pd

table = pd.read_csv(folder / "ptbxl_database.csv")
row = table.iloc[0]
print(row[["ecg_id", "patient_id", "age", "sex", "scp_codes", "strat_fold", "filename_hr"]].to_string())
print("parsed:", ast.literal_eval(row["scp_codes"]))

# %% [markdown]
# The library does this for every row, checks it, and returns a *manifest*: one row per recording, the same columns for
# every dataset. All later notebooks read manifests and never a dataset's own tables.

# %%
from ecgchat_lib.datasets.ptbxl import load_ptbxl

manifest = load_ptbxl(folder)
first = manifest.iloc[0]
assert dict(first["statements"]) == ast.literal_eval(row["scp_codes"])
print(manifest[["record", "patient", "split", "statements", "labels", "fold"]].head(8).to_string(index=False))

# %% [markdown]
# A likelihood of 0 doesn't mean *absent*. PTB-XL writes it where nobody stated a likelihood, which is nearly always so
# for rhythm and form. Whoever drops the zeros loses the rhythm of almost every record.
#
# The manifest is checked when it is made. A wrong table is refused with the record, the column and the remedy:

# %%
from ecgchat_lib.datasets.manifest import check_manifest
from ecgchat_lib.errors import EcgChatError

wrong = manifest.copy()
wrong.loc[3, "split"] = "dev"
try:
    check_manifest(wrong)
except EcgChatError as error:
    print(error)

# %% [markdown]
# ## 3. From statements to superclasses
#
# PTB-XL's 71 statements are of three kinds. Only the diagnostic ones belong to a superclass.

# %%
from ecgchat_lib.datasets.labels import KINDS, STATEMENTS, SUPERCLASSES, codes_of_kind, superclasses

print({kind: len(codes_of_kind(kind)) for kind in KINDS}, "of", len(STATEMENTS))
by_hand = {STATEMENTS[code].superclass for code in ("LVH", "IMI", "SR")} - {None}
print("LVH, IMI and SR:", sorted(by_hand))
assert by_hand == set(superclasses(["LVH", "IMI", "SR"]))

# %% [markdown]
# **Predict:** will the bars of a split add up to its number of records?

# %%
run.show(f02.label_counts, manifest)
test = manifest[manifest["split"] == "test"]
print(f"{len(test)} test records with {test['labels'].map(len).sum()} superclass labels")
print(f"{(test['labels'].map(len) == 0).sum()} of them have a rhythm or form statement only")

# %% [markdown]
# They don't: a record may have two superclasses, or none. For orientation, PTB-XL 1.0.1 has 2,203 records in fold 10,
# of which 2,163 have a superclass (NORM 964, MI 553, STTC 523, CD 498, HYP 263). Version 1.0.3 dropped five of them,
# and its 2,158 are the test set of published comparisons. Two counts that differ by five records may well both be
# right: say the version.
#
# ### Exercise 02.1 · From a cell of statements to superclasses (★☆☆, 10 min)
#
# Write the function that turns a `scp_codes` cell into a tuple of superclasses, in the order of `SUPERCLASSES`.
#
# <details><summary>Hint 1</summary>
#
# `ast.literal_eval(cell)` is a dictionary; its keys are the codes. Does the likelihood matter?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Collect `STATEMENTS[code].superclass` in a set, then walk through `SUPERCLASSES` and keep those in the set.
#
# </details>


# %% tags=["solution"]
def superclasses_of(cell):
    # <solution>
    found = {STATEMENTS[code].superclass for code in ast.literal_eval(cell)}
    return tuple(name for name in SUPERCLASSES if name in found)
    # </solution>


# %%
check("02.1", superclasses_of)

# %% [markdown]
# ## 4. From statements to a report
#
# Contrastive pretraining needs a text beside each ECG. Most of PTB-XL's reports are German, and MiniLM reads English;
# so the manifest holds an English text written from the statements, and keeps the original in `report_original`. The
# same statements are said in different ways from record to record: a text encoder that sees one sentence a thousand
# times learns the sentence, not the finding.

# %%
from ecgchat_lib.datasets.reports import report_from_statements

said = (("IMI", 50.0), ("SR", 0.0), ("PVC", 100.0))
for seed in range(4):
    print(f"{seed}: {report_from_statements(said, heart_rate_bpm=72, seed=seed)}")
print("different texts in the manifest:", manifest["report"].nunique(), "for", len(manifest), "records")

# %% [markdown]
# The likelihood of 50 became a hedge (*possible*, *cannot rule out*). What a report must not do is sound surer than
# its source. What it can't do is bring back what the statements leave out: sizes, places, changes since last time.
#
# ## 5. Split by patient
#
# The original splits MIMIC-IV-ECG by *study*, that is, by recording. Patients come back, and their hearts look the
# same each time; a model can then find the report of a test recording by recognizing the patient. By hand, with a
# training share of 0.8: a patient has two recordings, one of them is drawn for the test. The chance that the other one
# is in training is 0.8. With five recordings, it is the chance that not all four others miss training:

# %%
train_share = 0.8
for k in (1, 2, 5):
    print(f"{k} recordings per patient: {1 - (1 - train_share) ** (k - 1):.4f}")

# %% [markdown]
# Don't take a formula's word for it. The next cell splits recordings at random and counts.


# %%
def leaked(patients, seed):
    """Share of test recordings whose patient also has one in training, splitting recordings at random."""
    patients = np.asarray(patients)
    in_train = np.random.default_rng(seed).random(len(patients)) < train_share
    return float(np.isin(patients[~in_train], patients[in_train]).mean())


simulated = [(k, leaked(np.repeat(np.arange(4000), k), SEED)) for k in (1, 2, 5, 10)]
mean_records = len(manifest) / manifest["patient"].nunique()
here = (mean_records, leaked(manifest["patient"], SEED))
run.show(f02.leak, simulated, here, train_share)

# %% [markdown]
# At MIMIC-IV-ECG's five recordings per patient nearly every test recording has a sibling in training. The cure is to
# draw patients. PTB-XL's folds do that already, and `check_manifest` refuses any manifest that doesn't:

# %%
sides = manifest.groupby("patient")["split"].nunique()
print("patients on more than one side of the folds:", int((sides > 1).sum()), "of", len(sides))
careless = manifest.assign(
    split=np.where(np.random.default_rng(SEED).random(len(manifest)) < train_share, "train", "test")
)
try:
    check_manifest(careless)
except EcgChatError as error:
    print(str(error).partition(" (")[0], "...")

# %% [markdown]
# ### Exercise 02.2 · A split by patient (★★☆, 10 min)
#
# Return a boolean array with one entry per recording: True for *all* recordings of a randomly drawn `share` of the
# patients. Draw with `rng`, a numpy generator.
#
# <details><summary>Hint 1</summary>
#
# What do you draw from: the list of recordings, or the list of different patients?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `unique = sorted(set(patients))`, then `rng.permutation(unique)[:round(share * len(unique))]`.
#
# </details>


# %% tags=["solution"]
def rows_for_test(patients, share, rng):
    # <solution>
    unique = sorted(set(patients))
    drawn = set(rng.permutation(unique)[: round(share * len(unique))])
    return np.array([patient in drawn for patient in patients])
    # </solution>


# %%
check("02.2", rows_for_test)

# %% [markdown]
# Some leaks don't show in patient numbers. The 300 validation records of CPSC2018 are the first 300 of its training
# set over again, under the same names, labels, sexes and ages; PTB-XL 1.0.1 holds five pairs of identical waveforms.
# The signal itself tells: hash the samples, and equal recordings have equal hashes. Here two copies are hidden on
# purpose.

# %%
import hashlib

from ecgchat_lib.datasets.signals import load_signals

signals = load_signals(manifest[:40])
signals[31], signals[17] = signals[4], signals[8]  # two recordings that came in twice
hashes = pd.Series([hashlib.sha256(np.round(signal * 1000).astype("<i2").tobytes()).hexdigest() for signal in signals])
groups = hashes.groupby(hashes).groups
print("identical recordings, by row:", sorted(list(map(int, rows)) for rows in groups.values() if len(rows) > 1))

# %% [markdown]
# ## 6. Clean reports by words
#
# Machine reports are full of abbreviations. The original wrote them out by replacing letters wherever they stand:

# %%
raw = "sinus rhythm. minimal st changes in limb leads. possible old mi, lbbb."
careless = raw
for short, long in {"mi": "myocardial infarction", "lbbb": "left bundle branch block"}.items():
    careless = careless.replace(short, long)
print(careless)

# %% [markdown]
# *Minimal* has become an infarction, and nothing fails: the loss goes down all the same. A word is a run of letters
# between two non-letters, so let a pattern find words and look each of them up.

# %%
import re

from ecgchat_lib.datasets.reports import ABBREVIATIONS, clean_report

by_words = re.sub(r"[a-z]+", lambda word: ABBREVIATIONS.get(word[0], word[0]), raw)
print(by_words)
print(clean_report(raw))
assert clean_report(raw).lower() == by_words.lower()
print(clean_report("sinusrhythmus inferiore ischÄmie 4.46          unbestÄtigter bericht"))

# %% [markdown]
# The library also removes what recorders add, closes gaps, and mends PTB-XL's umlauts; cleaning twice changes nothing.
#
# ### Exercise 02.3 · Abbreviations by words (★★☆, 10 min)
#
# Write `expand(text, abbreviations)`: each abbreviation (keys are lower case) is written out where it stands as a
# whole word, in any case; everything else stays as it is.
#
# <details><summary>Hint 1</summary>
#
# Splitting at spaces isn't enough. What stands right after `mi` in *old mi, lbbb.*?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `re.sub(r"[A-Za-z]+", function, text)` calls `function` with a match; `match[0]` is the word.
#
# </details>


# %% tags=["solution"]
def expand(text, abbreviations):
    # <solution>
    return re.sub(r"[A-Za-z]+", lambda word: abbreviations.get(word[0].lower(), word[0]), text)
    # </solution>


# %%
check("02.3", expand)

# %% [markdown]
# ## 7. Ten real recordings
#
# CPSC2018 comes in another layout: no table, no report, SNOMED CT codes in the header's comments. Its loader gives the
# same columns. Since it names no patients, every recording counts as a patient of its own, and all of it is test.

# %%
sample = load_real_sample()
print(sample[["record", "age", "sex", "snomed", "statements", "labels", "split"]].to_string(index=False))

# %% [markdown]
# One call reads the signals of any manifest: leads by name, millivolts, one rate, one length.

# %%
signals = load_signals(sample, fs=500, seconds=10)
print(signals.shape, signals.dtype)
print("largest voltages, mV:", *(f"{voltage:.1f}" for voltage in np.abs(signals).max(axis=(1, 2))))

# %% [markdown]
# ## Recap
#
# - One manifest per dataset, checked when it is made: `load_ptbxl`, `load_cpsc2018`, `check_manifest`.
# - Likelihood 0 means unknown. Superclasses come from diagnostic statements, whatever their likelihood.
# - Split by patient; look for identical signals too.
# - Report texts vary in wording, keep their hedges, and are cleaned word by word.
#
# **What to copy**: `ecgchat_lib/datasets/manifest.py` (checks and the split by patient),
# `ecgchat_lib/datasets/reports.py` (cleaning), `ecgchat_lib/datasets/synthetic.py` (test data with a known truth).
#
# **Common errors**
#
# - *none of the recordings it names*: PTB-XL's table is there but `records500/` isn't. Unpack it beside the table, or
#   load the labels alone with `require_files=False`.
# - *on 2 sides of the split*: the table was split by recording. Use `split_by_patient`.
# - *SCP code … expected*: another vocabulary (SNOMED CT, AHA) got in. Map it first, as `cpsc2018.py` does.
#
# ## References
#
# - Wagner P, et al. PTB-XL, a large publicly available electrocardiography dataset. Sci Data 7 (2020) 154.
#   [doi:10.1038/s41597-020-0495-6](https://doi.org/10.1038/s41597-020-0495-6). CC BY 4.0; its statement table is
#   shipped here.
# - Gow B, et al. MIMIC-IV-ECG, version 1.0. PhysioNet (2023).
#   [doi:10.13026/4nqg-sb35](https://doi.org/10.13026/4nqg-sb35).
# - Liu F, et al. CPSC2018. J Med Imaging Health Inform 8 (2018) 1368.
#   [doi:10.1166/jmihi.2018.2442](https://doi.org/10.1166/jmihi.2018.2442). CC BY 4.0; ten recordings are shipped here.
# - McSharry P, et al. A dynamical model for generating synthetic electrocardiogram signals. IEEE Trans Biomed Eng 50
#   (2003) 289. [doi:10.1109/TBME.2003.808805](https://doi.org/10.1109/TBME.2003.808805).
# - Zhao Y, et al. ECG-Chat. arXiv 2408.08849 (2024).

# %%
run.finish(
    {
        "records": len(manifest),
        "patients": int(manifest["patient"].nunique()),
        "test_records": len(test),
        "findings": len(FINDINGS),
        "leak_by_recording": round(here[1], 4),
        "texts": int(manifest["report"].nunique()),
    }
)

# %% tags=["parameters"]
PROFILE = "ci"  # which machine the sizes are for: ci|cpu|t4|h100
SEED = 7  # seed of every random draw, 0..2147483647
RECORDS = 240  # synthetic ECGs: two fifths to fit, three to calibrate and to test, 200..100000
STRENGTH = 1.0  # inverse of the penalty in sections 2 to 4, 0.001..100.0

# %% tags=["setup"]
from ecgchat_lib.course import check, start

run = start("09", globals())

# %% [markdown]
# ## 1. Features that stay as they are
#
# A chat model should be told what an ECG shows in words that it can copy. The original gives it such words: a small
# *classifier* reads the frozen encoder, and each label that it finds becomes a sentence in front of the question. It
# calls this the *diagnosis-driven prompt*. The classifier is trained on labels, so it isn't zero-shot, and whatever
# the chat model then says of these labels, it was told.
#
# Frozen means: the encoder's weights don't move, so each ECG is encoded once and is a row of numbers from then on.

# %%
import numpy as np
import torch

from ecgchat_lib.coca.checkpoint import load_mini
from ecgchat_lib.coca.preprocess import front_end
from ecgchat_lib.course.figures import f09
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.evaluate.classifier import all_labels, label_targets, window_features

mini = load_mini()
ecgs = [synthesize(200_000 + 1000 * (SEED % 100) + number) for number in range(RECORDS)]
statements = [one.statements for one in ecgs]
windows = torch.cat([front_end(one.signal[None], mini.config.encoder, fs=one.fs) for one in ecgs])
x = window_features(windows, mini)  # (n, width): the CLS token after the last norm
print("weights that move:", sum(p.requires_grad for p in mini.parameters()), " features of an ECG:", x.shape[1])

# %% [markdown]
# The ECGs are dealt into three heaps, and each has one job: the first *fits* the lines, the second *calibrates* them
# and sets thresholds, the third is only reported. A label with too few ECGs in a heap is left out, and named.

# %%
cut = [0, RECORDS * 2 // 5, RECORDS * 7 // 10, RECORDS]
fit, val, test = (slice(cut[heap], cut[heap + 1]) for heap in range(3))
every = all_labels()
y_all = label_targets(every, statements)  # (n, labels), true or false
enough = [k for k in range(len(every)) if min(y_all[part, k].sum() for part in (fit, val, test)) >= 5]
labels, y = [every[k] for k in enough], y_all[:, enough]
print(f"{len(every)} labels, {len(labels)} with at least five ECGs in each heap")
left = [label.text for k, label in enumerate(every) if k not in enough]
print("left out, among others:", "; ".join(left[-4:]))

# %% [markdown]
# ## 2. One line per label
#
# Four ECGs, one feature. The probability is $p = 1 / (1 + e^{-(wx + b)})$; the *log loss* of a record is
# $-\ln p$ if it has the label and $-\ln(1 - p)$ if not. Its slope in $w$ is $(p - y)\,x$: how wrong, times the
# feature.

# %%
feature, has_it = np.array([-1.0, 0.0, 1.0, 2.0]), np.array([0, 0, 1, 1])
w, b = 0.5, 0.0
p = 1 / (1 + np.exp(-(w * feature + b)))
print("p:        ", p.round(3))
print("log loss: ", (-np.where(has_it, np.log(p), np.log(1 - p))).round(3))
print("slope in w:", ((p - has_it) * feature).sum().round(3), " slope in b:", (p - has_it).sum().round(3))

# %% [markdown]
# With many features the line would learn each record by heart. A *penalty* on the weights holds it back:
# $\tfrac12 \lVert w \rVert^2 + C \sum \text{log loss}$, where $C$ is `STRENGTH`. The function has one lowest point, so
# walking downhill gets there. The step's length follows from how much the function bends at most.
#
# **Predict:** will the walk end where scikit-learn's solver does?

# %%
from sklearn.linear_model import LogisticRegression

x = x.astype(float)  # in single precision the solver would stop early
z = (x - x[fit].mean(axis=0)) / x[fit].std(axis=0)  # each feature to mean 0 and deviation 1, by the first heap
k = next(k for k, label in enumerate(labels) if (label.level, label.code) == ("super", "CD"))


def descend(z, y, strength, steps):
    """Walk downhill from zero, each step with some of the last one's swing; the bias is the last number."""
    inputs = np.column_stack([z, np.ones(len(z))]).astype(float)
    bend = 1 + strength / 4 * np.linalg.norm(inputs, 2) ** 2  # the log loss bends at most a quarter
    swing = (bend**0.5 - 1) / (bend**0.5 + 1)
    here = ahead = np.zeros(inputs.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-inputs @ ahead))
        slope = ahead * (np.arange(len(ahead)) < z.shape[1]) + strength * (p - y) @ inputs
        before, here = here, ahead - slope / bend
        ahead = here + swing * (here - before)
    return here


mine = descend(z[fit], y[fit, k], STRENGTH, 2000)
theirs = LogisticRegression(C=STRENGTH, tol=1e-8, max_iter=5000).fit(z[fit], y[fit, k])
far = max(np.abs(mine[:-1] - theirs.coef_[0]).max(), abs(mine[-1] - theirs.intercept_[0]))
print("by hand equals scikit-learn's:", bool(far < 1e-3))

# %% [markdown]
# The library fits one such line per label, and keeps the mean and the deviation of the features with it, since a line
# means nothing without them.

# %%
from ecgchat_lib.evaluate.calibration import probability
from ecgchat_lib.evaluate.classifier import fit_heads

heads = fit_heads(x[fit], y[fit], strength=STRENGTH)
print("the library's line is the same:", np.allclose(heads.log_odds(x)[:, k], z @ mine[:-1] + mine[-1], atol=1e-2))
print("numbers in all:", sum(getattr(heads, name).size for name in ("middle", "spread", "weight", "bias")))

# %% [markdown]
# ## 3. Is thirty percent thirty percent?
#
# The line gives a number between 0 and 1. Is it a probability? Take all predictions of about 0.3: the label should be
# there in three of ten. Sort the predictions into bins and compare, in each bin, the mean of what was *said* with the
# share that was *found*. The *expected calibration error* is the mean distance, weighted by the bins' counts; *Brier's
# score* is the mean squared distance from 0 or 1. By hand, five predictions in two bins:

# %%
from ecgchat_lib.evaluate.calibration import brier, calibration_error, reliability

said_five, found_five = np.array([0.1, 0.2, 0.3, 0.8, 0.9]), np.array([0, 0, 1, 1, 1])
low, high = said_five < 0.5, said_five >= 0.5
distances = [abs(said_five[part].mean() - found_five[part].mean()) for part in (low, high)]
print("distances:", np.round(distances, 4), " weighted:", round(3 / 5 * distances[0] + 2 / 5 * distances[1], 4))
print("library:  ", round(calibration_error(found_five, said_five, bins=2), 4))
print("Brier:    ", round(brier(found_five, said_five), 4))

# %% [markdown]
# A line that was fitted on few records with many features is too sure of itself: on the first heap it separates almost
# everything, on new records it doesn't. *Platt's* remedy: another logistic regression, with the log-odds as its only
# feature, on records that weren't fitted. Two numbers, a slope and an intercept. Ours equals scikit-learn's:

# %%
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from ecgchat_lib.evaluate.calibration import platt, shrunk_platt

odds = heads.log_odds(x)
slope, intercept = platt(odds[val, k], y[val, k])
frozen = FrozenEstimator(theirs)
reference = CalibratedClassifierCV(frozen, method="sigmoid").fit(z[val], y[val, k]).predict_proba(z[test])[:, 1]
own = probability(slope * odds[test, k] + intercept)
print("equals scikit-learn's:", np.allclose(own, reference, atol=1e-3), " slope below 1, so less sure:", slope < 1)

# %% [markdown]
# For a rare label the second heap holds a handful of positives, and two numbers from a handful are worth little. The
# library therefore pulls them toward "leave it as it is" (slope 1, intercept 0), as strongly as a few records would:
# `shrunk_platt`. With many records the pull doesn't matter.

# %%
pairs = [shrunk_platt(odds[val, k], y[val, k], pull=pull) for pull in (1.0, 10.0, 100.0, 1e6)]
away = [float(np.hypot(one - 1, two)) for one, two in pairs]  # how far from (1, 0)
print("the harder the pull, the nearer to (1, 0):", away == sorted(away, reverse=True))
print("at the hardest it stays as it was:", round(away[-1], 2) == 0)

# %%
from ecgchat_lib.evaluate.classifier import calibrate_heads

calibrated = calibrate_heads(heads, x[val], y[val])
chances = {"before": probability(odds), "after": calibrated.probabilities(x)}
curves = {name: reliability(y[test], p[test]) for name, p in chances.items()}
errors = {name: calibration_error(y[test], p[test]) for name, p in chances.items()}
run.show(f09.calibration, curves, errors, {"seed": SEED, "records": RECORDS, "strength": STRENGTH})
scores = {name: brier(y[test], p[test]) for name, p in chances.items()}
print("calibration lowers the error:", errors["after"] < errors["before"])
print("and Brier's score:           ", scores["after"] < scores["before"])

# %% [markdown]
# Calibration changes no order: within a label, who scored higher still scores higher, and the AUC stays. It changes
# what the number may be used for.
#
# **Predict:** the records came with a frequency of each label. What happens to the probabilities in a clinic where a
# finding is ten times as rare?
#
# <details><summary>Answer</summary>They are too high: the intercept holds the frequency of the records it was fitted
# on. It has to be fitted again there, or shifted by the logarithm of the ratio of the odds.</details>
#
# ## 4. Thresholds, and whose exam it is
#
# A sentence is said or not, so each label needs a threshold. It maximizes F1 on the *second* heap. The original chose
# it on the test records, which is grading one's own exam. How much does that give? Ask scores that know nothing:

# %%
from ecgchat_lib.evaluate.calibration import best_threshold, f1_score

noise = run.rng.random(y.shape)
honest, oracle = [], []
for column in range(y.shape[1]):
    chosen = best_threshold(y[val, column], noise[val, column])
    honest.append(f1_score(y[test, column], noise[test, column] >= chosen))
    peeked = best_threshold(y[test, column], noise[test, column])
    oracle.append(f1_score(y[test, column], noise[test, column] >= peeked))
print(f"random scores, macro-F1: threshold from validation {np.mean(honest):.4f}, from the test records", end=" ")
print(f"{np.mean(oracle):.4f}")

# %% [markdown]
# Now the classifier. For calibrated probabilities theory adds something: the best threshold for F1 is half of the best
# F1, so never above one half. Where a handful of records says otherwise, the library takes one half.

# %%
p = chances["after"]
rows = []
for column, label in enumerate(labels):
    if label.level == "statement":
        truth, scored = y[test, column], p[test, column]
        frank = f1_score(truth, scored >= float(calibrated.threshold[column]))
        rows.append((label.code, int(truth.sum()), frank, f1_score(truth, scored >= best_threshold(truth, scored))))
run.show(f09.thresholds, rows, {"seed": SEED, "records": RECORDS, "strength": STRENGTH})
gain = np.mean([best - frank for _, _, frank, best in rows])
print("the peeked thresholds promise more:", gain > 0, " never less:", all(best >= frank for _, _, frank, best in rows))
print("no threshold above one half:", bool((calibrated.threshold <= 0.5).all()))

# %% [markdown]
# ### Recorded on real ECGs
#
# The classifier that the course ships was fitted on PTB-XL's folds 1–8; one half of fold 9 calibrated it and set the
# thresholds, the other half is reported here. The recipe is `ecgchat_lib/evaluate/classifier_recipe.py`.

# %%
import json

from ecgchat_lib.paths import data_folder

recorded = json.loads((data_folder() / "results" / "ecg-classifier-mini.json").read_text(encoding="utf-8"))
levels = recorded["metrics"]["levels"]
for level, one in levels.items():
    auc, f1 = one["macro_auc"], one["macro_f1"]
    print(f"{level:9} {one['labels']:2} labels  AUC {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]", end="  ")
    print(f"F1 {f1['value']:.3f} [{f1['low']:.3f}, {f1['high']:.3f}], had one peeked:", end=" ")
    print(f"{one['macro_f1_thresholds_from_these_records']:.3f}")
for level, one in levels.items():
    shown = [f"{one[name]['calibration_error']['value']:.3f}" for name in ("before", "after")]
    print(f"{level:9} calibration error before {shown[0]}, after {shown[1]}")

# %%
run.show(f09.recorded, recorded)
left = recorded["about"]["left_out"]
print(len(left), "labels were left out. One of them:", *next(iter(left.items())), sep=" ")

# %% [markdown]
# Where labels are rare, a peeked threshold promises most: with three positive records there is nearly always one that
# suits them. And where the line wasn't too sure before, calibration has little to mend, and may cost a bit.
#
# ## 5. A classifier that knows what it belongs to
#
# Weights alone are dangerous: with another order of labels, another encoder or another filter in front they still give
# numbers, wrong ones. So the folder holds the weights (safetensors, no pickle) *and* a manifest: the labels in order,
# the preprocessing, the sha256 of the encoder and of the weights.

# %%
from ecgchat_lib.evaluate.classifier import encoder_digest, fit_classifier, load_classifier, save_classifier

parts = [(windows[part], statements[part]) for part in (fit, val)]
classifier = fit_classifier(mini, *parts, strength=STRENGTH, least_train=8, least_validation=4)
made_from = {"records": RECORDS, "strength": STRENGTH, "encoder": encoder_digest(mini)}
folder = run.artefact("classifier", lambda path: save_classifier(classifier, path), **made_from)
manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
print("manifest:", ", ".join(manifest))
print("preprocessing:", ", ".join(manifest["front_end"]))
again = load_classifier(folder, mini)
print("loaded gives the same:", np.array_equal(again.heads.probabilities(x), classifier.heads.probabilities(x)))

# %% [markdown]
# **Predict:** three mishaps. An encoder of the same shape with other weights; one byte of the file changed; a label
# renamed in the manifest. Which of them would numbers alone show?

# %%
import re
import shutil

from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.errors import EcgChatError


def mishap(change, model=mini):
    """Load a copy of the folder after a change, and print why it is refused."""
    copy = folder.with_name("classifier_copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    change(copy)
    try:
        load_classifier(copy, model)
        print("loaded")
    except EcgChatError as error:
        print("refused:", re.sub("[0-9a-f]{12}", "", str(error).split(": ", 1)[1]))
    shutil.rmtree(copy)


weights = "classifier.safetensors"
stranger = EcgCoca(mini.config, mini.tokenizer.vocabulary, mini.report_encoder).eval()
mishap(lambda copy: None, stranger)
mishap(lambda copy: (copy / weights).write_bytes((copy / weights).read_bytes()[:-1] + b"!"))
text = (folder / "manifest.json").read_text(encoding="utf-8")
mishap(lambda copy: (copy / "manifest.json").write_text(text.replace('"NORM"', '"FINE"'), encoding="utf-8"))

# %% [markdown]
# ## 6. The diagnosis-driven prompt
#
# Statements have kinds: Disease (diagnostic), Form and Rhythm. Of the first two, each statement at or above its
# threshold is said. A heart has one rhythm at a time, so of the rhythms the likeliest one is said, always and alone.
# Each becomes the original's sentence, "The {label} is present." Here is the shipped classifier on real recordings of
# another hospital:

# %%
from ecgchat_lib.datasets.cpsc2018 import load_real_sample
from ecgchat_lib.ecg.recording import read_recording

shipped = load_classifier()
sample = load_real_sample()
recordings = [read_recording(path) for path in sample["path"]]
readings = shipped.predict(recordings)
for name, row, reading in list(zip(sample["record"], sample["statements"], readings, strict=True))[:3]:
    print(f"--- {name}, labeled {row[0][0]}\n{reading.prompt()}")

# %%
from ecgchat_lib.datasets.labels import codes_of_kind

rhythms = set(codes_of_kind("rhythm"))
for name, row, reading in zip(sample["record"], sample["statements"], readings, strict=True):
    said = [code for code in reading.present if code in rhythms]
    print(f"{name}  labeled {row[0][0]:6} rhythm said: {', '.join(said)}")

# %% [markdown]
# These sentences are all that a chat model learns of what the classifier saw: a false one leads it astray as surely as
# a true one helps. That is why they are calibrated and thresholded on records that nothing else used, and why a report
# must say that they come from a classifier. From the command line the same probabilities are
# `ecgchat classify RECORD --labels rhythm --how probe`; without `--how probe` the scores are zero-shot.
#
# ## Exercises
#
# ### Exercise 09.1 The gradient of a logistic regression (★★☆, 15 min)
#
# Write `my_gradient(weight, bias, x, y, strength)`: the gradient of half the squared weight plus `strength` times the
# *sum* of the log losses. `x` is (n, width), `y` holds 0 and 1. Return width + 1 numbers, the bias's last. The bias
# isn't penalized.
#
# <details><summary>Hint 1</summary>The slope of one log loss in the log-odds is <code>p - y</code>.</details>
# <details><summary>Hint 2</summary><code>(p - y) @ x</code> sums it over the records; the penalty adds
# <code>weight</code>.</details>


# %% tags=["solution"]
def my_gradient(weight, bias, x, y, strength):
    # <solution>
    miss = 1 / (1 + np.exp(-(x @ weight + bias))) - y
    return np.append(weight + strength * miss @ x, strength * miss.sum())
    # </solution>


# %%
check("09.1", my_gradient)

# %% [markdown]
# ### Exercise 09.2 The calibration error (★★☆, 15 min)
#
# Write `my_error(labels, probabilities)`: ten bins of equal width from 0 to 1; in each bin that holds a prediction, the
# distance between the mean probability and the share of positives; return the mean of these distances, weighted by the
# bins' counts. No probability lies exactly on an edge.
#
# <details><summary>Hint 1</summary><code>place = (probabilities * 10).astype(int)</code> is the bin of each
# prediction.</details>
# <details><summary>Hint 2</summary>For each value of <code>place</code>: <code>abs(mean - mean) * count</code>, summed,
# over n.</details>


# %% tags=["solution"]
def my_error(labels, probabilities):
    # <solution>
    place = (probabilities * 10).astype(int)
    total = 0.0
    for one in set(place):
        inside = place == one
        total += abs(probabilities[inside].mean() - labels[inside].mean()) * inside.sum()
    return total / len(labels)
    # </solution>


# %%
check("09.2", my_error)

# %% [markdown]
# ### Exercise 09.3 What is said (★☆☆, 10 min)
#
# Write `my_said(probabilities, thresholds, rhythms)`: `probabilities` is (n, labels), `thresholds` one per label,
# `rhythms` the columns that are rhythms. Return (n, labels) booleans: a label is said at or above its threshold; of the
# rhythms only the likeliest is said, whatever its threshold.
#
# <details><summary>Hint 1</summary>Begin with <code>probabilities &gt;= thresholds</code>, then set the rhythms'
# columns to False.</details>
# <details><summary>Hint 2</summary><code>probabilities[:, rhythms].argmax(axis=1)</code> is a place in
# <code>rhythms</code>, not a column.</details>


# %% tags=["solution"]
def my_said(probabilities, thresholds, rhythms):
    # <solution>
    said = probabilities >= thresholds
    said[:, rhythms] = False
    for row, best in enumerate(probabilities[:, rhythms].argmax(axis=1)):
        said[row, rhythms[best]] = True
    return said
    # </solution>


# %%
check("09.3", my_said)

# %% [markdown]
# ## Recap
#
# - One logistic regression per label on frozen features; by hand it ends where scikit-learn's does (exercise 09.1).
# - A reliability curve and its error, on records that fitted nothing (exercise 09.2).
# - Thresholds come from validation; random scores show what peeking claims (section 4).
# - Labels, preprocessing and hashes lie beside the weights, and a wrong encoder is refused (section 5).
# - The prompt says statements above their thresholds, and one rhythm (exercise 09.3).
#
# **What to copy.** `ecgchat_lib/evaluate/calibration.py` needs numpy, scipy and scikit-learn only; `classifier.py`
# shows how to tie weights to what they were made with.
#
# **Common errors**
#
# - *Calibrating on the training records.* There the line is never wrong; nothing is left to mend.
# - *Calling a score a probability.* Cosines to prompts order recordings; 0.3 among them means nothing.
# - *A threshold for each of seventy labels from a hundred records.* Most labels have no positive there. Leave them out.
# - *Reporting the classifier's labels as the chat model's finding.* It was told.
#
# ## References
#
# - Platt 1999, Probabilistic outputs for support vector machines, in Advances in Large Margin Classifiers, MIT Press.
# - Guo et al. 2017, On calibration of modern neural networks, [arXiv 1706.04599](https://arxiv.org/abs/1706.04599).
# - Brier 1950, Verification of forecasts expressed in terms of probability, Monthly Weather Review 78, 1–3.
# - Lipton et al. 2014, Thresholding classifiers to maximize F1 score,
#   [arXiv 1402.1892](https://arxiv.org/abs/1402.1892).
# - Zhao et al. 2024, ECG-Chat (the diagnosis-driven prompt), [arXiv 2408.08849](https://arxiv.org/abs/2408.08849).
# - Data: PTB-XL, Wagner et al. 2020, [doi:10.1038/s41597-020-0495-6](https://doi.org/10.1038/s41597-020-0495-6),
#   CC BY 4.0; CPSC2018, Liu et al. 2018, [doi:10.1166/jmihi.2018.2442](https://doi.org/10.1166/jmihi.2018.2442),
#   CC BY 4.0.

# %%
run.finish(
    {
        "labels": len(labels),
        "by_hand_equals_scikit_learn": bool(far < 1e-3),
        "calibration_error": errors,
        "brier": scores,
        "macro_f1": {
            "honest": float(np.mean([row[2] for row in rows])),
            "peeked": float(np.mean([r[3] for r in rows])),
        },
        "random_scores_macro_f1": {"honest": float(np.mean(honest)), "peeked": float(np.mean(oracle))},
    }
)

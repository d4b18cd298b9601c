# %% tags=["parameters"]
PROFILE = "ci"  # which machine the sizes are for: ci|cpu|t4|h100
SEED = 7  # seed of every random draw, 0..2147483647
RECORDS = 160  # synthetic ECGs to train on, 40..1000000
HELD_OUT = 48  # synthetic ECGs that are never trained on, 16..100000
STEPS = 60  # optimizer steps, 20..1000000
BATCH = 24  # pairs per step, 4..4096
WIDTH = 64  # width of the encoder's tokens, 16..1024
LAYERS = 2  # transformer blocks of the encoder, 1..48

# %% tags=["setup"]
from ecgchat_lib.course import check, start

run = start("07", globals())

# %% [markdown]
# ## 1. Pairs
#
# Pretraining needs pairs of an ECG and a report. This notebook trains a very small model on synthetic ECGs, live, in
# seconds. It shows how training works; how *good* training gets is shown by the shipped mini model in section 6 and
# measured in notebook 08.
#
# Each record gets several wordings of its report, since a model that reads each sentence once per round soon knows
# them by heart.

# %%
import numpy as np

from ecgchat_lib.coca.config import CaptionDecoderConfig, EcgCocaConfig, EcgEncoderConfig
from ecgchat_lib.coca.preprocess import front_end
from ecgchat_lib.datasets.reports import report_from_statements
from ecgchat_lib.datasets.synthetic import synthesize

encoder_config = EcgEncoderConfig(
    width=WIDTH, layers=LAYERS, heads=4, stem_channels=16, embedding=64, patch_dropout=0.5
)
ecgs = [synthesize(1000 * SEED + number) for number in range(RECORDS + HELD_OUT)]
windows = front_end(np.stack([ecg.signal for ecg in ecgs]), encoder_config)
texts = [[report_from_statements(ecg.statements, seed=wording) for wording in (0, 1)] for ecg in ecgs]
print("windows:", tuple(windows.shape), " two wordings of the first report:", *texts[0], sep="\n  ")

# %% [markdown]
# The held-out records come from other seeds, so they are other "patients". A record that has a sibling in the training
# set would be no test.
#
# `PairedEcgs` encodes each distinct text once (the report encoder is frozen, so that is enough) and hands out batches.

# %%
import torch

from ecgchat_lib.coca.model import EcgCoca, count_parameters
from ecgchat_lib.coca.text import ReportEncoder, build_vocabulary
from ecgchat_lib.coca.train import PairedEcgs

vocabulary = build_vocabulary(text for wordings in texts for text in wordings)
decoder_config = CaptionDecoderConfig(vocabulary=len(vocabulary), context=47, layers=1, heads=4)
report_encoder = ReportEncoder()


def new_model():
    """Return an untrained model; the same one for the same seed."""
    torch.manual_seed(SEED)
    return EcgCoca(EcgCocaConfig(encoder_config, decoder_config), vocabulary, report_encoder)


model = new_model()
codes = [frozenset(code for code, _ in ecg.statements) for ecg in ecgs]  # what each report says
pairs = PairedEcgs(windows[:RECORDS], texts[:RECORDS], model, codes[:RECORDS])
print(f"{len(pairs)} records, {len(vocabulary)} word pieces, {count_parameters(model):,} parameters")

# %% [markdown]
# ## 2. One step, and then a loop
#
# A step draws a batch, computes both losses and their gradients, and moves the weights a little against them. Around
# that are four habits, each there for a reason:
#
# - **Warm-up and cosine.** At first the gradients point anywhere, so the learning rate starts small; at the end it goes
#   to 0, so that the weights settle.
# - **Weight decay on matrices only.** Decay shrinks what isn't needed. A norm's gain, a bias or the temperature isn't a
#   matrix and would only be pulled to a wrong value.
# - **Clipping.** One odd batch must not throw the weights far away.
# - **Own randomness per step.** What step 17 draws depends on the seed and on 17, and on nothing that happened before.

# %%
from ecgchat_lib.coca.train import TrainConfig, learning_rate
from ecgchat_lib.course.figures import f07

config = TrainConfig(
    steps=STEPS,
    batch=BATCH,
    learning_rate=3e-3,
    warmup=STEPS // 6,
    clip=1.0,
    share_targets=True,
    seed=SEED,
    evaluate_every=max(1, STEPS // 6),
    save_every=max(1, STEPS // 4),
)
run.show(f07.learning_rates, [learning_rate(step, config) for step in range(STEPS)], config)

# %% [markdown]
# Here is the whole loop, by hand, for three steps. After it, the library's `train_coca` does the same three steps on a
# fresh model, and the weights are compared.

# %%
from ecgchat_lib.coca.losses import caption_loss, contrastive_loss, shared_targets
from ecgchat_lib.coca.train import build_optimizer, step_randomness, train_coca

by_hand = new_model().train()
optimizer = build_optimizer(by_hand, config)
for step in range(3):
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = learning_rate(step, config)
    with step_randomness(SEED, step) as generator:  # also what patch dropout draws
        batch = pairs.draw(BATCH, generator)
        out = by_hand(batch.ecg, batch.vectors, batch.pieces)
    contrastive = contrastive_loss(out.ecg, out.text, out.scale, shared_targets(batch.keys))
    loss = 1.0 * contrastive + 2.0 * caption_loss(out.logits, out.labels)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(by_hand.parameters(), config.clip)
    optimizer.step()
    by_hand.clamp_temperature()

library = new_model()
train_coca(library, pairs, config, until=3)
for name, value in by_hand.state_dict().items():
    torch.testing.assert_close(value, library.state_dict()[name], rtol=1e-4, atol=1e-5)
print("three steps by hand equal the library's, in all", len(by_hand.state_dict()), "tensors")

# %% [markdown]
# ## 3. Both losses fall
#
# Now the whole run, with a look at the held-out records every few steps. Augmentation (notebook 04) changes each batch
# on its way: here a shift in time, gaps, and missing leads.
#
# **Predict:** the caption loss begins near the logarithm of the number of word pieces, the contrastive loss near the
# logarithm of the batch size. Which of the two falls first, and why?

# %%
from ecgchat_lib.augment import Augment

augment = Augment(
    encoder_config.fs, scale=0, shift=0.5, baseline_wander=0, powerline=0, muscle_noise=0, mask_time=0.5, mask_leads=0.3
)
held_out = PairedEcgs(windows[RECORDS:], texts[RECORDS:], model, codes[RECORDS:])
size = min(BATCH, HELD_OUT)
watched = {"contrastive": [], "caption": []}


@torch.inference_mode()
def validate(candidate):
    """Note the losses on one fixed held-out batch; return minus their weighted sum, since higher is better."""
    batch = held_out.draw(size, torch.Generator().manual_seed(0))
    out = candidate(batch.ecg, batch.vectors, batch.pieces)
    watched["contrastive"].append(contrastive_loss(out.ecg, out.text, out.scale, shared_targets(batch.keys)).item())
    watched["caption"].append(caption_loss(out.logits, out.labels).item())
    return -watched["contrastive"][-1] - 2 * watched["caption"][-1]


result = train_coca(model, pairs, config, augment=augment, validate=validate)
ends = {}
for name in ("contrastive", "caption"):
    values = [step[name] for step in result.history]
    ends[name] = (np.mean(values[:5]), np.mean(values[-5:]))
    print(f"{name:11} loss, first to last five steps, fell:", bool(ends[name][1] < ends[name][0]))
run.show(f07.losses, result.history, watched, config)

# %% [markdown]
# The caption loss falls first: which words follow which can be learned without any look at an ECG. The contrastive
# loss needs the ECG from the beginning.
#
# ## 4. Learning or memorizing?
#
# The dots in the picture are held-out records. As long as they fall with the line, the model learns something that
# holds for others. Where the line falls on and the dots turn up, it has begun to learn its training records by heart.
# The weights worth keeping are those before that, so `train_coca` keeps the weights of the best validation, not of the
# last step.
#
# With little real data this comes fast: the training loss still falls when the zero-shot result on held-out patients
# is on its way down. More wordings, augmentation, patch dropout, an average of the weights, and synthetic data push
# that point out. None abolishes it.
#
# The loss of a batch says little about use. Can the held-out ECGs find their reports?

# %%
from ecgchat_lib.coca.embed import embed_texts, embed_windows
from ecgchat_lib.evaluate.retrieval import chance_recall, recall_at

first_wordings = [wordings[0] for wordings in texts[RECORDS:]]
cosines = (embed_windows(windows[RECORDS:], model) @ embed_texts(first_wordings, model).T).numpy()
recall = recall_at(cosines, 5, codes[RECORDS:])["ecg_to_report"][5]
floor = chance_recall(codes[RECORDS:], 5)
print(f"recall at 5 by chance: {floor:.2f} (many reports say the same)")
print("the model is above chance:", recall > floor)

# %% [markdown]
# ## 5. Killed, and resumed
#
# A Colab session ends when it likes. So the state goes to disk every few steps: weights, both memories of AdamW, the
# step, and the history, in one file that is written whole or not at all. Because each step draws its own randomness, a
# resumed run doesn't just go on; it ends in *the same weights*.

# %%
import tempfile
from dataclasses import replace
from pathlib import Path

short = replace(config, steps=8, warmup=2, save_every=2)
whole, killed, resumed = new_model(), new_model(), new_model()
train_coca(whole, pairs, short, augment=augment)
with tempfile.TemporaryDirectory() as place:
    train_coca(killed, pairs, short, augment=augment, folder=Path(place), until=5)  # as if the machine went away
    train_coca(resumed, pairs, short, augment=augment, folder=Path(place))
    same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    print("bit by bit the same as the run that was never killed:", same)
    try:
        train_coca(new_model(), pairs, replace(short, learning_rate=1.0), folder=Path(place))
    except Exception as error:
        print(type(error).__name__ + ": …" + str(error).split("safetensors:")[1])

# %% [markdown]
# ### A checkpoint that can be trusted
#
# What is kept in the end is a folder: weights as safetensors (numbers and names only; loading them runs no code), the
# config, the vocabulary, and a manifest with the sha256 of each. A changed byte is an error, not a slightly different
# model.

# %%
from ecgchat_lib.coca.checkpoint import load_coca, save_coca

folder = run.artefact(
    "coca", lambda path: save_coca(model, path), steps=STEPS, records=RECORDS, batch=BATCH, width=WIDTH
)
print(sorted(path.name for path in folder.iterdir()))
again = load_coca(folder, report_encoder=report_encoder)
print(
    "reloaded, equal in every weight:",
    all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)),
)

# %%
with tempfile.TemporaryDirectory() as place:
    harmed = save_coca(model, Path(place) / "harmed")
    content = bytearray((harmed / "model.safetensors").read_bytes())
    content[-1] ^= 1  # one bit
    (harmed / "model.safetensors").write_bytes(content)
    try:
        load_coca(harmed)
    except Exception as error:
        print(f"{type(error).__name__}: the file was changed or cut off:", "changed or cut off" in str(error))

# %% [markdown]
# ## 6. The mini model
#
# The same functions trained the mini model that the course ships, on real recordings of PTB-XL (folds 1 to 8) and
# synthetic ones. The recipe is one file, `ecgchat_lib/evaluate/mini_recipe.py`. The picture is its recorded run.

# %%
import json

from ecgchat_lib.paths import data_folder

recorded = json.loads((data_folder() / "results" / "ecg-coca-mini.json").read_text(encoding="utf-8"))
for name, value in recorded["data"].items():
    print(f"{name:16} {value:6,}")
print(f"parameters {recorded['parameters']['all']:,}; kept: step {recorded['chosen']['step']}")
run.show(f07.mini_run, recorded)

# %% [markdown]
# Half of fold 9 chose the step; the other half, other patients, gives the results of notebook 08. A figure from the
# half that chose would be too good.
#
# ### At full scale
#
# | | here | mini | paper |
# | --- | --- | --- | --- |
# | pairs | a few hundred, synthetic | some thousand, real and synthetic | about 800 thousand, real |
# | encoder | 0.1 M parameters | 1.9 M | 86 M |
# | steps × batch | 60 × 24 | 800 × 64 | 20 epochs × 768 or 1,024 |
# | text encoder | MiniLM, frozen | MiniLM, frozen | MedCPT, last layers trained |
# | learning rate, clipping | 3e-3, 1.0 | 1e-3, 1.0 | 1e-4, 0.5 |
#
# The loop is the same. On more than one GPU, the embeddings of all GPUs have to meet in one contrastive loss, since its
# difficulty grows with the number of reports to choose from.
#
# ## Exercises
#
# ### Exercise 07.1 The learning rate's course (★☆☆, 10 min)
#
# Write `rate(step, steps, warmup, highest)` for steps 0, 1, …: linear warm-up that reaches `highest` at step `warmup` −
# 1, then half a cosine from `highest` at step `warmup` to 0 at step `steps`.
#
# <details><summary>Hint 1</summary>In the warm-up: <code>highest * (step + 1) / warmup</code>.</details>
# <details><summary>Hint 2</summary>After it, <code>progress</code> goes from 0 to 1 over the <em>remaining</em> steps;
# <code>(1 + cos(π · progress)) / 2</code> goes from 1 to 0.</details>

# %% tags=["solution"]
import math


def rate(step, steps, warmup, highest):
    # <solution>
    if step < warmup:
        return highest * (step + 1) / warmup
    progress = (step - warmup) / (steps - warmup)
    return highest * (1 + math.cos(math.pi * progress)) / 2
    # </solution>


# %%
check("07.1", rate)

# %% [markdown]
# ### Exercise 07.2 Randomness that survives a kill (★★☆, 15 min)
#
# Write `rows_of_step(seed, step, records, size)`: `size` *different* row numbers below `records`, as a list. The same
# seed and step must give the same rows, whatever was drawn before; another step must give others.
#
# <details><summary>Hint 1</summary><code>np.random.default_rng([seed, step])</code> is a generator of its
# own.</details>
# <details><summary>Hint 2</summary><code>generator.choice(…, replace=False)</code>, or the beginning of a
# <code>permutation</code>.</details>


# %% tags=["solution"]
def rows_of_step(seed, step, records, size):
    # <solution>
    return np.random.default_rng([seed, step]).permutation(records)[:size].tolist()
    # </solution>


# %%
check("07.2", rows_of_step)

# %% [markdown]
# ## Recap
#
# - A training step is a batch, two losses, a clipped gradient and a learning rate that rises and falls (exercise 07.1).
# - With own randomness per step, a resumed run equals an uninterrupted one, bit by bit (exercise 07.2).
# - Held-out patients tell learning from memorizing; keep the best step, and report on records that chose nothing
#   (section 4).
#
# **What to copy.** `ecgchat_lib/coca/train.py` for a loop that resumes exactly, in plain PyTorch;
# `coca/checkpoint.py` for a checkpoint with hashes.
#
# **Common errors**
#
# - *The loss is NaN.* `train_coca` stops and names the step. Look for windows with NaN, then lower the learning rate.
# - *Resumed, but the loss jumps.* The optimizer's memory wasn't saved, or the warm-up began anew.
# - *A wonderful validation.* Is a patient on both sides? Split by patient (notebook 02).
# - *Out of memory.* Halve the batch first: but the contrastive loss of a small batch is an easier question, so don't
#   compare losses across batch sizes.
#
# ## References
#
# - Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization,
#   [arXiv 1711.05101](https://arxiv.org/abs/1711.05101).
# - Loshchilov and Hutter 2017, SGDR (the cosine), [arXiv 1608.03983](https://arxiv.org/abs/1608.03983).
# - Yu et al. 2022, CoCa, [arXiv 2205.01917](https://arxiv.org/abs/2205.01917).
# - PTB-XL, Wagner et al. 2020, [doi:10.1038/s41597-020-0495-6](https://doi.org/10.1038/s41597-020-0495-6), CC BY 4.0.
# - Zhao et al. 2024, ECG-Chat, [arXiv 2408.08849](https://arxiv.org/abs/2408.08849).

# %%
run.finish(
    {
        "contrastive_first_last": [float(value) for value in ends["contrastive"]],
        "caption_first_last": [float(value) for value in ends["caption"]],
        "held_out_recall_at_5": recall,
        "chance_recall_at_5": floor,
        "resumed_equals_whole": same,
    }
)

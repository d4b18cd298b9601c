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
from ecgchat_lib.coca.objective import Objective
from ecgchat_lib.coca.train import TrainConfig, learning_rate
from ecgchat_lib.course.figures import f07

config = TrainConfig(
    steps=STEPS,
    batch=BATCH,
    learning_rate=3e-3,
    warmup=STEPS // 6,
    clip=1.0,
    objective=Objective(contrastive=1.0, caption=2.0, share_targets=True),
    seed=SEED,
    evaluate_every=max(1, STEPS // 6),
    save_every=max(1, STEPS // 4),
)
run.show(f07.learning_rates, [learning_rate(step, config) for step in range(STEPS)], config)

# %% [markdown]
# Here is the whole loop, by hand, for three steps. After it, the library's `train_coca` does the same three steps on a
# fresh model; the losses and the weights are compared.

# %%
from ecgchat_lib.coca.losses import caption_loss, contrastive_loss, shared_targets
from ecgchat_lib.coca.train import build_optimizer, step_randomness, train_coca
from ecgchat_lib.coca.workers import Workers, join_workers

device = join_workers().device  # where train_coca computes: a GPU if there is one
by_hand, losses = new_model().to(device).train(), []
optimizer = build_optimizer(by_hand, config)
for step in range(3):
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = learning_rate(step, config)
    with step_randomness(SEED, step) as generator:  # also what patch dropout draws
        batch = pairs.draw(BATCH, generator).to(device)
        out = by_hand(batch.ecg, batch.text, batch.pieces)
    contrastive = contrastive_loss(out.ecg, out.text, out.scale, shared_targets(batch.keys))
    loss = 1.0 * contrastive + 2.0 * caption_loss(out.logits, out.labels)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(by_hand.parameters(), config.clip)
    optimizer.step()
    by_hand.clamp_temperature()
    losses.append(loss.item())

library = new_model()
history = train_coca(library, pairs, config, until=3).history
np.testing.assert_allclose([entry["loss"] for entry in history], losses, rtol=1e-4)
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

nothing = dict.fromkeys(("scale", "warp", "resample", "baseline_wander", "powerline", "muscle_noise"), 0.0)
disturb = Augment(encoder_config.fs, shift=0.5, mask_time=0.5, mask_leads=0.3, **nothing)
held_out = PairedEcgs(windows[RECORDS:], texts[RECORDS:], model, codes[RECORDS:])
size = min(BATCH, HELD_OUT)
watched = {"contrastive": [], "caption": []}


def augment(batch, generator):
    return batch._replace(ecg=disturb(batch.ecg, generator))


@torch.inference_mode()
def validate(candidate):
    """Note the losses on one fixed held-out batch; return minus their weighted sum, since higher is better."""
    batch = held_out.draw(size, torch.Generator().manual_seed(0)).to(device)
    out = candidate(batch.ecg, batch.text, batch.pieces)
    watched["contrastive"].append(contrastive_loss(out.ecg, out.text, out.scale, shared_targets(batch.keys)).item())
    watched["caption"].append(caption_loss(out.logits, out.labels).item())
    return -watched["contrastive"][-1] - 2 * watched["caption"][-1]


result = train_coca(model, pairs, config, augment=augment, validate=validate)
ends = {}
for name in ("contrastive", "caption"):
    values = [step[name] for step in result.history]
    ends[name] = (np.mean(values[:5]), np.mean(values[-5:]))
    print(f"{name:11} loss, first to last five steps, fell:", bool(ends[name][1] < ends[name][0]))
model.cpu()  # what follows is small
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
# With little data this comes fast. More wordings, augmentation, patch dropout, an average of the weights, and synthetic
# data push that point out; whether far enough, only the validation tells. The mini's is in the picture of section 9.
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
# ### An average of the weights
#
# Each batch pulls the weights a little to its own side, so they tremble around the place they are heading for. A
# *moving average*, average ← d · average + (1 − d) · weights after each step, trembles less. Below, one weight that
# should be 1 is off by a random amount in each step.

# %%
rng = np.random.default_rng(SEED)
weight = 1 + rng.normal(0, 0.5, size=4000)
average, trail = weight[0], []
for step, value in enumerate(weight):
    decay = min(0.98, (step + 1) / (step + 10))  # a short memory at the start: the first weights are random
    average = decay * average + (1 - decay) * value
    trail.append(average)
print(f"the weight is off by {np.std(weight[500:]):.2f}, its average by {np.std(trail[500:]):.2f};")
print(f"expected: {0.5 * np.sqrt((1 - 0.98) / (1 + 0.98)):.2f}, a tenth")

# %% [markdown]
# With `TrainConfig(average=0.98)` the averaged weights are what is validated and kept; the training goes on with its
# own.
#
# ## 5. A batch that does not fit
#
# The contrastive loss asks which of B reports belongs to an ECG. The more there are, the more it teaches, so the
# original takes a batch of 768. On a small GPU some dozens fit. The usual trick is *gradient accumulation*: run the
# batch in chunks and add up their gradients. For the caption loss that is right, since each record has its own. For
# the contrastive loss it is not.
#
# **Predict:** what does a contrastive loss of an untrained model do when each chunk is asked about its own reports
# only?

# %%
batch = pairs.draw(BATCH, run.generator())
starts = range(0, BATCH, BATCH // 4)
chunks = [batch.rows(first, min(first + BATCH // 4, BATCH)) for first in starts]
fresh = new_model().eval()  # no patch dropout for now


def contrastive_of(part):
    out = fresh(part.ecg, part.text, part.pieces)
    return contrastive_loss(out.ecg, out.text, out.scale, shared_targets(part.keys))


with torch.no_grad():
    alone = torch.stack([contrastive_of(chunk) for chunk in chunks]).mean()
    print("the mean of the chunks' losses is smaller than the batch's:", bool(alone < contrastive_of(batch)))
print(f"a guess among {BATCH}: {np.log(BATCH):.2f}; a guess among {BATCH // 4}: {np.log(BATCH // 4):.2f}")

# %% [markdown]
# An easier question, and other gradients. The way out (Gao et al. 2021) uses that the loss sees nothing of an ECG but
# its embedding, and embeddings are small:
#
# 1. compute the embeddings of all chunks, and forget how (no graph, little memory);
# 2. from all of them, compute the loss and its gradient *with respect to each embedding*;
# 3. run each chunk again, this time with its graph, and send its embeddings' gradients back through it.


# %%
def pieces_in(part):
    return int((part.pieces[:, 1:] != 0).sum())


with torch.no_grad():
    outputs = [fresh(chunk.ecg, chunk.text, chunk.pieces) for chunk in chunks]  # 1
ecg = torch.cat([out.ecg for out in outputs]).requires_grad_()
text = torch.cat([out.text for out in outputs]).requires_grad_()
contrastive_loss(ecg, text, fresh.logit_scale.exp(), shared_targets(batch.keys)).backward()  # 2
for first, chunk in zip(starts, chunks, strict=True):  # 3
    rows = slice(first, first + len(chunk.keys))
    out = fresh(chunk.ecg, chunk.text, chunk.pieces)
    share = pieces_in(chunk) / pieces_in(batch)  # the caption loss is a mean over pieces
    loss = 2.0 * share * caption_loss(out.logits, out.labels)
    loss += (out.ecg * ecg.grad[rows]).sum() + (out.text * text.grad[rows]).sum()
    loss.backward()
cached = {name: value.grad.clone() for name, value in fresh.named_parameters() if value.grad is not None}

# %% [markdown]
# The line with the two sums looks odd: it is no loss. But its derivative by an embedding is the number that step 2
# found, so `backward` goes on from there as if the two graphs were one. The gradients are those of the whole batch:

# %%
from ecgchat_lib.coca.step import batch_losses

fresh.zero_grad()
batch_losses(fresh, batch, config.objective)["loss"].backward()
for name, gradient in cached.items():
    torch.testing.assert_close(gradient, fresh.get_parameter(name).grad, rtol=1e-3, atol=1e-5)
print("cached in 4 chunks = the whole batch, in", len(cached), "gradients")

# %% [markdown]
# In training there is patch dropout, and both passes over a chunk must drop the same patches. The library goes one
# step further: it drops the patches that the whole batch would have dropped, so `chunk` changes the memory and the
# time, not the result. *Gradient checkpointing* saves in another place: what happens inside a transformer block is
# forgotten, and computed again when the backward pass comes by.

# %%
from ecgchat_lib.coca.step import Precision, batch_gradients

this_cpu = Workers(torch.device("cpu"))


def gradients(chunk, forget_blocks):
    """Return all gradients of one training batch as one vector, and how many numbers were kept for it at most."""
    model, kept = new_model().train(), [0]
    model.encoder.transformer.grad_checkpointing = forget_blocks

    def count(tensor):
        kept[-1] += tensor.numel()
        return tensor

    original, model.encoder.forward = model.encoder.forward, lambda ecg: (kept.append(0), original(ecg))[1]
    with step_randomness(SEED, 0), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        full = Precision("no", this_cpu.device)
        batch_gradients(model, batch, config.objective, chunk=chunk, workers=this_cpu, precision=full)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), max(kept)


whole, most = gradients(0, False)
for chunk, forget in ((0, True), (BATCH // 4, False), (BATCH // 4, True)):
    found, kept = gradients(chunk, forget)
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-5)
    print(f"chunk {chunk or BATCH:3}, blocks forgotten: {forget!s:5}  same gradients, less kept:", kept < most)

# %% [markdown]
# How much each of them saves at the paper's size, and what it costs in time, is measured in `benchmarks/coca_step.py`.
#
# ## 6. Half precision
#
# A GPU multiplies 16-bit numbers several times faster than 32-bit ones, and they take half the memory. There are two
# kinds. They divide their 16 bits differently between size and precision:

# %%
for name in ("float32", "bfloat16", "float16"):
    kind = torch.finfo(getattr(torch, name))
    smallest = kind.smallest_normal * kind.eps  # the last step above 0
    print(f"{name:8}  largest {kind.max:.1e}  smallest {smallest:.1e}  next after 1: 1 + {kind.eps:.1e}")

# %% [markdown]
# bf16 has the range of float32 with two to three digits. fp16 has more digits and little range, and gradients are
# small:

# %%
gradient = torch.tensor([1e-3, 1e-6, 1e-8])
print("as fp16:                 ", [f"{value:.1e}" for value in gradient.half().tolist()])
scaled = (gradient * 65536).half()
print("times 65536, then fp16:  ", [f"{value:.1e}" for value in scaled.tolist()])
print("and divided in float32:  ", [f"{value:.1e}" for value in (scaled.float() / 65536).tolist()])
print("in bf16, 256 + 1 =", (torch.tensor(256.0).bfloat16() + 1).item())

# %% [markdown]
# The third gradient was 0 and its weight would never learn. So the *loss* is multiplied by a large number before the
# backward pass, which multiplies every gradient, and the gradients are divided again in float32. The last line says
# why weights and their sums stay in float32: a small step would be rounded away.
#
# How large may the number be? The scaler finds out. If a gradient overflows, the step is left out and the number
# halved:

# %%
weight = torch.nn.Parameter(torch.tensor(1.0))
sgd, scaler = torch.optim.SGD([weight], lr=1.0), torch.amp.GradScaler("cpu", init_scale=2.0**16)
for slope in (0.1, torch.inf, 0.1):
    sgd.zero_grad()
    scaler.scale(weight * slope).backward()
    scaler.step(sgd)
    scaler.update()
    print(f"slope {slope:4}: weight {weight.item():.1f}, scale {scaler.get_scale():.0f}")

# %% [markdown]
# *Automatic* mixed precision decides for each operation: matrix products in 16 bits; softmax, norms and losses in 32.
# Our contrastive loss is always taken in 32, since it compares cosines that differ in the third digit.
# `TrainConfig(precision="fp16")` is for a T4, `"bf16"` for newer cards; the scaler's state is saved with the rest.
#
# ## 7. Killed, and resumed
#
# A Colab session ends when it likes. So the state goes to disk every few steps: weights, both memories of AdamW, the
# average, the step, and the history, in one file that is written whole or not at all. Because each step draws its own
# randomness, a resumed run doesn't just go on; it ends in *the same weights*. (The project's tests do this with a
# process that is killed by SIGKILL in the middle of a step.)

# %%
import tempfile
from dataclasses import replace
from pathlib import Path

from ecgchat_lib.coca.curves import read_curve

short = replace(config, steps=8, warmup=2, save_every=2, average=0.9)
whole, killed, resumed = new_model(), new_model(), new_model()
straight = train_coca(whole, pairs, short, augment=augment)
with tempfile.TemporaryDirectory() as place:
    train_coca(killed, pairs, short, augment=augment, folder=Path(place), until=5)  # as if the machine went away
    train_coca(resumed, pairs, short, augment=augment, folder=Path(place))
    same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    print("bit by bit the same as the run that was never killed:", same)
    curve = read_curve(Path(place))
    print("steps in curve.jsonl:", [entry["step"] for entry in curve])
    print("and the same losses:", [e["loss"] for e in curve] == [e["loss"] for e in straight.history])
    try:
        train_coca(new_model(), pairs, replace(short, learning_rate=1.0), folder=Path(place))
    except Exception as error:
        print(type(error).__name__ + ": …" + str(error).split("safetensors:")[1])

# %% [markdown]
# `curve.jsonl` grows by a line a step, so the losses can be watched while it runs. What a killed run wrote after its
# last saved state is cut off at the resume: no step stands there twice. `train_coca(…, tensorboard=True)` writes the
# same into TensorBoard's files.
#
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
# ## 8. Two processes, one result
#
# With several GPUs, each runs its own process with its own copy of the weights, and takes an equal part of the batch.
# They have to meet twice: the embeddings of all go to all, so that each process can compute the loss over the whole
# batch; and the gradients are added up, so that all take the same step. What a process was sent has no graph. That is
# no loss: its own rows have one, and the others' rows are the others' work.
#
# Here are two processes played one after the other. Only the temperature needs care: both find its whole gradient, so
# one of them must not count.

# %%
fresh.zero_grad()
half = BATCH // 2
parts = [batch.rows(0, half), batch.rows(half, BATCH)]
with torch.no_grad():
    sent = [fresh(part.ecg, part.text, part.pieces) for part in parts]  # what each sends to the other
for rank, part in enumerate(parts):
    out = fresh(part.ecg, part.text, part.pieces)
    seen = [out if other == rank else sent[other] for other in (0, 1)]
    scale = out.scale if rank == 0 else out.scale.detach()
    loss = contrastive_loss(
        torch.cat([s.ecg for s in seen]), torch.cat([s.text for s in seen]), scale, shared_targets(batch.keys)
    )
    loss = loss + 2.0 * pieces_in(part) / pieces_in(batch) * caption_loss(out.logits, out.labels)
    loss.backward()  # adds to the gradients of the process before
for name, gradient in cached.items():
    torch.testing.assert_close(fresh.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-5)
print("two halves, added = the whole batch, in", len(cached), "gradients")

# %% [markdown]
# `train_coca` asks Accelerate whether it is alone. Started by `torchrun --nproc-per-node 2 …`, each process draws the
# same batch from the same generator and takes its rows, so the result doesn't depend on how many there are. The
# project's tests start two processes on this CPU and compare losses, gradients and weights with those of one.
#
# ## 9. The mini model
#
# On the command line, all of this is
#
#     ecgchat train coca --profile ci --out FOLDER                        # synthetic ECGs, a minute
#     ecgchat train coca --profile cpu --data MANIFEST --out FOLDER       # your recordings, the mini model's size
#     ecgchat train coca --profile cpu --data MANIFEST --out FOLDER --resume
#
# It prints a plan first (parameters, steps, time and memory, from one small step), and stops if the memory won't do.
#
# The same functions trained the mini model that the course ships, on real recordings of PTB-XL (folds 1 to 8) and
# synthetic ones. The recipe is one file, `ecgchat_lib/evaluate/mini_recipe.py`. The picture is its recorded run.

# %%
import json

from ecgchat_lib.paths import data_folder

recorded = json.loads((data_folder() / "results" / "ecg-coca-mini.json").read_text(encoding="utf-8"))
for name, value in recorded["data"].items():
    print(f"{name:16} {value:6,}")
settings = recorded["recipe"]["train"]
print(f"parameters {recorded['parameters']['all']:,}, {settings['steps']:,} steps of {settings['batch']} pairs,")
print(f"learning rate {settings['learning_rate']:g}, clipping {settings['clip']:g}, average {settings['average']:g}")
print(f"kept: step {recorded['chosen']['step']}, validation {recorded['chosen']['validation']:.3f}")
run.show(f07.mini_run, recorded)

# %% [markdown]
# One half of fold 9 (`choose`) chose the step, and later the thresholds and penalties of notebook 08; the other half
# (`report`), other patients, gives the results there. A figure from the half that chose would be too good.
# Folds 1 to 8 were trained on, and fold 10 was not looked at.
#
# ### At full scale
#
# | | here | paper |
# | --- | --- | --- |
# | pairs | a few hundred, synthetic | about 800 thousand, real |
# | encoder | 0.1 M parameters | 86 M |
# | steps × batch | 60 × 24 | 20 epochs × 768 or 1,024 |
# | text encoder | MiniLM, frozen | MedCPT, last layers trained |
# | learning rate, clipping | 3e-3, 1.0 | 1e-4, 0.5 |
#
# The loop is the same, with `chunk`, `precision="bf16"`, `checkpoint_blocks=True` and as many processes as there are
# GPUs: the profile `h100`. That profile has not been run here.
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
# ### Exercise 07.3 A large batch in small chunks (★★★, 25 min)
#
# Write `cached_gradient(model, weight, inputs, chunk, loss)`. `model(weight, rows)` gives the embeddings of some rows,
# `loss(embeddings)` compares all embeddings with each other. Return the gradient of `loss(model(weight, inputs))` with
# respect to `weight`; but with a graph, at most `chunk` rows may go through the model at once. (The check counts.)
#
# <details><summary>Hint 1</summary>Three steps, as in section 5. The first runs under <code>torch.no_grad()</code>; its
# result then gets <code>requires_grad_()</code>.</details>
# <details><summary>Hint 2</summary>After <code>loss(embeddings).backward()</code>, <code>embeddings.grad</code> holds a
# row for each input; <code>split(chunk)</code> cuts both alike.</details>
# <details><summary>Hint 3</summary>For a chunk: <code>torch.autograd.grad((model(weight, rows) * g).sum(), weight)[0]
# </code>. Add them up.</details>


# %% tags=["solution"]
def cached_gradient(model, weight, inputs, chunk, loss):
    # <solution>
    with torch.no_grad():
        embeddings = torch.cat([model(weight, rows) for rows in inputs.split(chunk)])
    embeddings.requires_grad_()
    loss(embeddings).backward()
    total = torch.zeros_like(weight)
    for rows, gradient in zip(inputs.split(chunk), embeddings.grad.split(chunk), strict=True):
        total += torch.autograd.grad((model(weight, rows) * gradient).sum(), weight)[0]
    return total
    # </solution>


# %%
check("07.3", cached_gradient)

# %% [markdown]
# ## Recap
#
# - A training step is a batch, two losses, a clipped gradient and a learning rate that rises and falls (exercise 07.1).
# - With own randomness per step, a resumed run equals an uninterrupted one, bit by bit (exercise 07.2).
# - Held-out patients tell learning from memorizing; keep the best step, and report on records that chose nothing
#   (section 4).
# - A contrastive batch can be cut into chunks if the embeddings meet in one loss (exercise 07.3), and it can be shared
#   by several processes for the same reason (section 8).
# - fp16 needs a scaler because its range is small; bf16 doesn't (section 6).
#
# **What to copy.** `ecgchat_lib/coca/train.py` for a loop that resumes exactly; `coca/step.py` for cached contrastive
# batches; `coca/checkpoint.py` for a checkpoint with hashes.
#
# **Common errors**
#
# - *The loss is NaN.* `train_coca` stops and names the step. Look for windows with NaN, then lower the learning rate.
# - *Resumed, but the loss jumps.* The optimizer's memory wasn't saved, or the warm-up began anew.
# - *A wonderful validation.* Is a patient on both sides? Split by patient (notebook 02).
# - *Out of memory.* Set `chunk`, then `checkpoint_blocks`. A smaller `batch` is another, easier question: don't compare
#   its loss with that of a larger one.
# - *Two processes, half the learning.* The gradients were averaged where they had to be added, or each process compared
#   its own reports only.
#
# ## References
#
# - Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization,
#   [arXiv 1711.05101](https://arxiv.org/abs/1711.05101).
# - Loshchilov and Hutter 2017, SGDR (the cosine), [arXiv 1608.03983](https://arxiv.org/abs/1608.03983).
# - Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup (cached batches),
#   [arXiv 2101.06983](https://arxiv.org/abs/2101.06983).
# - Micikevicius et al. 2018, Mixed Precision Training, [arXiv 1710.03740](https://arxiv.org/abs/1710.03740).
# - Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost (gradient checkpointing),
#   [arXiv 1604.06174](https://arxiv.org/abs/1604.06174).
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

# %% tags=["parameters"]
PROFILE = "ci"  # which machine the sizes are for: ci|cpu|t4|h100
SEED = 7  # seed of every random draw, 0..2147483647
RECORDS = 24  # synthetic recordings to learn from, 8..20000
STEPS = 8  # optimizer steps of stage 2, 4..1000000
RANK = 8  # rank of the adapters, 1..256
MODEL = "language-model"  # the language model: language-model|vicuna-7b|vicuna-13b
QUESTION = "What is the heart rhythm?"  # asked of the mini about a real recording

# %% tags=["setup"]
from ecgchat_lib.course import check, start

run = start("12", globals())

# %% [markdown]
# ## 1. Sixteen levels for a weight
#
# A 13-billion-weight model in 16 bits fills 26 GB before it has read a word. **QLoRA** fine-tunes it in a third of the
# memory with two ideas: keep the frozen weights in four bits, and train small *adapters* beside them.
#
# Four bits name sixteen numbers. Which sixteen? The weights of a layer are distributed like a bell: most are near zero.
# So NF4 ("normal float") takes the places where a normal distribution has equal shares between them: many levels near
# zero, few outside. Zero itself is a level, so eight levels lie above it and seven below.

# %%
import numpy as np
from scipy.stats import norm

edge = 0.9677083  # the share below the outermost level; chosen by the authors of QLoRA
above = norm.ppf(np.linspace(edge, 0.5, 9)[:-1])  # 8 levels above zero
below = -norm.ppf(np.linspace(edge, 0.5, 8)[:-1])  # 7 levels below zero
levels = np.sort(np.concatenate([above, [0.0], below]))
levels = levels / np.abs(levels).max()
print(np.round(levels, 3).tolist())

# %%
import bitsandbytes.functional as four_bits
import torch

theirs = four_bits.get_4bit_type("nf4", device="cpu")
assert np.allclose(np.sort(theirs.numpy()), levels, atol=1e-6)
print("bitsandbytes has the same sixteen levels")

# %% [markdown]
# A *block* of 64 weights shares one scale, its largest size. Divide by it, look up the nearest level, keep the level's
# number. Here are four weights, so that it can be followed by hand.
#
# **Predict:** the block is 0.02, −0.10, 0.03, 0.20. What is its scale, and which weights will be reproduced exactly?

# %%
tiny = np.array([0.02, -0.10, 0.03, 0.20])
scale = np.abs(tiny).max()
codes = np.abs(tiny[:, None] / scale - levels).argmin(1)
print("scale", scale, " codes", codes.tolist(), " back:", np.round(levels[codes] * scale, 3).tolist())

# %% [markdown]
# ### Exercise 12.1 A block of weights in four bits (★★☆, 10 min)
#
# <details><summary>Hint 1</summary>The scale is the largest absolute value, so that all weights lie in −1 to
# 1.</details>
# <details><summary>Hint 2</summary><code>np.abs(block[:, None] / scale - levels)</code> has a row per weight and a
# column per level.</details>


# %% tags=["solution"]
def quantize(block, levels):
    """block: (n,) weights; levels: (16,) from -1 to 1. Return the codes (n,), 0 to 15, and the scale."""
    # <solution>
    scale = float(np.abs(block).max())
    codes = np.abs(block[:, None] / scale - levels).argmin(1)
    return codes, scale
    # </solution>


# %%
check("12.1", quantize)

# %% [markdown]
# Now a real block of 64, by hand and by bitsandbytes on this CPU. It packs two codes into a byte.

# %%
block = run.rng.normal(0, 0.05, 64).astype(np.float32)
packed, state = four_bits.quantize_4bit(torch.from_numpy(block), blocksize=64, quant_type="nf4")
pairs = packed.reshape(-1).numpy()
unpacked = np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1)  # the first weight is in the upper half
codes = np.abs(block[:, None] / np.abs(block).max() - theirs.numpy()).argmin(1)
assert np.array_equal(unpacked, codes)
back = four_bits.dequantize_4bit(packed, state).reshape(-1).numpy()
assert np.allclose(back, theirs.numpy()[codes] * np.abs(block).max(), atol=1e-6)
print("64 codes by hand equal bitsandbytes':", codes[:12].tolist(), "...")

# %%
from ecgchat_lib.course.figures import f12

scale = np.abs(block).max()
run.show(f12.levels, block.astype(float), levels * scale, np.linspace(-1, 1, 16) * scale)

# %% [markdown]
# ### Bits per weight
#
# Four bits for the code, and a scale for every 64 weights. A scale in 32 bits would add half a bit to each weight; so
# the scales are quantized, too, to 8 bits in blocks of 256: *double quantization*.

# %%
from ecgchat_lib.chat.language_model import NF4_BITS_PER_WEIGHT

once, twice = 4 + 32 / 64, 4 + 8 / 64 + 32 / (64 * 256)
assert twice == NF4_BITS_PER_WEIGHT
print(f"one scale in 32 bits: {once} bits per weight; scales quantized again: {twice:.3f} bits")

# %% [markdown]
# ## 2. An adapter beside a frozen weight
#
# Four-bit weights can't be trained: a small step would round away. **LoRA** leaves them alone and adds a detour. The
# matrix $A$ maps the input to $r$ numbers, $B$ maps these to the output, and the layer gives
# $Wx + \frac{\alpha}{r} B A x$. $B$ starts at zero, so at first nothing changes.
#
# **Predict:** a layer from 576 to 1,536 has 884,736 weights. How many has its adapter of rank 8?

# %%
rank, inward, outward = 8, 576, 1536
print(f"adapter: {rank * (inward + outward):,} of {inward * outward:,} weights")

# %% [markdown]
# ### Exercise 12.2 A low-rank adapter (★★☆, 10 min)
#
# <details><summary>Hint 1</summary>With rows as inputs, $Wx$ is <code>x @ weight.T</code>.</details>
# <details><summary>Hint 2</summary>The rank is the number of rows of <code>a</code>.</details>


# %% tags=["solution"]
def lora(x, weight, a, b, alpha):
    """x: (batch, in); weight: (out, in), frozen; a: (rank, in); b: (out, rank). Return (batch, out)."""
    # <solution>
    rank = len(a)
    return x @ weight.T + (alpha / rank) * (x @ a.T @ b.T)
    # </solution>


# %%
check("12.2", lora)

# %% [markdown]
# The package peft wraps a layer in the same way. One layer, its adapter filled with random numbers, by hand and by
# peft:

# %%
from peft import LoraConfig, get_peft_model

torch.manual_seed(SEED)
layer = torch.nn.Sequential(torch.nn.Linear(6, 4, bias=False))
wrapped = get_peft_model(layer, LoraConfig(r=2, lora_alpha=4, target_modules=["0"]))
inner = wrapped.base_model.model[0]
a, b, w = inner.lora_A["default"].weight, inner.lora_B["default"].weight, inner.base_layer.weight
print("B starts at zero:", bool((b == 0).all()))
with torch.no_grad():
    b.normal_()
    x = torch.randn(3, 6)
    assert torch.allclose(wrapped(x), x @ w.T + 4 / 2 * (x @ a.T @ b.T), atol=1e-5)
print("by hand equals peft: x W' + (alpha / r) x A' B'")

# %% [markdown]
# ## 3. What fits into memory?
#
# A GPU must hold, all at once: the frozen weights; the adapters, their gradients and what the optimizer remembers; what
# each layer keeps for the backward pass (*activations*); the head's output over the whole vocabulary; and whatever
# comes and goes meanwhile. The first two can be counted on paper.
#
# **Predict:** what takes more in a 7B model with adapters of rank 16: the adapters, or AdamW's memory of them?
#
# ### Exercise 12.3 What must be held (★★☆, 10 min)
#
# Frozen linear layers are in NF4 (the bits per weight are above), all other frozen weights in 16 bits. An adapter's
# numbers are float32, its gradients, too, and AdamW keeps two moments per number, in float32.
#
# <details><summary>Hint 1</summary>A layer has $\text{in} \cdot \text{out}$ weights, its adapter
# $r(\text{in} + \text{out})$ numbers.</details>
# <details><summary>Hint 2</summary>Each adapter number is there four times: itself, its gradient, two
# moments.</details>


# %% tags=["solution"]
def held(layers, others, rank):
    """layers: (in, out) of each linear layer; others: number of weights in 16 bits. Return bytes."""
    # <solution>
    bits = 4 + 8 / 64 + 32 / (64 * 256)
    frozen = sum(inward * outward for inward, outward in layers) * bits / 8 + 2 * others
    adapters = rank * sum(inward + outward for inward, outward in layers)
    return frozen + 4 * 4 * adapters
    # </solution>


# %%
check("12.3", held)

# %% [markdown]
# `plan` counts all of it from a config alone: weights on torch's *meta* device, where tensors have shapes but no
# storage, and activations from what each operation of a block keeps. Vicuna-7B by hand and by `plan`:

# %%
from ecgchat_lib.chat.plan import known_config, plan
from ecgchat_lib.course.exercises.e12 import held as by_hand

config = known_config("vicuna-7b")
width, middle = config.hidden_size, config.intermediate_size
block = 4 * [(width, width)] + 2 * [(width, middle)] + [(middle, width)]
rest = 2 * config.vocab_size * width + (2 * config.num_hidden_layers + 1) * width  # embedding, head, norms
counted = by_hand(config.num_hidden_layers * block, rest, 16)
planned = plan(config, quantized=True, dtype=torch.float16, rank=16, length=512, ecg_width=0)
assert abs(planned.weights + 2 * planned.adapters + planned.optimizer - counted) < 1e-3 * counted
print(f"by hand {counted / 1e9:.2f} GB, as planned; with all that a step takes:", "\n")
print("\n".join(planned.lines()))

# %% [markdown]
# Is that right? The same counting was held beside training steps on a CPU, whose allocator was asked what it gave out.
# (A GPU adds its context, workspace and rounding: the *reserve*.)

# %%
import json

from ecgchat_lib.paths import data_folder

recorded = json.loads((data_folder() / "results" / "chat_plan.json").read_text(encoding="utf-8"))
for row in recorded["steps"]:
    form = ("NF4" if row["quantized"] else "float32") + (", checkpointed" if row["checkpointing"] else "")
    megabytes = [row[kind]["total"] / 1e6 for kind in ("planned", "measured")]
    print(f"{row['shape']:10s} {form:22s} planned {megabytes[0]:7.1f} MB, measured {megabytes[1]:7.1f} MB")
assert all(0.9 < row["ratio"]["total"] < 1.1 for row in recorded["steps"])

# %% [markdown]
# ### Gradient checkpointing
#
# The largest part is the activations. *Checkpointing* keeps only each block's input and computes the block a second
# time when the backward pass arrives there: a third more time for a small part of the memory.

# %%
from torch.utils.checkpoint import checkpoint

torch.manual_seed(SEED)
block = torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU()) for _ in range(6)])
weights = {p.data_ptr() for p in block.parameters()}


def kilobytes_kept(way):
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = way(torch.randn(100, 64, requires_grad=True))
    return sum(kept.values()) / 1e3, out


print(f"all kept:     {kilobytes_kept(block)[0]:6.1f} kB wait for the backward pass")
again, out = kilobytes_kept(lambda x: checkpoint(block, x, use_reentrant=False))
print(f"checkpointed: {again:6.1f} kB")

# %% [markdown]
# There is one trap. torch's older way of checkpointing (`use_reentrant=True`) computes a block *without*
# gradients if its input needs none. With QLoRA the first block's input is word embeddings, which are frozen: they need
# none. So the adapters inside never learn, and nothing fails:

# %%
import warnings

last = torch.nn.Linear(64, 1)  # trained as well, so that the loss has a gradient
for needed in (False, True):
    block.zero_grad(set_to_none=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns; in a long log nobody sees it
        x = torch.randn(4, 64).requires_grad_(needed)
        last(checkpoint(block, x, use_reentrant=True)).sum().backward()
    learned = sum(p.grad is not None for p in block.parameters())
    print(f"input requires a gradient: {needed!s:5s}  weights inside with a gradient: {learned} of 12")

# %% [markdown]
# The loop of the library makes the input require a gradient, takes the newer way, and checks after the second step that
# nothing trained is without a gradient.
#
# ### AdamW in eight bits
#
# The moments can be stored like the weights: a byte per number and a scale per block of 256. They are read, changed and
# rounded in each step. *Paged*, they move to the host's memory when the GPU's is full.

# %%
moment = torch.from_numpy(run.rng.normal(0, 1e-3, 256 * 64).astype(np.float32))
stored, state = four_bits.quantize_blockwise(moment, blocksize=256)
back = four_bits.dequantize_blockwise(stored, state)
size = stored.nbytes + state.absmax.nbytes
print(f"{moment.nbytes / size:.2f} times smaller;", end=" ")
print("error below 2 % of the spread:", bool((back - moment).std() < 0.02 * moment.std()))

# %% [markdown]
# ### What fits which GPU
#
# Each row starts from what was asked (NF4, rank 16, 4 sequences of 512 places). Where that doesn't fit, the cheapest
# thing is given up first: time, for checkpointing; then a large batch (several passes make up for it); then AdamW's
# precision.

# %%
from ecgchat_lib.chat.plan import table

asked = {"quantized": True, "rank": 16, "batch": 4, "length": 512, "answers": 2, "ecg_width": 768}
rows = table(("vicuna-7b", "vicuna-13b"), **asked)
for row in rows:
    need, fitted = row["asked"].total / 1e9, row["plan"].total / 1e9
    given = "; with " + ", ".join(text.split(" (")[0] for text in row["given_up"]) if row["given_up"] else ""
    print(
        f"{row['model']:10s} {row['gpu']:7s} {need:5.1f} GB asked{given + f': {fitted:.1f} GB' if given else ', fits'}"
    )
assert all(row["fits"] for row in rows)
host = max(row["plan"].host for row in rows) / 1e9
print(f"host memory while loading: at most {host:.1f} GB")

# %% [markdown]
# So by this plan even the paper's 13B model fits a T4. It is a plan: it was held beside steps of small models on a CPU,
# and `benchmarks/chat_vicuna.py` holds it beside a real GPU, where there is one. By the plan, host memory isn't the
# limit either, although the weights in 16 bits are twice as large as a T4 machine's: they come in several files, which
# are mapped, not read; one tensor after the other is copied to the GPU and quantized there. (Only *safetensors* can be
# mapped so, and only they are safe to open; a pickle, `*.bin`, may run code. The library refuses it and says which
# revision to look for.)

# %%
plans = {
    (name, form): plan(known_config(part), dtype=torch.float16, **{**asked, **change})
    for name, part in (("7B", "vicuna-7b"), ("13B", "vicuna-13b"))
    for form, change in (
        ("16 bits", {"quantized": False}),
        ("NF4", {}),
        ("NF4, checkpointed", {"checkpointing": True}),
    )
}
run.show(f12.memory, plans, 15.0)

# %% [markdown]
# What if it doesn't fit? `check` says what each thing that can be given up would save:

# %%
from ecgchat_lib.errors import EcgChatError

try:
    plans["13B", "16 bits"].check(15e9, 12.7e9, name="a T4")
except EcgChatError as error:
    print(str(error).replace("; ", ";\n  ").replace("What helps: ", "What helps:\n  "))

# %% [markdown]
# ## 4. Stage 2, for real
#
# SmolLM2 in NF4, an adapter on every linear layer except the head, and the projector. After the second step the loop
# checks that every trained tensor got a gradient; zero adapted layers would be an error, too. (Both happen easily:
# names that match nothing, or a helper that freezes everything.)

# %%
from ecgchat_lib.chat.language_model import compute_dtype, load_language_model
from ecgchat_lib.chat.train import add_lora, trained_parameters
from ecgchat_lib.chat.train_run import fresh_chat

device = "cuda" if torch.cuda.is_available() else "cpu"
saving = {"checkpointing": True, "optimizer": "paged_adamw_8bit"} if device == "cuda" else {}
language_model = load_language_model(MODEL, quantized=True, device=device)
sizes = {"rank": RANK, "dropout": 0.0, "length": 192, "device": device, "dtype": compute_dtype(device)}
planned = plan(language_model.model.config, quantized=True, **sizes, **saving)
chat = fresh_chat(language_model, 192, SEED)
adapted = add_lora(chat, rank=RANK, alpha=2 * RANK, dropout=0.0, seed=SEED)
trained = sum(p.numel() for name, p in trained_parameters(chat).items() if "lora_" in name)
assert trained == planned.trainable
print(f"{len(adapted)} layers adapted: {trained:,} adapter weights, as planned")
print("\n".join(planned.lines()[3:]))

# %%
from ecgchat_lib.chat.template import encode, pack
from ecgchat_lib.chat.train import Example, TrainConfig, train_chat
from ecgchat_lib.coca.checkpoint import load_mini
from ecgchat_lib.coca.embed import encoder_tokens
from ecgchat_lib.coca.preprocess import front_end
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.instruct.build import Teacher

encoder = load_mini()
made = [synthesize(SEED * 100_000 + number) for number in range(RECORDS)]
windows = front_end(np.stack([item.signal for item in made]), encoder.config.encoder, fs=made[0].fs)
tokens = encoder_tokens(windows, encoder)
examples = []
for row, item in enumerate(made):
    teacher = Teacher(item.statements, None, np.random.default_rng(row))
    turns = [turn for turn in (teacher.rhythm(), teacher.normal()) if turn is not None]
    coded = [encode([("<ecg>\n" + t.question, t.answer)], chat.tokenizer, chat.template) for t in turns]
    if coded:
        examples.append(Example(pack(coded), (row,)))
print(len(examples), "sequences; the first has", len(examples[0].encoded.ids) + 100, "places for two questions")

# %% [markdown]
# Two questions about one recording share its 101 ECG tokens: `pack` makes a tree of them, in which each question sees
# the ECG and itself, but not the other question. A test proves that the logits are those of separate sequences; it
# saves most of the work.

# %%
rates = {"learning_rate": 1e-3, "projector_rate": 1e-3}
memory = {"checkpoint_blocks": bool(saving), "optimizer": planned.settings.optimizer}
config = TrainConfig(steps=STEPS, batch=1, seed=SEED, **rates, **memory)
losses = train_chat(chat, examples, tokens, config)
third = max(1, STEPS // 3)
print("mean loss of the last third below two thirds of the first third's:", end=" ")
print(bool(np.mean(losses[-third:]) < 2 / 3 * np.mean(losses[:third])))
about = {"seed": SEED, "steps": STEPS, "rank": RANK, "examples": len(examples)}
run.show(f12.stage_2, losses, about)

# %% [markdown]
# ## 5. Save, load, compare
#
# A folder holds the projector, the adapter and a manifest: hashes of its files, and the hashes of the language model
# and the encoder that it was trained with. Loaded onto anything else, it refuses. And loading gives the same logits:

# %%
from ecgchat_lib.chat.checkpoint import load_chat_model, read_manifest, save_chat
from ecgchat_lib.coca.checkpoint import MINI_FOLDER, WEIGHTS
from ecgchat_lib.coca.checkpoint import read_manifest as read_encoder_manifest

batch = [examples[0].encoded], tokens[:1]
with torch.no_grad():
    before, _ = chat.answer_logits(chat.prepare(*batch))
mini = data_folder() / MINI_FOLDER
origin = {"name": mini.name, "sha256": read_encoder_manifest(mini)["sha256"][WEIGHTS]}
folder = run.artefact(
    "stage2",
    lambda path: save_chat(chat, path, language_model, encoder=origin),
    steps=STEPS,
    rank=RANK,
    records=RECORDS,
)
del chat, language_model
loaded, _ = load_chat_model(folder, encoder_sha256=origin["sha256"], quantized=True, device=device)
with torch.no_grad():
    after, _ = loaded.answer_logits(loaded.prepare(*batch))
print("files:", ", ".join(sorted(read_manifest(folder)["sha256"])))
print("the same logits after loading:", bool(torch.allclose(before, after, atol=1e-4)))

# %% [markdown]
# To answer faster, or for other programs, adapters are *merged*: $W + \frac{\alpha}{r} BA$ is one matrix again. They
# were trained beside rounded weights, so they belong to these: `merge` takes the weights out of NF4 and adds there.
# Added to the weights before rounding, every layer would be off by what NF4 rounds.

# %%
from ecgchat_lib.chat.export import merge

loaded.language_model = merge(loaded.language_model)
with torch.no_grad():
    merged, _ = loaded.answer_logits(loaded.prepare(*batch))
print("adapters left:", sum("lora_" in name for name, _ in loaded.named_parameters()))
print("the same logits after merging:", bool(torch.allclose(before, merged, atol=1e-2)))
del loaded

# %% [markdown]
# ## 6. The mini that the course ships
#
# Spelling (notebook 11), then the same two stages on real PTB-XL recordings (folds 1–8) and synthetic ones, gave
# `data/weights/ecg-chat-mini`. Its prompts hold the ECG tokens alone, or two lines of text as well: the measured
# values, and the *signs*, which a linear *reader* reads from the ECG tokens and the measured values. That is a thin
# form of the paper's diagnosis-driven prompt, and it is supervised.
#
# In its first steps of stage 2 the model read words that were spelled *right*, so that it learned to look findings up
# among the ECG tokens; then, finding by finding, the projector's own. The loss, as the model card has it:

# %%
recorded = json.loads((data_folder() / "results" / "ecg-chat-mini.json").read_text(encoding="utf-8"))
recipe = recorded["recipe"]
run.show(
    f12.mini_losses,
    {part: found["loss"]["stage2"] for part, found in recorded["training"].items()},
    recipe["stage2"]["steps"],
    (recipe["all_right"], recipe["all_right"] + recipe["fade"]),
)

# %% [markdown]
# Does such a model look at the ECG at all? Four answers to the same questions about recordings of fold 9 that it never
# saw, on the half where nothing was chosen: the model's; the model's when it is given *another recording's tokens*;
# its *text-only twin's*, which had the same training, but with the recordings' tokens shuffled; and those of *rules
# alone*, which say what is commonest in training, or repeat what the prompt says in words. Each finding is asked about
# as often where it is absent as where it is present, and the shares are balanced, so habit alone gets one half, and of
# the three rhythms one third.
#
# **Predict:** from the ECG tokens alone, which kind of question will it answer best: finding, rhythm or rate? And what
# will its twin get?

# %%
kinds = {
    "own_ecg": "the model",
    "other_tokens": "with another's tokens",
    "twin": "its text-only twin",
    "template": "rules alone",
}
asked = (("presence", "balanced_accuracy", "finding?"), ("rhythm", "mean_recall", "rhythm?"),
         ("rate", "within_5_per_minute", "rate ± 5?"))  # fmt: skip
rows = []
for mode, words in (("tokens", "ECG tokens alone"), ("all", "and two lines")):
    found = recorded["results"]["fold9"][mode]
    for kind, figure, short in asked:
        figured = [
            (found[model][kind][figure], tuple(found[model][kind]["interval_95"])) if kind in found[model] else None
            for model in kinds
        ]
        rows.append((f"{short} {words}", found["own_ecg"][kind]["n"], figured))
        shares = "  ".join("    –" if one is None else f"{one[0]:5.2f}" for one in figured)
        print(f"{rows[-1][0]:28s} n = {rows[-1][1]:4d}  {shares}")
    less = found["own_ecg_less_twin"]
    print(f"  findings, model less twin: {less['balanced_accuracy']:+.2f}, 95 %: {less['interval_95']}")
run.show(f12.with_and_without, rows, list(kinds.values()))

# %% [markdown]
# From the ECG tokens alone, the model answers questions about findings far better than its twin; with another
# recording's tokens it is no better than habit. So it reads the ECG. Of the rhythms, few here aren't sinus, which is
# why that interval is wide; and the rate is often off, since digits are hard to spell.
#
# With the two lines in the prompt the picture changes: the twin, which can't read tokens, does as well, and the
# interval of the difference holds zero. Both look the finding up in the line of signs, and copy the rate. A figure
# reported with such a prompt alone would say nothing about the ECG tokens. Another's tokens do hurt the model even
# then: it weighs both, where the twin had learned to ignore one.
#
# One caution: earlier versions were scored on this half, too, and the decision to change them knew these scores.
#
# Ask it something:

# %%
from ecgchat_lib.chat.session import load_chat
from ecgchat_lib.instruct.facts import claims

session = load_chat()
answer = session.ask(data_folder() / "real_sample" / "A0003", QUESTION)
named = [finding.name for finding, affirmed in claims(answer.text) if affirmed]
print("it says something:", bool(answer.text), " it names:", ", ".join(named) or "no finding of the list")
print("\n".join(item.text for item in answer.evidence if item.given))

# %% [markdown]
# ## Recap
#
# - NF4 names sixteen levels where weights are dense; a block of 64 shares one scale (exercise 12.1).
# - LoRA trains $r(\text{in} + \text{out})$ numbers beside a frozen weight, and starts without effect (exercise 12.2).
# - `plan` says what fits before it is allocated, and what to give up if it doesn't (exercise 12.3, section 3).
# - Checkpointing trades a third more time for most of the activations; the input must require a gradient.
# - Every adapter got a gradient, the loss fell, and loading gave the same logits (sections 4 and 5).
# - Another's ECG tokens, and a twin trained on shuffled ones, show what an answer rests on (section 6).
#
# **What to copy.** `ecgchat_lib/chat/language_model.py` (NF4 from several files), `chat/plan.py` (memory),
# `chat/train.py` (both stages), and `chat/checkpoint.py` (a folder that refuses wrong partners).
#
# **Common errors**
#
# - *Zero adapters.* Names in `target_modules` that match nothing train nothing. Count them.
# - *bf16 on a T4, or on a CPU without it.* A T4 has none, though torch says it has (it counts emulation); most CPUs
#   emulate it, very slowly. `compute_dtype` chooses.
# - *Checkpointing, and the loss falls a little and stops.* Only what lies after the last block learns; see section 3.
# - *Merging into weights in NF4.* Rounding them again takes most of the adapter away. Merge in full precision.
# - *The adapter on another base.* Same shapes, other model: fluent nonsense. Compare hashes.
#
# ## References
#
# - Dettmers et al. 2023, QLoRA, [arXiv 2305.14314](https://arxiv.org/abs/2305.14314).
# - Hu et al. 2021, LoRA, [arXiv 2106.09685](https://arxiv.org/abs/2106.09685).
# - Zhao et al. 2024, ECG-Chat, [arXiv 2408.08849](https://arxiv.org/abs/2408.08849): Vicuna-13B with LoRA.
# - Model: SmolLM2-135M-Instruct, Ben Allal et al. 2025, [arXiv 2502.02737](https://arxiv.org/abs/2502.02737),
#   Apache-2.0. Mini weights: trained on PTB-XL, Wagner et al. 2020,
#   [doi:10.1038/s41597-020-0495-6](https://doi.org/10.1038/s41597-020-0495-6), CC BY 4.0. Recording: CPSC2018, Liu et
#   al. 2018, [doi:10.1166/jmihi.2018.2442](https://doi.org/10.1166/jmihi.2018.2442), CC BY 4.0.

# %%
run.finish({"adapter_parameters": trained, "first_loss": losses[0], "last_loss": losses[-1], "steps": STEPS})

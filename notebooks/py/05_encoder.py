# %% tags=["parameters"]
PROFILE = "ci"  # which machine the sizes are for: ci|cpu|t4|h100
SEED = 7  # seed of every random draw, 0..2147483647
RECORD = "A0002"  # the real recording to look at: A0001|A0002|A0003|A0004|A0005|A0006|A0007|A0008|A0009|A0010
PATCH = 37  # the patch to look at closely, 0..99

# %% tags=["setup"]
from ecgchat_lib.course import check, start

run = start("05", globals())

# %% [markdown]
# ## 1. What the encoder reads
#
# An encoder turns ten seconds of twelve leads into a short list of vectors, its *tokens*. Later a language model will
# read these tokens beside words. The one here is a **vision transformer in one dimension**: it cuts the signal into
# patches of time, as a vision transformer cuts a picture into squares, and lets the patches exchange information.
#
# Before the encoder stands the *front end*: a fixed recipe that brings every recording to the same form. The paper
# feeds raw millivolts at 500 Hz and has 800,000 recordings to learn from. The mini model of this course has a few
# thousand, so its front end takes away what it would otherwise have to learn to ignore: slow drift and hum (a band
# pass from 0.5 to 40 Hz), and whatever the sampling rate was (it becomes 100 Hz).
#
# The recipe is a part of the model. Weights trained behind one front end and used behind another give nonsense without
# any error, so the library keeps the recipe in the model's config.

# %%
from ecgchat_lib.coca.config import MINI, PAPER
from ecgchat_lib.coca.preprocess import recording_windows
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.paths import data_folder

config = MINI.encoder
recording = read_recording(data_folder() / "real_sample" / RECORD)
window = recording_windows([recording], config)  # (batch, lead, time)
print(f"{RECORD}: {recording.signal.shape} at {recording.fs:g} Hz  →  {tuple(window.shape)} at {config.fs:g} Hz")
print("lead II from", f"{window[0, 1].min():.2f} to {window[0, 1].max():.2f} mV")

# %% [markdown]
# **Predict:** 1,000 samples in patches of 10 samples, and one token more for the whole recording. How many tokens?

# %%
from ecgchat_lib.course.figures import f05

print(config.patches, "patches +", config.tokens - config.patches, "=", config.tokens, "tokens")
run.show(f05.patches, window[0].numpy(), RECORD, config, PATCH)

# %% [markdown]
# A patch holds a tenth of a second of *all* leads. That is a wide choice of shape (all twelve views of a QRS complex
# lie in one or two patches) and a narrow one of time: no patch knows where in the beat it is. Attention will tell it.
#
# ## 2. A patch becomes a vector
#
# Take two leads with six samples each, and patches of three samples. A patch holds *all leads* of its three samples: 2
# × 3 numbers in a row. One matrix turns each patch into a vector; here into two numbers: the sum of everything, and
# the first sample of the first lead.

# %%
import torch

ecg = torch.tensor([[[1.0, 2, 3, 4, 5, 6], [10.0, 20, 30, 40, 50, 60]]])  # (batch 1, lead 2, time 6)
cut = ecg.unfold(2, 3, 3)  # (batch, lead, patch, sample)
rows = cut.permute(0, 2, 1, 3).flatten(2)  # (batch, patch, lead × sample)
matrix = torch.tensor([[1.0, 1, 1, 1, 1, 1], [1.0, 0, 0, 0, 0, 0]])
print("patches:", rows[0].int().tolist())
print("vectors:", (rows @ matrix.T)[0].int().tolist())

# %% [markdown]
# A convolution whose stride is its kernel's length does exactly this: it visits the patches one after the other with
# one matrix. So that is how the encoder is written, and what the name `Conv1d` hides is a plain matrix product.

# %%
conv = torch.nn.Conv1d(2, 2, kernel_size=3, stride=3, bias=False)
conv.weight.data = matrix.view(2, 2, 3)  # (out, lead, sample)
assert torch.equal(conv(ecg).transpose(1, 2), rows @ matrix.T)
print("the convolution gives the same vectors:", conv(ecg).transpose(1, 2)[0].int().tolist())

# %% [markdown]
# The paper's encoder does this with 768 outputs on patches of 12 × 50 samples. The mini has two small convolutions in
# front (its *stem*), because a transformer doesn't know that neighboring samples belong together and would need many
# recordings to find out. `stem_channels=0` leaves it out.

# %%
from ecgchat_lib.coca.encoder import EcgEncoder, standardize_leads

torch.manual_seed(SEED)
encoder = EcgEncoder(config).eval().requires_grad_(False)
scaled, size = standardize_leads(window)  # each lead to deviation 1; more of that below
features = encoder.stem(scaled)  # (1, 32, 1000)
by_hand = (
    torch.stack(
        [features[0, :, start : start + config.patch_samples].flatten() for start in range(0, config.samples, 10)]
    )
    @ encoder.conv1.weight.flatten(1).T
)  # a loop over patches, one matrix
torch.testing.assert_close(by_hand, encoder.conv1(features)[0].T, rtol=1e-4, atol=1e-5)
print("100 patch vectors of width", by_hand.shape[1], "- loop and library agree")

# %% [markdown]
# ### How high is a lead?
#
# A patch of a tall lead has large numbers and drowns the others, so the encoder scales each lead to a standard
# deviation of 1. That alone would lose something: the millivolts. A high QRS voltage, the sign of a thick heart
# muscle, could not be seen any more. So the twelve deviations are kept, as logarithms, and told to the encoder apart.
#
# **Predict:** lead 2 below is ten times lead 1. What is left of the difference after scaling?

# %%
pair = torch.tensor([[[0.0, 0.2, 0.0, -0.2], [0.0, 2.0, 0.0, -2.0]]])  # mV, (batch 1, lead 2, time 4)
deviation = pair.std(dim=2, correction=0)
for lead, name in ((0, "lead 1"), (1, "lead 2")):
    shape = [f"{value:.2f}" for value in pair[0, lead] / deviation[0, lead]]
    told = (deviation[0, lead] / 0.2).log()  # 0.2 mV is a usual deviation
    print(f"{name}: scaled {', '.join(shape)}; told apart {told:.2f}")

higher, told = standardize_leads(2 * window)
torch.testing.assert_close(higher, scaled, rtol=1e-4, atol=1e-4)
print("twice the millivolts: the same patches, and each logarithm larger by", f"{(told - size)[0, :12].mean():.2f}")

# %% [markdown]
# (0.69 is ln 2.) The encoder reads a recording in millivolts and one that somebody scaled before with the same patches.
# The paper's encoder has none of this: it reads millivolts as they are, and must learn what a tall lead means.
#
# ### The CLS token, and places
#
# Two things are added. A learned vector, the *CLS token*, goes in front; it stands for no time at all and will collect
# what matters about the whole; the twelve logarithms are added to it. And each token gets a learned vector for its
# *place*, because attention, which comes next, doesn't see any order.

# %%
patches = encoder.conv1(features).transpose(1, 2)  # (1, 100, width)
cls = (encoder.class_embedding + encoder.scale_projection(size))[:, None]  # (1, 1, width)
tokens = encoder.ln_pre(torch.cat([cls, patches], dim=1) + encoder.positional_embedding)
torch.testing.assert_close(tokens, encoder.embed_patches(window))
print("into the transformer:", tuple(tokens.shape))

# %% [markdown]
# **Predict:** if the places are all zero and someone shuffles the patches, does the encoder's answer change?

# %%
import copy

placeless = copy.deepcopy(encoder)
placeless.positional_embedding.zero_()
order = torch.randperm(100, generator=run.generator())
shuffled = patches[:, order]
answers = [placeless.transformer(placeless.ln_pre(torch.cat([cls, p], dim=1)))[:, 0] for p in (patches, shuffled)]
print("without places, shuffling changes the CLS token:", not torch.allclose(*answers, rtol=1e-3, atol=1e-4))

# %% [markdown]
# ## 3. Attention
#
# Each token asks a question (its *query*), offers a label (its *key*) and has something to tell (its *value*). A query
# that fits a key takes much of that token's value. With three tokens of width 2, everything can be done by hand:

# %%
import math

query = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
key = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
value = torch.tensor([[10.0, 0.0], [0.0, 10.0], [5.0, 5.0]])
fit = query @ key.T / math.sqrt(2)  # (3, 3): how well each question fits each label
share = fit.softmax(dim=1)  # each row adds up to 1
for name, table in {"fit": fit, "share": share, "answer": share @ value}.items():
    print(f"{name:7}", [[round(number, 2) for number in row] for row in table.tolist()])


# %% [markdown]
# The first token fits the first key best, so its answer is mostly the first value. The division by $\sqrt{2}$, the
# root of the width, keeps the fits from growing with the width; without it the softmax of wide tokens would pick a
# single winner and pass on no gradient:


# %%
def largest_share(width, divide):
    """Return the largest of 100 shares, the mean over 200 random queries of a given width."""
    q, k = (torch.randn(n, width, generator=draw) for n in (200, 100))
    return (q @ k.T / (math.sqrt(width) if divide else 1)).softmax(dim=1).amax(dim=1).mean()


draw = run.generator()
for width in (2, 32, 192):
    print(f"width {width:3}: divided {largest_share(width, True):.2f}, not divided {largest_share(width, False):.2f}")


# %% [markdown]
# Several *heads* do this side by side on slices of the width, so that one can look at the rhythm while another looks
# at the shape. All that torch's `MultiheadAttention` holds are two matrices and their biases: one that makes queries,
# keys and values of a token, and one that mixes what the heads found. In ten lines, and equal to torch's:


# %%
def attention(x, layer, heads):
    """Multi-head self-attention. x: (batch, token, width); layer: torch's nn.MultiheadAttention."""
    batch, length, width = x.shape
    mixed = x @ layer.in_proj_weight.T + layer.in_proj_bias  # query, key, value side by side
    q, k, v = mixed.view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
    share = (q @ k.transpose(2, 3) / math.sqrt(width // heads)).softmax(dim=-1)  # (B, H, T, T)
    return layer.out_proj((share @ v).transpose(1, 2).flatten(2))  # heads side by side again


own = torch.nn.MultiheadAttention(12, 3, batch_first=True)  # torch's, with random weights
three = torch.randn(2, 7, 12, generator=run.generator())  # (batch, token, width)
torch.testing.assert_close(attention(three, own, 3), own(three, three, three)[0], rtol=1e-4, atol=1e-5)
print("attention by hand equals torch's")

# %% [markdown]
# A *block* is attention and then a small network on each token, each with a norm before and a shortcut around:


# %%
def block(x, weights, heads):
    """One transformer block with its norms in front."""
    x = x + attention(weights.ln_1(x), weights.attn, heads)
    return x + weights.mlp(weights.ln_2(x))


first = encoder.transformer.resblocks[0]
torch.testing.assert_close(block(tokens, first, config.heads), first(tokens), rtol=1e-3, atol=1e-4)
print("one block by hand equals open_clip's, with", config.heads, "heads of width", config.width // config.heads)

# %% [markdown]
# ### What can a token know?
#
# The samples that can move a token are its *receptive field*. Automatic differentiation finds it: wherever the token's
# gradient with respect to the signal is not zero. (For an encoder without stem and scaling, as the paper's is; a norm
# over all of a lead lets each sample touch every other a little.)
#
# **Predict:** how many of the 1,000 samples reach one patch's token before the first block, and how many after it? And
# how many after one layer of a convolution over three neighboring patches?

# %%
from dataclasses import replace

plain = EcgEncoder(replace(config, stem_channels=0, keep_scale=False)).eval()
signal = window.clone().requires_grad_()


def field(tokens):
    """Return how strongly each moment moves one token: (samples,)."""
    return torch.autograd.grad(tokens[0, PATCH + 1].square().sum(), signal, retain_graph=True)[0].abs().sum(1)[0]


before = plain.embed_patches(signal)
after = plain.transformer.resblocks[0](before)
cut_out, attended = field(before), field(after)
print("samples that reach the token before a block:", int((cut_out > 0).sum()))
print("after one block:                            ", int((attended > 0).sum()))
print("after one convolution over three patches:   ", 3 * config.patch_samples)
run.show(f05.receptive_field, cut_out.numpy(), attended.numpy(), window[0, 1].numpy(), PATCH, config)

# %% [markdown]
# One block, and every token can hear from every moment; a convolution over three patches needs fifty layers from one
# end to the other. That is what attention is for: a rhythm is about moments far apart. It is also why a transformer
# must learn from data what a convolution knows by its form, that neighbors matter most.

# %% [markdown]
# ## 4. The whole encoder
#
# Four blocks in a row, then a norm and a matrix on the CLS token. That is the whole encoder, and it equals the
# library's. Two things come out: an **embedding** that will meet the report's embedding (notebook 06), and the **101
# tokens** of the last block, before the final norm, that the language model will read (notebook 11).

# %%
x = tokens
for weights in encoder.transformer.resblocks:
    x = block(x, weights, config.heads)
embedding = encoder.ln_post(x[:, 0]) @ encoder.proj

out = encoder(window)
torch.testing.assert_close(embedding, out.embedding, rtol=1e-3, atol=1e-4)
torch.testing.assert_close(x, out.tokens, rtol=1e-3, atol=1e-4)
print("embedding:", tuple(out.embedding.shape), " tokens:", tuple(out.tokens.shape), " equal to the library: True")

# %% [markdown]
# The library doesn't rewrite the blocks either: they are open_clip's own `Transformer`. What is ours is the patch
# embedding in time and the choice of what is returned. A test of the library builds open_clip's vision transformer
# over a picture one pixel high, gives it the same weights, and compares.
#
# ## 5. How large is it?
#
# One can count the parameters before building anything. With width $w$, a block has $3w^2 + 3w$ for query, key and
# value, $w^2 + w$ for the projection out, $8w^2 + 5w$ for the network (its hidden width is $4w$), and $4w$ for two
# norms: $12w^2 + 13w$ in all. The released code of ECG-Chat has an encoder of 85,989,888 parameters. On torch's *meta
# device* a model has shapes but no memory, so the paper's encoder can be built on any laptop:

# %%
from ecgchat_lib.coca.model import count_parameters

with torch.device("meta"):
    paper = EcgEncoder(PAPER.encoder)
w = PAPER.encoder.width
print("one block:", f"{12 * w * w + 13 * w:,}", "=", f"{count_parameters(paper.transformer.resblocks[0]):,}")
print("the paper's encoder:", f"{count_parameters(paper):,}", " the mini's:", f"{count_parameters(encoder):,}")
assert count_parameters(paper) == 85_989_888

# %%
run.show(f05.parameter_shares, paper, encoder)

# %% [markdown]
# **Predict:** which part would grow most if the patches were five times shorter? (The number of tokens enters in one
# place only; the *time* that attention takes grows with its square.)
#
# ## 6. What trained tokens look like
#
# An untrained encoder gives vectors too. The picture shows how alike the 100 patch tokens of one recording are to one
# another, from random weights and from the shipped mini weights, which notebook 07 explains.

# %%
from ecgchat_lib.coca.checkpoint import load_mini
from ecgchat_lib.coca.embed import encoder_tokens

mini = load_mini()
its_window = recording_windows([recording], mini.config.encoder)  # by its own front end
trained = encoder_tokens(its_window, mini)[0, 1:].numpy()  # (100, width)
untrained = encoder(window).tokens[0, 1:].numpy()
run.show(f05.token_likeness, untrained, trained, window[0, 1].numpy(), RECORD)

# %% [markdown]
# Lines beside the diagonal are one, two, three beats away from it: patches at the same place of the beat are alike.
# Random weights show them already, faintly, because alike patches give alike vectors. Training makes them sharp and
# sets the beats apart from what lies between them. Nobody told the encoder what a beat is; it helps to match reports.
#
# And the CLS token? Its embedding is all that the report will be compared with, so it must take what matters from the
# others. The shares of its attention say from where. They are no explanation of a finding (notebook 08 asks that
# question with more care), but they show how the heads share the work.


# %%
def cls_shares(x, layer, heads):
    """Return the share that the CLS token gives to each token, by head: (head, token)."""
    q, k, _ = (x @ layer.in_proj_weight.T + layer.in_proj_bias).chunk(3, dim=-1)
    q, k = (part[0].view(-1, heads, part.shape[-1] // heads).transpose(0, 1) for part in (q, k))  # (H, T, D)
    return (q[:, :1] @ k.transpose(1, 2) / math.sqrt(k.shape[-1])).softmax(dim=-1)[:, 0]


with torch.inference_mode():
    x = mini.encoder.embed_patches(its_window)
    *earlier, last = mini.encoder.transformer.resblocks
    for weights in earlier:
        x = weights(x)
    shares = cls_shares(last.ln_1(x), last.attn, mini.config.encoder.heads)
print("each head's shares add up to", f"{shares.sum(dim=1).min():.4f}")
run.show(f05.cls_attention, shares[:, 1:].numpy(), its_window[0, 1].numpy(), RECORD)

# %% [markdown]
# ## Exercises
#
# ### Exercise 05.1 Cut into patches (★★☆, 10 min)
#
# Write `to_patches(ecg, size)`: (batch, lead, time) → (batch, patch, lead × size), so that row *p* holds all leads of
# patch *p*, lead after lead. No convolution.
#
# <details><summary>Hint 1</summary>Give the time axis two axes first: patch and sample.</details>
# <details><summary>Hint 2</summary>Then move the patch axis in front of the lead axis before you flatten.</details>


# %% tags=["solution"]
def to_patches(ecg, size):
    # <solution>
    batch, leads, time = ecg.shape
    return ecg.reshape(batch, leads, time // size, size).permute(0, 2, 1, 3).flatten(2)
    # </solution>


# %%
check("05.1", to_patches)

# %% [markdown]
# ### Exercise 05.2 Count before you build (★★☆, 15 min)
#
# Write `encoder_parameters(width, layers, patch_samples, tokens, embedding)`: the parameters of an encoder without
# stem, for 12 leads. Parts: the patch matrix (no bias), CLS, places, a norm before and one after, the blocks, the
# projection (no bias). For the paper's sizes it is 85,989,888.
#
# <details><summary>Hint 1</summary>A norm has a weight and a bias: 2 × width.</details>
# <details><summary>Hint 2</summary>A place is a vector of length <code>width</code> for each token, CLS
# included.</details>


# %% tags=["solution"]
def encoder_parameters(width, layers, patch_samples, tokens, embedding):
    # <solution>
    patch = 12 * patch_samples * width
    block = 12 * width**2 + 13 * width
    return patch + width + tokens * width + 4 * width + layers * block + width * embedding
    # </solution>


# %%
check("05.2", encoder_parameters)

# %% [markdown]
# ### Exercise 05.3 Several heads (★★★, 20 min)
#
# Write `heads_attend(query, key, value, heads)` for three matrices (token, width): cut the width into `heads` equal
# slices, let each slice attend by itself, and put the results side by side again: (token, width).
#
# <details><summary>Hint 1</summary><code>query.view(tokens, heads, -1)</code> cuts the width; then the heads must come
# first, so that a matrix product works head by head: <code>.transpose(0, 1)</code>.</details>
# <details><summary>Hint 2</summary>Divide by the root of a <em>slice's</em> width. On the way back, transpose before
# you reshape.</details>


# %% tags=["solution"]
def heads_attend(query, key, value, heads):
    # <solution>
    tokens, width = query.shape
    q, k, v = (x.view(tokens, heads, width // heads).transpose(0, 1) for x in (query, key, value))
    share = (q @ k.transpose(1, 2) / (width // heads) ** 0.5).softmax(dim=2)
    return (share @ v).transpose(0, 1).reshape(tokens, width)
    # </solution>


# %%
check("05.3", heads_attend)

# %% [markdown]
# ## Recap
#
# - An ECG is cut into patches that hold all leads, and one matrix embeds them (exercise 05.1).
# - The size of the encoder can be counted on paper (exercise 05.2).
# - Heads attend on slices of the width, and one block lets every token hear from every moment (exercise 05.3,
#   section 3).
# - Patch embedding, places, attention and blocks by hand equal the library's encoder (section 4).
#
# **What to copy.** `ecgchat_lib/coca/encoder.py` with `coca/config.py`: it needs torch and open_clip, and nothing else
# of the course. `coca/preprocess.py` is the front end.
#
# **Common errors**
#
# - *(batch, time, lead) instead of (batch, lead, time).* The encoder refuses wrong shapes instead of broadcasting.
# - *Another front end than in training.* No error, only nonsense. Use `front_end(signals, model.config.encoder)`.
# - *The wrong tokens.* The language model reads the tokens before the final norm, CLS included; the caption decoder
#   reads the patch tokens after it.
# - *`model.train()` left on.* With patch dropout there are fewer tokens then. `embed_windows` switches it off.
#
# ## References
#
# - Dosovitskiy et al. 2021, An Image is Worth 16×16 Words, [arXiv 2010.11929](https://arxiv.org/abs/2010.11929).
# - Vaswani et al. 2017, Attention Is All You Need, [arXiv 1706.03762](https://arxiv.org/abs/1706.03762).
# - Xiao et al. 2021, Early Convolutions Help Transformers See Better,
#   [arXiv 2106.14881](https://arxiv.org/abs/2106.14881).
# - Li et al. 2023, Scaling Language-Image Pre-training via Masking (patch dropout),
#   [arXiv 2212.00794](https://arxiv.org/abs/2212.00794).
# - Zhao et al. 2024, ECG-Chat, [arXiv 2408.08849](https://arxiv.org/abs/2408.08849): the paper that this course
#   rebuilds.
# - Data: CPSC2018, Liu et al. 2018, [doi:10.1166/jmihi.2018.2442](https://doi.org/10.1166/jmihi.2018.2442), CC BY 4.0.
#   Mini weights: trained on PTB-XL, Wagner et al. 2020,
#   [doi:10.1038/s41597-020-0495-6](https://doi.org/10.1038/s41597-020-0495-6), CC BY 4.0.

# %%
run.finish({"paper_encoder_parameters": count_parameters(paper), "mini_encoder_parameters": count_parameters(encoder)})

"""What fine-tuning with LoRA will take, before anything is allocated: device memory by kind, and host memory to load.

Counted from a transformers config alone: weights on torch's "meta" device, where tensors have shapes but no storage,
and activations from what the operations of a Llama block keep for their backward pass. It isn't a measurement; `Peak`
is one, and the tests hold both beside each other. Taught in: 12 §3.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch

from ecgchat_lib.chat.language_model import NF4_BITS_PER_WEIGHT, model_folder, quiet_loading
from ecgchat_lib.errors import EcgChatError, ParameterError

Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]  # TrainConfig's
EIGHT_BIT = 2 * (1 + 4 / 256)  # a byte, and a float32 scale per 256
STATE_BYTES: dict[str, float] = {"adamw": 8.0, "adamw_8bit": EIGHT_BIT, "paged_adamw_8bit": EIGHT_BIT}  # two moments
ADAPTED_PER_BLOCK = 7  # q, k, v, o, gate, up, down
CUDA_CONTEXT = 500_000_000  # kernels and driver; outside of torch's allocator
CUDA_WORKSPACE = 100_000_000  # cuBLAS and cuBLASLt
CUDA_SPREAD = 0.05  # of what a step allocates and frees: blocks are rounded up to 512 bytes, segments to 2 or 20 MB
HOST_PROCESS = 2_500_000_000  # Python, torch, transformers and CUDA's libraries in host memory
HEADER = 4 * (16 + 256 + 1)  # bytes of tables that each NF4 layer holds: 16 levels, 256 scale codes, an offset

# what torch can use, a little less than what is printed on the card; host memory where it is known (Colab's)
GPUS: dict[str, tuple[float, float | None, torch.dtype]] = {
    "T4": (15.0e9, 12.7e9, torch.float16),
    "L4": (22.5e9, 53.0e9, torch.bfloat16),
    "A100 40": (40.0e9, 83.5e9, torch.bfloat16),
    "A100 80": (80.0e9, None, torch.bfloat16),
    "H100": (80.0e9, None, torch.bfloat16),
}
# published sizes: hidden width, width inside the MLP, blocks, heads (Touvron et al. 2023, arXiv 2307.09288)
SIZES = {"vicuna-7b": (4096, 11008, 32, 32), "vicuna-13b": (5120, 13824, 40, 40)}
VICUNA_VOCABULARY = 32000


@dataclass(frozen=True)
class Settings:
    """What the plan depends on beside the config. `plan` takes these as keywords.

    Attributes:
        quantized: NF4 linear layers with double quantization, else all in `dtype`.
        dtype: number type of products and of what isn't quantized. Adapters and projector are float32, and in 16 bits
            the forward pass runs under autocast, as `train_chat` does it.
        rank: LoRA's rank on every linear layer but the head.
        dropout: share of inputs that an adapter drops in training.
        batch: sequences per forward pass.
        length: places per sequence: words and ECG tokens.
        answers: answers per sequence.
        answer_tokens: learned tokens per answer; the head is applied to these alone.
        accumulate: forward passes per optimizer step; from 2 on, gradients stay between them.
        checkpointing: keep only each block's input and compute the block again in the backward pass.
        optimizer: "adamw" (float32 moments), "adamw_8bit" or "paged_adamw_8bit" (the same on the device until that is
            full).
        ecg_tokens: ECG tokens per sequence.
        ecg_width: length of one ECG token; 0: no projector.
        device: "cuda" adds what CUDA itself takes, "cpu" doesn't.
    """

    quantized: bool
    dtype: torch.dtype = torch.float32
    rank: int = 8
    dropout: float = 0.05
    batch: int = 1
    length: int = 256
    answers: int = 1
    answer_tokens: int = 48
    accumulate: int = 1
    checkpointing: bool = False
    optimizer: Optimizer = "adamw"
    ecg_tokens: int = 101
    ecg_width: int = 192
    device: str = "cuda"

    def __post_init__(self) -> None:
        names = ("rank", "batch", "length", "answers", "answer_tokens", "accumulate")
        small = [f"{name}={getattr(self, name)}" for name in names if getattr(self, name) < 1]
        if small:
            raise ParameterError(f"plan: {', '.join(small)}: expected at least 1 each")
        if self.optimizer not in STATE_BYTES:
            raise ParameterError(f"plan: optimizer={self.optimizer!r}, expected one of {', '.join(STATE_BYTES)}")
        if self.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ParameterError(f"plan: dtype={self.dtype}, expected float32, float16 or bfloat16")


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes at the moment of a training step that needs most.

    Attributes:
        parameters: number of frozen weights.
        trainable: number of adapter weights.
        weights: frozen weights.
        adapters: adapters and projector.
        gradients: their gradients at that moment.
        optimizer: the optimizer's moments.
        activations: what is kept for the backward pass.
        logits: the head's output, its logarithm and their gradients.
        temporary: gradients on their way, and one layer's weights taken out of NF4.
        reserve: CUDA's context, workspace, and rounding; 0 on a CPU.
        host: host memory at most while loading (with the weights themselves on a CPU). Pages of the files that the
            system keeps aren't counted; it drops them when memory is short.
        moment: which moment it is.
        settings: what was asked for.
        config: the transformers config.
    """

    parameters: int
    trainable: int
    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    temporary: int
    reserve: int
    host: int
    moment: str
    settings: Settings
    config: Any = dataclasses.field(repr=False, compare=False)

    @property
    def parts(self) -> dict[str, int]:
        """Bytes on the device by kind."""
        kinds = ("weights", "adapters", "gradients", "optimizer", "activations", "logits", "temporary", "reserve")
        return {kind: getattr(self, kind) for kind in kinds}

    @property
    def total(self) -> int:
        """All bytes on the device."""
        return sum(self.parts.values())

    def fits(self, memory: float, host: float | None = None) -> bool:
        """Whether it fits into so many bytes on the device and in the host."""
        return self.total <= memory and (host is None or self.host <= host)

    def lines(self) -> list[str]:
        """Return the plan for people."""
        s = self.settings
        form = "NF4" if s.quantized else _dtype_name(s.dtype)
        kept = "each block's input" if s.checkpointing else "all that a backward pass needs"
        head = [
            f"model     {self.parameters / 1e6:,.1f} M weights in {form}, products in {_dtype_name(s.dtype)}",
            f"adapters  {self.trainable / 1e6:,.2f} M, rank {s.rank}, {s.optimizer}",
            f"batch     {s.batch} of {s.length} places, {s.answers * s.answer_tokens} learned each; keeps {kept}",
        ]
        parts = [f"  {kind:12} {_gigabytes(size)}" for kind, size in self.parts.items() if size]
        return [
            *head,
            f"memory    {_gigabytes(self.total)} on the device at most, in {self.moment}",
            *parts,
            f"host      {_gigabytes(self.host)} while loading",
        ]

    def remedies(self) -> list[tuple[str, int]]:
        """Return what could be given up, cheapest first, and how many bytes each would save alone."""
        found = []
        for words, changes in _changes(self.settings):
            saved = self.total - plan(self.config, **vars(dataclasses.replace(self.settings, **changes))).total
            if saved > 0:
                found.append((words, saved))
        return found

    def check(self, memory: float, host: float | None = None, *, name: str = "the device") -> None:
        """Check that it fits.

        Args:
            memory: bytes on the device.
            host: bytes of host memory, if known.
            name: of the device, for the message.

        Raises:
            EcgChatError: it doesn't fit, with each thing that could be given up and what it saves.
        """
        if host is not None and self.host > host:
            raise EcgChatError(
                f"loading needs {_gigabytes(self.host)} of host memory, {_gigabytes(host)} are there. "
                "Load in NF4 from safetensors in several files, straight onto the GPU"
            )
        if self.total > memory:
            what = "; ".join(f"{words} saves {_gigabytes(saved)}" for words, saved in self.remedies())
            remedy = f"What helps: {what}" if what else "Choose a smaller model or a larger GPU"
            raise EcgChatError(
                f"the training needs {_gigabytes(self.total)} on {name}, {_gigabytes(memory)} are there. {remedy}"
            )


def plan(config: Any, **settings: Any) -> MemoryPlan:
    """Compute the memory of LoRA training from a model's config, before anything is allocated.

    The peak is the largest of four moments: the loss (all activations and the logits), the backward pass of the last
    block (all activations and a block's temporaries), that of the first block (nearly all gradients), and the
    optimizer's step.

    Args:
        config: a transformers config of a Llama-like model.
        **settings: the fields of `Settings`.

    Raises:
        ParameterError: a setting is out of range, or the config isn't Llama-like.
    """
    try:
        s = Settings(**settings)
    except TypeError as error:
        known = ", ".join(field.name for field in dataclasses.fields(Settings))
        raise ParameterError(f"plan: {error}. Settings are {known}") from error
    shape = _shape(config)
    count = _count(config.to_json_string())
    size = s.dtype.itemsize
    in_linears = round(count.in_linears * NF4_BITS_PER_WEIGHT / 8) + count.linears * HEADER
    weights = in_linears if s.quantized else count.in_linears * size
    weights += (count.parameters - count.in_linears) * size
    trainable = s.rank * count.linear_sides
    projector = _projector_numbers(s.ecg_width, shape.hidden)
    trained = trainable + projector
    moments = _moments(s, shape, trained, count)
    moment, (gradients, activations, logits, temporary) = max(moments.items(), key=lambda item: sum(item[1]))
    rounding = round(CUDA_SPREAD * (gradients + activations + logits + temporary))
    on_gpu = s.device == "cuda"
    return MemoryPlan(
        parameters=count.parameters,
        trainable=trainable,
        weights=weights,
        adapters=4 * trained,
        gradients=gradients,
        optimizer=round(STATE_BYTES[s.optimizer] * trained),
        activations=activations,
        logits=logits,
        temporary=temporary,
        reserve=CUDA_CONTEXT + CUDA_WORKSPACE + rounding if on_gpu else 0,
        host=HOST_PROCESS + 2 * count.largest * 4 if on_gpu else _loading(s, weights, count),
        moment=moment,
        settings=s,
        config=config,
    )


def give_up(config: Any, memory: float, host: float | None = None, **settings: Any) -> tuple[list[str], MemoryPlan]:
    """Give up one setting after the other, the cheapest first, until the training fits.

    Args:
        config: a transformers config.
        memory: bytes on the device.
        host: bytes of host memory, if known.
        **settings: the fields of `Settings` to start from.

    Returns:
        What was given up, in words, and the plan that fits; the last plan if none does.
    """
    found = plan(config, **settings)
    given: list[str] = []
    while not found.fits(memory, host):
        for words, changes in _changes(found.settings):
            less = plan(config, **vars(dataclasses.replace(found.settings, **changes)))
            if less.total < found.total or less.host < found.host:
                given.append(words)
                found = less
                break
        else:
            return given, found
    return given, found


def known_config(name: str) -> Any:
    """Return the config of "vicuna-7b" or "vicuna-13b" from their published sizes, any other part's from its folder.

    Raises:
        MissingPartError: the part isn't on this machine.
    """
    from transformers import AutoConfig, LlamaConfig

    if name not in SIZES:
        return AutoConfig.from_pretrained(model_folder(name)[0])
    hidden, middle, blocks, heads = SIZES[name]
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=middle,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=VICUNA_VOCABULARY,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )


class Peak:
    """Measures the most bytes that torch holds at once within a `with` block, beyond what it held before.

    On a CPU it reads each allocation and release that torch's allocator reports to the profiler, so tensors inside of
    an operation count, too, and so do files mapped into memory; what other threads allocate doesn't. On CUDA it takes
    the caching allocator's own statistics.

    Attributes:
        bytes: after the block.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.bytes = 0

    def __enter__(self) -> Peak:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._profile = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
            )
            self._profile.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
            return
        self._profile.__exit__(*error)
        inner: Any = self._profile.profiler
        events = [event for event in inner.kineto_results.events() if event.name() == "[memory]"]
        held = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            self.bytes = max(self.bytes, held)


@dataclass(frozen=True)
class _Count:
    """What a model on the meta device counts: numbers, not bytes."""

    parameters: int
    in_linears: int  # weights of all linear layers but the head
    linears: int
    linear_sides: int  # sum of in + out over these
    largest: int  # numbers of the largest tensor
    largest_linear: int


@lru_cache(maxsize=32)
def _count(config_json: str) -> _Count:
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = json.loads(config_json)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"), quiet_loading():
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return _Count(
        parameters=sum(p.numel() for p in model.parameters()),  # a tied head counts once
        in_linears=sum(m.weight.numel() for m in linears),
        linears=len(linears),
        linear_sides=sum(m.in_features + m.out_features for m in linears),
        largest=max(p.numel() for p in model.parameters()),
        largest_linear=max(m.weight.numel() for m in linears),
    )


@dataclass(frozen=True)
class _Shape:
    hidden: int
    middle: int
    blocks: int
    heads: int
    head_width: int
    vocabulary: int


def _shape(config: Any) -> _Shape:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    missing = [name for name in names if not isinstance(getattr(config, name, None), int)]
    if missing:
        raise ParameterError(
            f"plan: a config of type {getattr(config, 'model_type', type(config).__name__)} without "
            f"{', '.join(missing)}; expected a Llama-like one"
        )
    hidden, middle, blocks, heads, vocabulary = (getattr(config, name) for name in names)
    return _Shape(hidden, middle, blocks, heads, getattr(config, "head_dim", None) or hidden // heads, vocabulary)


def _projector_numbers(width: int, hidden: int) -> int:
    """Count `Projector`'s numbers: a LayerNorm, and two linear layers with bias."""
    return 2 * width + (width + 1) * hidden + (hidden + 1) * hidden if width else 0


def _kept_by_block(s: Settings, shape: _Shape) -> int:
    """Return the bytes that one block keeps per place for its backward pass, as transformers and peft compute it.

    - Both norms compute in float32 and keep their input so; in 16 bits that is a copy.
    - Attention keeps queries, keys, values and its output (keys and values repeated for each head), a logarithm per
      head, and the mask, which each block turns into numbers.
    - The MLP keeps the gate before and after its activation, and the other branch.
    - Each adapter keeps its input, and the r numbers between its two matrices. q, k and v share one input, gate and up
      another, and the output's is attention's; but with dropout each has a dropped copy and a mask of its own, and
      beside weights of 16 bits that aren't quantized peft makes a copy for each.
    """
    size, h, f = s.dtype.itemsize, shape.hidden, shape.middle
    attention = shape.heads * shape.head_width
    norms = 2 * (4 * h + 4)
    kept = 4 * size * attention + 4 * shape.heads + size * s.length
    mlp = 3 * size * f
    alone = s.dropout or _converts(s)
    inputs = (size + _mask_bytes(s)) * (5 * h + attention + f) if alone else size * (2 * h + f)
    return norms + kept + mlp + inputs + size * s.rank * ADAPTED_PER_BLOCK


def _temporary(s: Settings, shape: _Shape, count: _Count) -> int:
    """Return the bytes that come and go while a block is computed again and its backward pass begins, in the MLP.

    That is beyond all that the block keeps, so what isn't kept yet or isn't any more counts against it.
    """
    size, f, h, m = s.dtype.itemsize, shape.middle, shape.hidden, _mask_bytes(s)
    places, converted = s.batch * s.length, (8 if s.dropout else 4) * f if _converts(s) else 0
    # forward: the second branch's adapter before and after its scale; then the last layer's input beside its copy
    branch = (size - m) * f + (2 * size * h if size < 4 else size * h if s.dropout else 0)
    last = size * (f + 2 * h) + converted if s.dropout or converted else size * h
    # backward: the adapter's input gradient; then the layer itself, its weights out of NF4; then the two branches
    adapter = max(size * f, converted)
    dequantized = count.largest_linear * size + count.largest_linear // 64 * 4 if s.quantized else 0
    layer = places * (size - m) * f + dequantized
    product = (2 * size - m) * f
    return places * size * h + max(places * max(branch, last, adapter, product), layer)


def _converts(s: Settings) -> bool:
    """Whether peft turns each adapter's input into float32: not beside NF4 layers under CUDA's autocast."""
    return s.dtype.itemsize < 4 and not (s.quantized and s.device == "cuda")


def _mask_bytes(s: Settings) -> int:
    """Bytes that dropout keeps per number beside the dropped copy: a flag on CUDA, the factor itself on a CPU."""
    if not s.dropout:
        return 0
    return 1 if s.device == "cuda" else 4 if _converts(s) else s.dtype.itemsize


def _moments(s: Settings, shape: _Shape, trained: int, count: _Count) -> dict[str, tuple[int, int, int, int]]:
    """Return (gradients, activations, logits, temporary) of the moments that may be the peak, in bytes."""
    size, places = s.dtype.itemsize, s.batch * s.length
    block = places * _kept_by_block(s, shape)
    if size < 4:  # autocast's 16-bit copies of the adapters
        block += size * s.rank * count.linear_sides // shape.blocks
    entry = places * size * shape.hidden
    ends = places * (4 * shape.hidden + 4 + 2 * size * shape.head_width)  # the last norm's input, and the angles
    if s.ecg_width:
        ends += 4 * s.batch * s.ecg_tokens * 2 * (s.ecg_width + shape.hidden)
    if s.checkpointing:
        kept, inner = ends + shape.blocks * entry, block - (entry if size == 4 else 0)  # in float32, the same tensor
    else:
        kept, inner = ends + shape.blocks * block, 0
    first = block + (entry if s.checkpointing and size < 4 else 0)
    learned = s.batch * min(s.length, s.answers * s.answer_tokens)
    logits = 3 * 4 * learned * shape.vocabulary  # the log probabilities, their gradient, and the logits' gradient
    temporary = _temporary(s, shape, count)
    gradients = 4 * trained
    above = 4 * s.rank * count.linear_sides * (shape.blocks - 1) // shape.blocks  # all blocks but the first
    held = gradients if s.accumulate > 1 else 0
    roots = gradients if s.device == "cuda" else 2 * 4 * _largest_trained(s, shape)  # CUDA: of all tensors at once
    return {
        "the loss": (held, kept, logits, 0),
        "the backward pass of the last block": (held, kept + inner, 0, temporary),
        "the backward pass of the first block": (gradients if s.accumulate > 1 else above, ends + first, 0, temporary),
        "the optimizer's step": (gradients, 0, 0, roots if s.optimizer == "adamw" else 0),
    }


def _largest_trained(s: Settings, shape: _Shape) -> int:
    return max(s.rank * max(shape.middle, shape.hidden), shape.hidden**2 if s.ecg_width else 0)


def _loading(s: Settings, weights: int, count: _Count) -> int:
    """Return the bytes of host memory while loading onto a CPU: the weights so far and a tensor on its way.

    bitsandbytes' quantization on a CPU makes copies of that tensor: in float32, divided by its scales, and clamped.
    """
    on_its_way = max(2 * count.largest, 4 * count.largest_linear) * 4 if s.quantized else 0
    return weights + on_its_way


def _changes(s: Settings) -> list[tuple[str, dict[str, Any]]]:
    """Return what could be changed to save memory, from what costs nothing but time to what costs quality."""
    changes: list[tuple[str, bool, dict[str, Any]]] = [
        ("NF4 weights", not s.quantized, {"quantized": True}),
        ("gradient checkpointing (a third more time)", not s.checkpointing, {"checkpointing": True}),
        (
            f"batch {s.batch // 2} (accumulate {2 * s.accumulate})",
            s.batch > 1,
            {"batch": s.batch // 2, "accumulate": 2 * s.accumulate},
        ),
        ("8-bit paged AdamW", s.optimizer == "adamw", {"optimizer": "paged_adamw_8bit"}),
        (f"rank {s.rank // 2}", s.rank > 4, {"rank": s.rank // 2}),
        (f"length {s.length // 2}", s.length > 256, {"length": s.length // 2}),
    ]
    return [(words, change) for words, possible, change in changes if possible]


def table(names: Sequence[str], **settings: Any) -> list[dict[str, Any]]:
    """Return a row per model and GPU of `GPUS`: what it needs as asked, and what must be given up for it to fit.

    Args:
        names: parts, as `known_config` takes them.
        **settings: the fields of `Settings`; the number type is each GPU's own.

    Returns:
        Rows of "model", "gpu", "asked" and "plan" (the plan as asked and the one that fits), "given_up", "fits".
    """
    rows = []
    for name in names:
        config = known_config(name)
        for gpu, (memory, host, dtype) in GPUS.items():
            asked = plan(config, **{**settings, "dtype": dtype})
            given, found = give_up(config, memory, host, **vars(asked.settings))
            fits = found.fits(memory, host)
            rows.append({"model": name, "gpu": gpu, "asked": asked, "plan": found, "given_up": given, "fits": fits})
    return rows


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"

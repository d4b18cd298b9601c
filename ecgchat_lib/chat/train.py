"""Training the chat model: stage 1 trains the projector alone, stage 2 the projector and LoRA adapters.

A plain loop with AdamW, warm-up, cosine and clipping; accelerate takes care of half precision and of several processes.
The encoder isn't here: its tokens don't change, so they are computed once and passed in. What a run saves so that it
can be killed stands in `train_state.py`, the order of the examples in `batches.py`. Taught in: 11 §4 and 12 §4.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from tqdm import tqdm

from ecgchat_lib.chat.batches import (
    Example,
    TokenTable,
    answer_tokens,
    batch_order,
    check_lengths,
    content_hash,
    fingerprint,
    sequence_lengths,
)
from ecgchat_lib.chat.language_model import compute_dtype, quiet_loading
from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.chat.plan import Optimizer
from ecgchat_lib.chat.template import Encoded
from ecgchat_lib.chat.train_state import BestWeights, TrainState, trained_parameters
from ecgchat_lib.coca.curves import Curves
from ecgchat_lib.errors import EcgChatError, ParameterError

__all__ = [
    "Example",
    "TrainConfig",
    "add_lora",
    "check_gradients",
    "linear_layers",
    "train_chat",
    "train_projector",
    "trained_parameters",
]

Precision = Literal["auto", "no", "bf16", "fp16"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the plainest loop there is; each other setting has its reason beside it.

    Attributes:
        steps: optimizer steps.
        batch: sequences per forward pass, in each process.
        accumulate: forward passes per optimizer step.
        learning_rate: highest learning rate of the adapters.
        projector_rate: highest learning rate of the projector; the same if None.
        warmup: share of the steps with a rising rate.
        clip: longest gradient (norm over all trained weights).
        seed: order of the examples, and dropout.
        precision: number type of the products: "bf16"; "fp16", with a scaler that keeps small gradients from becoming
            zero; "no" for float32. "auto": what the model's device multiplies fast (`compute_dtype`), float32 on a CPU.
        checkpoint_blocks: forget what happens inside a transformer block and compute it again when it is needed
            (gradient checkpointing): much less memory, a third more time, the same gradients.
        group_lengths: batches of sequences of like length, which need less padding.
        optimizer: "adamw"; with CUDA also bitsandbytes' "adamw_8bit", whose moments take a quarter of the memory, and
            "paged_adamw_8bit", which moves them to the host's memory when the device's is full.
        fused: AdamW in one pass over each tensor: faster, rounded a little differently.
        token_mean: a step's loss is the mean over all answer tokens of its passes and processes. Otherwise it is the
            mean of the passes' means, where a token of a short answer weighs more, and one process with a larger
            batch isn't the same as two.
        max_length: most tokens of a sequence, its ECGs' tokens included; longer ones are an error. None: no limit.
        evaluate_every: steps between validations, if there is something to validate on; 0: at the end only.
        save_every: steps between saved states, if there is a folder.
    """

    steps: int
    batch: int = 4
    accumulate: int = 1
    learning_rate: float = 2e-4
    projector_rate: float | None = None
    warmup: float = 0.05
    clip: float = 1.0
    seed: int = 0
    precision: Precision = "auto"
    checkpoint_blocks: bool = False
    group_lengths: bool = False
    optimizer: Optimizer = "adamw"
    fused: bool = False
    token_mean: bool = False
    max_length: int | None = None
    evaluate_every: int = 0
    save_every: int = 50

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.accumulate, self.save_every) < 1 or self.evaluate_every < 0:
            raise ParameterError(
                f"steps={self.steps}, batch={self.batch}, accumulate={self.accumulate}, save_every={self.save_every}: "
                f"expected at least 1 each; evaluate_every={self.evaluate_every}: expected 0 or more"
            )
        if self.precision not in ("auto", "no", "bf16", "fp16"):
            raise ParameterError(f"precision={self.precision!r}: expected auto, no, bf16 or fp16")
        if self.optimizer not in ("adamw", "adamw_8bit", "paged_adamw_8bit"):
            raise ParameterError(f"optimizer={self.optimizer!r}: expected adamw, adamw_8bit or paged_adamw_8bit")
        if not (0 <= self.warmup <= 1 and self.clip > 0 and self.learning_rate > 0):
            raise ParameterError(
                f"warmup={self.warmup} must be in [0, 1], clip={self.clip} and learning_rate={self.learning_rate} "
                "above 0"
            )


def add_lora(chat: EcgChat, *, rank: int = 8, alpha: int = 16, dropout: float = 0.05, seed: int = 0) -> list[str]:
    """Put LoRA adapters on every linear layer of the language model but its head, and freeze the rest of it.

    Args:
        chat: the model, changed in place.
        rank: LoRA's rank r.
        alpha: LoRA's scale; an adapter adds (alpha / rank) B A x.
        dropout: share of inputs an adapter drops in training.
        seed: random start of the matrices A.

    Returns:
        Names of the adapted layers.

    Raises:
        EcgChatError: nothing was adapted, or not everything that should be.
    """
    from peft import LoraConfig, get_peft_model

    names = linear_layers(chat.language_model)
    if not names:
        raise EcgChatError("LoRA: the language model has no linear layer beside its head, expected some to adapt")
    torch.manual_seed(seed)
    kinds = sorted(
        {name.rpartition(".")[2] for name in names}
    )  # q_proj, k_proj, ...: peft matches the last part of a name
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=kinds, task_type="CAUSAL_LM")
    with quiet_loading():
        chat.language_model = get_peft_model(chat.language_model, config)
    adapted = sum(1 for name, _ in chat.language_model.named_modules() if name.endswith("lora_A"))
    if adapted != len(names):
        raise EcgChatError(f"LoRA: {adapted} layers adapted, expected {len(names)}")
    return names


def linear_layers(language_model: Any) -> list[str]:
    """Return the names of all linear layers (also NF4 ones) of a language model except its output head."""
    head = language_model.get_output_embeddings()
    return [
        name for name, module in language_model.named_modules() if isinstance(module, nn.Linear) and module is not head
    ]


def train_projector(
    chat: EcgChat,
    examples: Sequence[Example],
    ecg: TokenTable,
    config: TrainConfig,
    *,
    each_step: Callable[[int, float], None] | None = None,
    folder: Path | None = None,
    validation: Sequence[Example] = (),
    until: int | None = None,
) -> list[float]:
    """Stage 1: train the projector, with every weight of the language model frozen.

    Args:
        chat: the model, changed in place.
        examples: the conversations.
        ecg: (recordings, ecg tokens, width) from the encoder.
        config: how to train.
        each_step: called with the step's number and loss.
        folder: where the state and the curve are kept; a later call with the same settings goes on from there.
        validation: conversations to validate on; the weights with the lowest loss on them are the ones that stay.
        until: stop after this many steps in all, as a kill would.

    Returns:
        The loss of each step.

    Raises:
        EcgChatError: as `train_chat`.
    """
    for parameter in chat.language_model.parameters():
        parameter.requires_grad_(False)
    return _train(chat, examples, ecg, config, each_step, folder, validation, until)


def train_chat(
    chat: EcgChat,
    examples: Sequence[Example],
    ecg: TokenTable,
    config: TrainConfig,
    *,
    each_step: Callable[[int, float], None] | None = None,
    folder: Path | None = None,
    validation: Sequence[Example] = (),
    until: int | None = None,
) -> list[float]:
    """Stage 2: train the projector and the LoRA adapters that `add_lora` put there.

    After the second step every trained tensor must have had a gradient that isn't zero (LoRA's A gets none in the
    first step, since B starts at zero).

    Args:
        chat: the model with adapters, changed in place.
        examples: the conversations.
        ecg: (recordings, ecg tokens, width) from the encoder.
        config: how to train.
        each_step: called with the step's number and loss.
        folder: where the state and the curve are kept; a later call with the same settings goes on from there.
        validation: conversations to validate on; the weights with the lowest loss on them are the ones that stay.
        until: stop after this many steps in all, as a kill would.

    Returns:
        The loss of each step.

    Raises:
        EcgChatError: there are no adapters, a trained tensor gets no gradient, the loss isn't a number any more, or
            the folder holds another run's state.
        ParameterError: a sequence is too long, or the optimizer isn't for this device.
    """
    if not any("lora_" in name and p.requires_grad for name, p in chat.language_model.named_parameters()):
        raise EcgChatError("stage 2: the language model has no LoRA adapter. Call add_lora() first")
    return _train(chat, examples, ecg, config, each_step, folder, validation, until)


def check_gradients(chat: EcgChat) -> None:
    """Raise unless every trained tensor has a finite gradient that isn't all zero.

    Raises:
        EcgChatError: with the names of the tensors that learn nothing.
    """
    dead = [
        name
        for name, p in trained_parameters(chat).items()
        if p.grad is None or not torch.isfinite(p.grad).all() or not p.grad.any()
    ]
    if dead:
        raise EcgChatError(
            f"{len(dead)} trained tensors get no gradient, the first is {dead[0]}; expected one for all. "
            "Look for a layer that is frozen, unused, or computed under no_grad"
        )


class AnswerLoss(nn.Module):
    """The loss of one pass, as a module: what accelerate wraps for several processes and for half precision."""

    def __init__(self, chat: EcgChat) -> None:
        super().__init__()
        self.chat = chat

    def forward(self, encoded: Sequence[Encoded], ecg: torch.Tensor, divisor: float | None = None) -> torch.Tensor:
        """Return the mean cross entropy over the answers' tokens, or its sum divided by `divisor`."""
        if divisor is None:
            loss = self.chat(encoded, ecg)
        else:
            logits, targets = self.chat.answer_logits(self.chat.prepare(encoded, ecg))
            loss = nn.functional.cross_entropy(logits, targets, reduction="sum") / divisor
        if not len(ecg):  # several processes wait for a gradient of each tensor, here zero
            loss = loss + 0 * sum(p.sum() for p in self.chat.projector.parameters())
        return loss


def _train(
    chat: EcgChat,
    examples: Sequence[Example],
    ecg: TokenTable,
    config: TrainConfig,
    each_step: Callable[[int, float], None] | None,
    folder: Path | None,
    validation: Sequence[Example],
    until: int | None,
) -> list[float]:
    if not len(examples):
        raise EcgChatError("training: no examples, expected at least one")
    lengths = sequence_lengths(examples, ecg.shape[1])
    check_lengths(lengths, config.max_length)
    accelerator = make_accelerator(chat, config)
    world, rank = accelerator.num_processes, accelerator.process_index
    torch.manual_seed(config.seed + 1_000_003 * rank)  # dropout
    optimizer = _optimizer(chat, config)
    model, stepper = accelerator.prepare(AnswerLoss(chat), optimizer)
    stepper.zero_grad()  # what trained the projector before may have left a gradient
    content = content_hash(examples) if folder is not None else ""
    state = TrainState(chat, optimizer, accelerator, fingerprint(lengths), content)
    if folder is not None:
        state.load(folder, config)
    best = BestWeights(chat, folder)
    curves = Curves(folder, state.history) if folder is not None and accelerator.is_main_process else None
    order = batch_order(lengths, config.batch * world, config.seed, grouped=config.group_lengths)
    for _ in range(state.step * config.accumulate):
        next(order)
    parameters = list(trained_parameters(chat).values())
    last = config.steps if until is None else min(until, config.steps)
    bar = tqdm(total=config.steps, initial=state.step, disable=None if accelerator.is_main_process else True)
    checked = False
    chat.train()
    with _checkpointed_blocks(chat, config.checkpoint_blocks), bar:
        while state.step < last:
            rate = _set_rate(optimizer, config, state.step)
            passes = [[examples[number] for number in next(order)] for _ in range(config.accumulate)]
            count = sum(answer_tokens(items) for items in passes)
            total = 0.0
            for items in passes:
                own = items[rank * config.batch : (rank + 1) * config.batch]
                # accelerate divides by the number of passes and takes the mean of the processes; see `token_mean`
                divisor = count / (world * config.accumulate) if config.token_mean else None
                with accelerator.accumulate(model):
                    rows = [row for item in own for row in item.ecg]
                    loss = model([item.encoded for item in own], ecg[rows], divisor)
                    accelerator.backward(loss)
                total += float(loss.detach()) / config.accumulate
            total = _mean(accelerator, total)
            if not math.isfinite(total):
                raise EcgChatError(f"training: the loss of step {state.step} is {total}. Lower the learning rate")
            norm = _clip(accelerator, parameters, config.clip)
            if not checked and state.step >= 1 and math.isfinite(norm) and any(i.ecg for part in passes for i in part):
                check_gradients(chat)
                checked = True
            stepper.step()
            stepper.zero_grad()
            state.history.append({"loss": total, "learning_rate": rate, "gradient_norm": norm, "tokens": count})
            state.step += 1
            bar.update()
            bar.set_postfix(loss=f"{total:.3f}")
            due = state.step == config.steps or (config.evaluate_every and state.step % config.evaluate_every == 0)
            if len(validation) and due:
                value = validation_loss(chat, validation, ecg, config, accelerator)
                state.history[-1]["validation_loss"] = value
                best.offer(value, state.step, write=accelerator.is_main_process)
            if curves is not None:
                curves.add(state.step, state.history[-1])
            if folder is not None and (state.step % config.save_every == 0 or state.step == last):
                state.save(folder, config)
            if each_step is not None and accelerator.is_main_process:
                each_step(state.step - 1, total)
    if curves is not None:
        curves.close()
    accelerator.wait_for_everyone()
    if state.step == config.steps:
        best.restore()
    chat.eval()
    return [entry["loss"] for entry in state.history]


def make_accelerator(chat: EcgChat, config: TrainConfig) -> Any:
    """Return accelerate's helper for this device, precision and number of processes.

    Raises:
        ParameterError: float16 with trained weights that aren't float32.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    names = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}
    precision = names[compute_dtype(chat.device)] if config.precision == "auto" else config.precision
    narrow = [name for name, p in trained_parameters(chat).items() if p.dtype != torch.float32]
    if narrow and precision == "fp16":
        raise ParameterError(f"float16 training: {narrow[0]} isn't float32, and its small changes would be lost")
    # accelerate keeps the first precision of a process for good, but a notebook may train twice
    if AcceleratorState._shared_state and AcceleratorState._shared_state["_mixed_precision"] != precision:
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=chat.device.type == "cpu",
        device_placement=False,  # the model is where it should be, and weights in NF4 can't be moved
        gradient_accumulation_steps=config.accumulate,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if accelerator.state.deepspeed_plugin is not None:  # it would ask a data loader, and believe the launcher's file
        accelerator.gradient_accumulation_steps = config.accumulate
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": config.batch,
            "gradient_accumulation_steps": config.accumulate,
            "gradient_clipping": config.clip,
        }
    return accelerator


@contextlib.contextmanager
def _checkpointed_blocks(chat: EcgChat, on: bool) -> Iterator[None]:
    """Lend the language model with gradient checkpointing.

    Its input must require a gradient: with torch's older ("reentrant") way, a block whose input doesn't is computed
    without any gradient, and neither adapters nor projector would learn.
    """
    if not on:
        yield
        return
    model = chat.language_model
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    with quiet_loading():
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if not getattr(model, "_require_grads_hooks", None):  # newer transformers did it in the line before
        model.enable_input_require_grads()
    try:
        yield
    finally:
        with quiet_loading():
            model.gradient_checkpointing_disable()
        model.disable_input_require_grads()


@torch.no_grad()
def validation_loss(
    chat: EcgChat, examples: Sequence[Example], ecg: TokenTable, config: TrainConfig, accelerator: Any
) -> float:
    """Return the mean loss per answer token over some examples, in nats; the processes share the work."""
    world, rank = accelerator.num_processes, accelerator.process_index
    lengths = sequence_lengths(examples, ecg.shape[1])
    order = sorted(range(len(examples)), key=lambda number: lengths[number])[rank::world]
    total = torch.zeros(2, dtype=torch.float64)
    chat.eval()
    for start in range(0, len(order), config.batch):
        items = [examples[number] for number in order[start : start + config.batch]]
        with accelerator.autocast():
            loss = chat([item.encoded for item in items], ecg[[row for item in items for row in item.ecg]])
        count = answer_tokens(items)
        total += torch.tensor([float(loss) * count, count], dtype=torch.float64)
    chat.train()
    if world > 1:
        total = accelerator.reduce(total.to(chat.device), reduction="sum").cpu()
    return float(total[0] / total[1])


def _mean(accelerator: Any, value: float) -> float:
    if accelerator.num_processes == 1:
        return value
    own = torch.tensor([value], dtype=torch.float64, device=accelerator.device)
    return float(accelerator.reduce(own, reduction="mean"))


def _clip(accelerator: Any, parameters: list[nn.Parameter], most: float) -> float:
    """Shorten the gradient and return the norm it had; infinite where float16 ran over and the step is left out.

    Raises:
        EcgChatError: it isn't finite, and there is no scaler to blame.
    """
    norm = accelerator.clip_grad_norm_(parameters, most)
    found = math.nan if norm is None else float(norm)  # DeepSpeed clips by itself
    if norm is not None and accelerator.scaler is None and not math.isfinite(found):
        raise EcgChatError(f"training: the gradient's norm is {found}. Lower the learning rate")
    return found


def _optimizer(chat: EcgChat, config: TrainConfig) -> torch.optim.Optimizer:
    named = trained_parameters(chat)
    projector = [p for name, p in named.items() if name.startswith("projector.")]
    adapters = [p for name, p in named.items() if not name.startswith("projector.")]
    rate = config.projector_rate or config.learning_rate
    groups = [{"params": projector, "lr": rate}, {"params": adapters, "lr": config.learning_rate}]
    groups = [group | {"initial_lr": group["lr"]} for group in groups if group["params"]]
    if config.optimizer == "adamw":
        more = {"fused": True} if config.fused else {}
        return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, **more)
    if chat.device.type != "cuda":
        raise ParameterError(
            f"optimizer={config.optimizer!r} is bitsandbytes' and needs CUDA, but the model is on {chat.device}. "
            "Use optimizer='adamw'"
        )
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    kind = PagedAdamW8bit if config.optimizer == "paged_adamw_8bit" else AdamW8bit
    made: torch.optim.Optimizer = kind(groups, betas=(0.9, 0.98), weight_decay=0.0)
    return made


def _set_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> float:
    """Set the learning rates of a step and return the last group's: linear warm-up, then half a cosine down to 0."""
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        factor = (step + 1) / warmup
    else:
        factor = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return float(optimizer.param_groups[-1]["lr"])

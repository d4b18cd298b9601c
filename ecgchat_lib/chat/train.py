"""Training the chat model: stage 1 trains the projector alone, stage 2 the projector and LoRA adapters.

A plain loop with AdamW, warm-up, cosine and clipping. The encoder isn't here: its tokens don't change, so they are
computed once and passed in. Taught in: 11 §4 and 12 §4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ecgchat_lib.chat.language_model import quiet_loading
from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.chat.template import Encoded
from ecgchat_lib.errors import EcgChatError, ParameterError


@dataclass(frozen=True)
class Example:
    """One training sequence.

    Attributes:
        encoded: the conversation.
        ecg: row of its ECG in the table of tokens.
    """

    encoded: Encoded
    ecg: int


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: optimizer steps.
        batch: sequences per forward pass.
        accumulate: forward passes per optimizer step.
        learning_rate: highest learning rate of the adapters.
        projector_rate: highest learning rate of the projector; the same if None.
        warmup: share of the steps with a rising rate.
        clip: longest gradient (norm over all trained weights).
        seed: order of the examples, and LoRA's start.
    """

    steps: int
    batch: int = 4
    accumulate: int = 1
    learning_rate: float = 2e-4
    projector_rate: float | None = None
    warmup: float = 0.05
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.accumulate) < 1:
            raise ParameterError(
                f"steps={self.steps}, batch={self.batch}, accumulate={self.accumulate}: expected at least 1 each"
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


def warm_start(
    chat: EcgChat,
    ecg: torch.Tensor,
    targets: torch.Tensor,
    phrases: Sequence[str],
    *,
    patches: int = 4,
    steps: int = 400,
    batch: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Before stage 1: teach the projector to place ECG tokens near the words for what the ECG shows.

    The language model isn't run, only its word embeddings are read, so this costs seconds where a step of stage 1
    costs seconds too. Each finding's direction is the mean of its words' embeddings, less the mean over all findings
    (what the phrases share says nothing); the loss is binary cross entropy on scaled cosines, and a penalty keeps the
    token about as long as a word.

    Args:
        chat: the model; only its projector changes.
        ecg: (n, ecg tokens, width) from the encoder.
        targets: (n, findings) 1 present, 0 absent, NaN unsaid.
        phrases: how the findings are worded.
        patches: patch tokens, drawn anew in each step, that are placed beside the first token (CLS).
        steps: optimizer steps.
        batch: recordings per step.
        learning_rate: of the projector.
        seed: order of the recordings.

    Returns:
        The loss of each step.

    Raises:
        ParameterError: the shapes don't fit each other.
    """
    if targets.shape != (len(ecg), len(phrases)):
        raise ParameterError(f"targets of shape {tuple(targets.shape)}, expected ({len(ecg)}, {len(phrases)})")
    device = chat.device
    words = chat.language_model.get_input_embeddings().weight.detach().float()
    directions = torch.stack(
        [words[chat.tokenizer(" " + p, add_special_tokens=False).input_ids].mean(0) for p in phrases]
    )
    directions = nn.functional.normalize(directions - directions.mean(0), dim=-1)
    length = words.norm(dim=-1).mean()
    scale = nn.Parameter(torch.tensor(8.0, device=device))
    bias = nn.Parameter(torch.zeros(len(phrases), device=device))
    optimizer = torch.optim.AdamW([*chat.projector.parameters(), scale, bias], lr=learning_rate, weight_decay=0.05)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(ecg), (batch,), generator=generator)
        places = torch.randperm(ecg.shape[1] - 1, generator=generator)[:patches] + 1
        places = torch.cat([torch.zeros(1, dtype=torch.long), places])
        token = chat.projector(ecg[rows][:, places].to(device).float())  # (batch, 1 + patches, hidden)
        logits = scale * nn.functional.normalize(token, dim=-1) @ directions.T + bias
        wanted = targets[rows].to(device).float()[:, None].expand_as(logits)
        said = ~wanted.isnan()
        loss = nn.functional.binary_cross_entropy_with_logits(logits[said], wanted[said])
        total = loss + 0.1 * (token.norm(dim=-1) / length - 1).square().mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def train_projector(
    chat: EcgChat,
    examples: Sequence[Example],
    ecg: torch.Tensor,
    config: TrainConfig,
    *,
    each_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Stage 1: train the projector, with every weight of the language model frozen.

    Args:
        chat: the model, changed in place.
        examples: the conversations.
        ecg: (recordings, ecg tokens, width) from the encoder.
        config: how to train.
        each_step: called with the step's number and loss.

    Returns:
        The loss of each step.
    """
    for parameter in chat.language_model.parameters():
        parameter.requires_grad_(False)
    return _train(chat, examples, ecg, config, each_step)


def train_chat(
    chat: EcgChat,
    examples: Sequence[Example],
    ecg: torch.Tensor,
    config: TrainConfig,
    *,
    each_step: Callable[[int, float], None] | None = None,
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

    Returns:
        The loss of each step.

    Raises:
        EcgChatError: there are no adapters, or a trained tensor gets no gradient.
    """
    if not any("lora_" in name and p.requires_grad for name, p in chat.language_model.named_parameters()):
        raise EcgChatError("stage 2: the language model has no LoRA adapter. Call add_lora() first")
    return _train(chat, examples, ecg, config, each_step)


def trained_parameters(chat: EcgChat) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    return {name: p for name, p in chat.named_parameters() if p.requires_grad}


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


def _train(
    chat: EcgChat,
    examples: Sequence[Example],
    ecg: torch.Tensor,
    config: TrainConfig,
    each_step: Callable[[int, float], None] | None,
) -> list[float]:
    if not examples:
        raise EcgChatError("training: no examples, expected at least one")
    torch.manual_seed(config.seed)  # dropout
    order = _endless(len(examples), torch.Generator().manual_seed(config.seed))
    optimizer, schedule = _optimizer(chat, config)
    parameters = list(trained_parameters(chat).values())
    losses = []
    chat.train()
    for step in tqdm(range(config.steps), disable=None, desc="steps"):
        total = 0.0
        for _ in range(config.accumulate):
            chosen = [examples[next(order)] for _ in range(config.batch)]
            loss = chat([item.encoded for item in chosen], ecg[[item.ecg for item in chosen]])
            (loss / config.accumulate).backward()
            total += float(loss.detach()) / config.accumulate
        if step == 1:
            check_gradients(chat)
        nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        if not math.isfinite(total):
            raise EcgChatError(f"training: the loss of step {step} is {total}. Lower the learning rate")
        if each_step is not None:
            each_step(step, total)
    chat.eval()
    return losses


def _endless(count: int, generator: torch.Generator) -> Any:
    """Yield 0..count-1 in random order, again and again, each once per round."""
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _optimizer(chat: EcgChat, config: TrainConfig) -> tuple[torch.optim.Optimizer, Any]:
    named = trained_parameters(chat)
    projector = [p for name, p in named.items() if name.startswith("projector.")]
    adapters = [p for name, p in named.items() if not name.startswith("projector.")]
    rate = config.projector_rate or config.learning_rate
    groups = [{"params": projector, "lr": rate}, {"params": adapters, "lr": config.learning_rate}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.98), weight_decay=0.0)
    warmup = max(1, round(config.warmup * config.steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

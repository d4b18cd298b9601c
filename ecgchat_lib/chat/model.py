"""The chat model: a language model that reads ECG tokens where the text says `<ecg>`.

An ECG encoder gives 101 tokens, the projector turns them into vectors as wide as word embeddings, and they are spliced
in among the words, for as many ECGs as the text has marks. Nothing of the language model changes. How a conversation
goes on is in `generate.py`. Taught in: 11 §3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ecgchat_lib.chat.projector import Projector
from ecgchat_lib.chat.reader import FindingReader
from ecgchat_lib.chat.template import ECG_ID, IGNORED, Encoded, Template
from ecgchat_lib.errors import EcgChatError, ParameterError


@dataclass(frozen=True)
class Batch:
    """What goes into the language model, B sequences padded to T places.

    Attributes:
        embeddings: (B, T, hidden).
        labels: (B, T) the token at this place if it is to be learned, else `IGNORED`.
        mask: (B, T) bool, False on padding; or (B, 1, T, T) bool, who sees whom, if a sequence has branches.
        positions: (B, T) for the rotary position code; padding counts as 0.
    """

    embeddings: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor


class EcgChat(nn.Module):
    """A language model with a projector for ECG tokens.

    Args:
        language_model: a transformers causal language model, adapted by peft or not.
        tokenizer: its tokenizer.
        projector: from ECG tokens to its hidden width.
        template: the chat template it speaks.
        reader: puts the ECG's findings into words for the prompt; None: the prompt goes without.

    Raises:
        ParameterError: the projector's width isn't the language model's.
    """

    def __init__(
        self,
        language_model: Any,
        tokenizer: Any,
        projector: Projector,
        template: Template,
        reader: FindingReader | None = None,
    ) -> None:
        super().__init__()
        self.reader = reader
        self.language_model = language_model
        self.tokenizer = tokenizer
        self.projector = projector
        self.template = template
        hidden = language_model.get_input_embeddings().weight.shape[1]
        if projector.hidden != hidden:
            raise ParameterError(
                f"the projector makes vectors of {projector.hidden}, but the language model's are {hidden} wide. "
                "Use the projector that was trained for this language model."
            )

    @property
    def device(self) -> torch.device:
        """The device that the word embeddings are on."""
        device: torch.device = self.language_model.get_input_embeddings().weight.device
        return device

    @property
    def context(self) -> int:
        """The most places that the language model reads at a time."""
        length: int = self.language_model.config.max_position_embeddings
        return length

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        token: int = self.tokenizer.convert_tokens_to_ids(self.template.end)
        return token

    def project(self, ecg: torch.Tensor) -> torch.Tensor:
        """Project ECG tokens (ECGs, ecg tokens, width), wherever they are, to (ECGs, ecg tokens, hidden)."""
        projected: torch.Tensor = self.projector(ecg.to(self.device, self.projector.up.weight.dtype))
        return projected

    def splice(self, encoded: Encoded, ecg: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Put projected ECG tokens where the id `ECG_ID` stands, the first ECG at the first place and so on.

        Args:
            encoded: a conversation, or a piece of one.
            ecg: (ECGs, ecg tokens, hidden), projected; none (0, ecg tokens, hidden) where there is no mark.

        Returns:
            Embeddings (T, hidden), labels (T,) and branches (T,) with T = text tokens + ECG tokens.

        Raises:
            EcgChatError: there aren't as many places as ECGs.
        """
        places = [k for k, token in enumerate(encoded.ids) if token == ECG_ID]
        if len(places) != len(ecg):
            raise EcgChatError(f"{len(places)} places for an ECG, expected {len(ecg)}: write <ecg> once for each ECG")
        words = torch.tensor([t for t in encoded.ids if t != ECG_ID], dtype=torch.long, device=self.device)
        text = self.language_model.get_input_embeddings()(words)
        vectors: list[torch.Tensor] = []
        labels: list[int] = []
        branches: list[int] = []
        of_all, past = encoded.branches or (0,) * len(encoded.ids), 0
        for number, (place, tokens) in enumerate(zip(places, ecg.to(text), strict=True)):
            vectors += [text[past - number : place - number], tokens]  # `number` marks before it have no word
            labels += [*encoded.labels[past:place], *[IGNORED] * len(tokens)]
            branches += [*of_all[past:place], *[of_all[place]] * len(tokens)]
            past = place + 1
        # Without a mark the ECG is empty; it keeps the projector in the graph, so that such a batch can be trained on.
        vectors += [text[past - len(places) :]] if places else [text, ecg.to(text).flatten(0, 1)]
        return (
            torch.cat(vectors),
            torch.tensor([*labels, *encoded.labels[past:]], device=self.device),
            torch.tensor([*branches, *of_all[past:]], device=self.device),
        )

    def prepare(self, encoded: Sequence[Encoded], ecg: torch.Tensor, *, left: bool = False) -> Batch:
        """Splice, pad and mask a batch.

        Args:
            encoded: B conversations.
            ecg: (ECGs, ecg tokens, width) from the encoder: those of all conversations, in the order of their marks.
            left: pad on the left, as generation needs it (the last place must be the newest word).

        Raises:
            ParameterError: there isn't one ECG per mark, or its width isn't the projector's.
        """
        counts = [item.ids.count(ECG_ID) for item in encoded]
        if sum(counts) != len(ecg):
            raise ParameterError(
                f"{sum(counts)} marks <ecg> in {len(encoded)} conversations but {len(ecg)} ECGs; expected one per mark"
            )
        parts = [self.splice(*pair) for pair in zip(encoded, self.project(ecg).split(counts), strict=True)]
        longest = max(len(part[1]) for part in parts)
        rows = [_pad(*part, longest, left) for part in parts]
        embeddings, labels, branches, real = (torch.stack(column) for column in zip(*rows, strict=True))
        positions = _positions(branches, real)
        mask = _tree_mask(branches, real) if any(item.branches for item in encoded) else real
        return Batch(embeddings, labels, mask, positions)

    def answer_logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the float32 logits (answers, vocabulary) that predict the learned tokens, and those tokens (answers,).

        The head is applied only where a label is, which saves most of its work.
        """
        causal = _causal_model(self.language_model)
        states = causal.model(
            inputs_embeds=batch.embeddings,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        learned = batch.labels[:, 1:] != IGNORED  # place t predicts the token at t + 1
        return causal.lm_head(states[:, :-1][learned]).float(), batch.labels[:, 1:][learned]

    def forward(self, encoded: Sequence[Encoded], ecg: torch.Tensor) -> torch.Tensor:
        """Return the mean cross entropy over the answers' tokens, in nats.

        Args:
            encoded: B conversations with answers.
            ecg: (ECGs, ecg tokens, width) from the encoder, in the order of the marks.

        Raises:
            EcgChatError: no conversation has an answer.
        """
        logits, targets = self.answer_logits(self.prepare(encoded, ecg))
        if not len(targets):
            raise EcgChatError(f"{len(encoded)} conversations without an answer, expected something to learn")
        return nn.functional.cross_entropy(logits, targets)

    @torch.no_grad()
    def generate(
        self, encoded: Sequence[Encoded], ecg: torch.Tensor, *, max_new_tokens: int = 64, **more: Any
    ) -> list[str]:
        """Answer open conversations together, with transformers' `generate`; greedily if nothing else is asked for.

        Args:
            encoded: B conversations whose last answer is missing.
            ecg: (ECGs, ecg tokens, width) from the encoder, in the order of the marks.
            max_new_tokens: most tokens of an answer.
            more: what transformers' `generate` takes, such as `do_sample`, `temperature`, `streamer`.

        Returns:
            B answers without marks.

        Raises:
            EcgChatError: a prompt with its answer may grow longer than the language model reads.
        """
        batch = self.prepare(encoded, ecg, left=True)
        places = batch.mask.shape[-1]
        if places + max_new_tokens > self.context:
            raise EcgChatError(
                f"a prompt of {places} places and {max_new_tokens} new tokens, but the language model reads "
                f"{self.context}. Leave out older turns, or ask for fewer tokens"
            )
        was_training = self.training  # put back also after an interrupt: a training that goes on needs its dropout
        self.eval()
        try:
            out = self.language_model.generate(
                inputs_embeds=batch.embeddings,
                attention_mask=batch.mask.long(),
                max_new_tokens=max_new_tokens,
                eos_token_id=self.end_id,
                pad_token_id=self.end_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id,
                **{"do_sample": False, **more},
            )
        finally:
            self.train(was_training)
        return [self.said(ids) for ids in out.tolist()]

    def said(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's tokens: no marks, no space around it, no half character at its end."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).strip().rstrip("\N{REPLACEMENT CHARACTER}").strip()


def _causal_model(language_model: Any) -> Any:
    """Return the transformers model inside a peft wrapper (its layers stay adapted), or the model itself."""
    return language_model.get_base_model() if hasattr(language_model, "get_base_model") else language_model


def _pad(
    embeddings: torch.Tensor, labels: torch.Tensor, branches: torch.Tensor, length: int, left: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    missing = length - len(labels)
    ends = (missing, 0) if left else (0, missing)
    real = torch.ones_like(labels, dtype=torch.bool)
    pad = nn.functional.pad
    return (
        pad(embeddings, (0, 0, *ends)),
        pad(labels, ends, value=IGNORED),
        pad(branches, ends),
        pad(real, ends, value=False),
    )


def _positions(branches: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return each token's place (B, T) in its own conversation: a branch goes on where the trunk ends."""
    positions = torch.zeros_like(branches)
    trunk = real & (branches == 0)
    positions[trunk] = (trunk.cumsum(1) - 1)[trunk]
    length = trunk.sum(1, keepdim=True)
    for branch in range(1, int(branches.max()) + 1):
        own = real & (branches == branch)
        positions[own] = (length + own.cumsum(1) - 1)[own]
    return positions


def _tree_mask(branches: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return who sees whom (B, 1, T, T): earlier tokens of the trunk and of one's own branch; padding sees itself."""
    places = branches.shape[1]
    earlier = torch.ones(places, places, dtype=torch.bool, device=branches.device).tril()
    same = (branches[:, None, :] == branches[:, :, None]) | (branches[:, None, :] == 0)
    seen = earlier & same & real[:, None, :]
    itself = torch.eye(places, dtype=torch.bool, device=branches.device)  # a row that sees nothing would become NaN
    return (seen | itself)[:, None]

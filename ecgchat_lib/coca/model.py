"""EcgCoca: the ECG encoder, a small tower on the frozen report encoder's states, and the caption decoder, together.

One forward pass gives all that the two losses need. The report encoder itself is outside (it is frozen, and its states
are computed once per text). Taught in: 06.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ecgchat_lib.coca.config import EcgCocaConfig
from ecgchat_lib.coca.decoder import CaptionDecoder
from ecgchat_lib.coca.encoder import EcgEncoder
from ecgchat_lib.coca.losses import INITIAL_LOGIT_SCALE, MAXIMUM_LOGIT_SCALE
from ecgchat_lib.coca.numbers import NUMBERS, NumberEncoder
from ecgchat_lib.coca.text import (
    END_ID,
    PAD_ID,
    START_ID,
    CaptionTokenizer,
    ReportEncoder,
    TextBatch,
    mean_pool,
    text_batch,
)
from ecgchat_lib.errors import ParameterError


class CocaOutput(NamedTuple):
    """One forward pass of B pairs.

    Attributes:
        tokens: (B, 101, width), the ECG tokens before the final norm, CLS first.
        ecg: (B, embedding), L2-normalized.
        forms: (B, V, embedding), L2-normalized: the reports' words alone; and, in a model that reads numbers, the words
            with the numbers, and the numbers alone.
        logits: (B, L − 1, vocabulary), the next piece at each position.
        labels: (B, L − 1), the pieces shifted by one.
        scale: the inverse temperature, a scalar.
    """

    tokens: torch.Tensor
    ecg: torch.Tensor
    forms: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor
    scale: torch.Tensor

    @property
    def text(self) -> torch.Tensor:
        """(B, embedding), L2-normalized: the whole reports, with the numbers if the model reads them."""
        return self.forms[:, min(1, self.forms.shape[1] - 1)]


class TextTower(nn.Module):
    """From the frozen report encoder's states to the embedding: a linear map of their mean, and two optional additions.

    Args:
        config: `token_hidden` adds a network that reads each state before the mean is taken, so that one word (left,
            right) can count; `number_hidden` adds one that reads the measured numbers.
    """

    def __init__(self, config: EcgCocaConfig) -> None:
        super().__init__()
        width, hidden, out = config.text_width, config.token_hidden, config.encoder.embedding
        self.projection = nn.Linear(width, out, bias=False)
        self.tokens = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out)) if hidden else None
        self.numbers = NumberEncoder(config.number_hidden, out) if config.number_hidden else None

    def words(self, text: TextBatch) -> torch.Tensor:
        """Return what the words give, (B, embedding); zeros where there are none."""
        states, mask = text.states.float(), text.mask.float()
        worded = mask.any(dim=1, keepdim=True)
        mean = torch.where(worded, mean_pool(states, mask.clamp_min(1e-9)), 0.0)
        embedding = self.projection(functional.normalize(mean, dim=-1))
        if self.tokens is not None:
            read = (self.tokens(states) * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp_min(1)
            embedding = embedding + read
        return embedding

    def forward(self, text: TextBatch) -> torch.Tensor:
        """Return (B, embedding), not normalized: the sum of what the words and what the numbers give."""
        words = self.words(text)
        return words if self.numbers is None else words + self.numbers(text.numbers)

    def forms(self, text: TextBatch) -> torch.Tensor:
        """Return (B, V, embedding), not normalized: words; if numbers are read, words with numbers and numbers too."""
        words = self.words(text)
        if self.numbers is None:
            return words[:, None]
        numbers = self.numbers(text.numbers)
        return torch.stack([words, words + numbers, numbers], dim=1)


class EcgCoca(nn.Module):
    """The contrastive captioner for ECGs.

    Args:
        config: the sizes.
        vocabulary: the caption tokenizer's pieces, `config.decoder.vocabulary` of them; None for a model that is
            never given text (its sizes count, its tokenizer is missing).
        report_encoder: the frozen report encoder; a new one if None.

    Raises:
        ParameterError: the vocabulary's length differs from the config's.
    """

    def __init__(
        self,
        config: EcgCocaConfig,
        vocabulary: Sequence[str] | None = None,
        report_encoder: ReportEncoder | None = None,
    ) -> None:
        super().__init__()
        if vocabulary is not None and len(vocabulary) != config.decoder.vocabulary:
            raise ParameterError(
                f"the config counts {config.decoder.vocabulary} word pieces, the vocabulary has {len(vocabulary)}"
            )
        self.config = config
        self.encoder = EcgEncoder(config.encoder)
        self.text_tower = TextTower(config)
        self.decoder = CaptionDecoder(config.decoder, config.encoder.width)
        # Reads the standardized `NUMBERS` off the CLS token; a help in training, and a check of what the token knows.
        self.number_head = nn.Linear(config.encoder.width, len(NUMBERS)) if config.number_hidden else None
        self.statement_scale = nn.Parameter(torch.tensor(2.3))  # of the logits of single statements, as a logarithm
        self.statement_bias = nn.Parameter(torch.tensor(0.0))
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        self.tokenizer = CaptionTokenizer(vocabulary) if vocabulary is not None else None
        self.report_encoder = report_encoder or ReportEncoder()  # not a module: nothing of it is saved or trained

    def caption_patches(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what the decoder looks at: the patch tokens after the encoder's final norm, CLS left out."""
        return self.encoder.ln_post(tokens[:, 1:])

    def encode_ecg(self, ecg: torch.Tensor) -> torch.Tensor:
        """Return L2-normalized embeddings (B, embedding) of windows (B, 12, samples)."""
        return functional.normalize(self.encoder(ecg).embedding, dim=-1)

    def encode_text(self, text: TextBatch) -> torch.Tensor:
        """Return L2-normalized embeddings (B, embedding) of texts, as `read_texts` gives them."""
        return functional.normalize(self.text_tower(text), dim=-1)

    def read_texts(self, texts: Sequence[str]) -> TextBatch:
        """Return texts as `encode_text` reads them: frozen states of the words, and the measured numbers at the end.

        A model without a number encoder takes the numbers as words.

        Raises:
            MissingPartError: the report encoder's package isn't installed.
            ParameterError: a text is empty.
        """
        if self.text_tower.numbers is not None:
            return self.report_encoder.read(texts)
        return text_batch(self.report_encoder.states(texts), torch.full((len(texts), len(NUMBERS)), torch.nan))

    def predict_numbers(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what the CLS token of (B, 101, width) says of the `NUMBERS`, standardized (B, 8).

        Raises:
            ParameterError: the model was built without a number encoder.
        """
        if self.number_head is None:
            raise ParameterError("this model reads no numbers: build it with number_hidden > 0")
        return self.number_head(self.encoder.ln_post(tokens[:, 0]))

    def statement_logits(self, ecg: torch.Tensor, text: torch.Tensor, log_odds: torch.Tensor) -> torch.Tensor:
        """Return logits (B, S): is statement s true of ECG b? The sigmoid loss of Zhai et al. 2023 (arXiv 2303.15343).

        Args:
            ecg: (B, embedding), L2-normalized.
            text: (S, embedding), L2-normalized.
            log_odds: (S,) of each statement before the ECG is seen; so the cosine needn't know how frequent it is.
        """
        return self.statement_scale.exp() * (ecg @ text.T) + self.statement_bias + log_odds

    def forward(self, ecg: torch.Tensor, text: TextBatch, pieces: torch.Tensor) -> CocaOutput:
        """Run both towers and the decoder.

        Args:
            ecg: (B, 12, samples) windows, as `front_end` makes them.
            text: the B reports, from `read_texts`.
            pieces: (B, L) ids of the reports, start piece first, from the tokenizer.
        """
        encoded = self.encoder(ecg)
        logits = self.decoder(pieces[:, :-1], self.caption_patches(encoded.tokens))
        return CocaOutput(
            tokens=encoded.tokens,
            ecg=functional.normalize(encoded.embedding, dim=-1),
            forms=functional.normalize(self.text_tower.forms(text), dim=-1),
            logits=logits,
            labels=pieces[:, 1:],
            scale=self.logit_scale.exp(),
        )

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the inverse temperature between 1 and 100, as CLIP does after each step."""
        self.logit_scale.clamp_(0.0, MAXIMUM_LOGIT_SCALE)

    @torch.inference_mode()
    def caption(self, ecg: torch.Tensor, *, pieces: int | None = None) -> list[str]:
        """Write one report per window, the likeliest piece at a time (greedy; no randomness).

        Args:
            ecg: (B, 12, samples).
            pieces: most pieces to write; the decoder's context if None.
        """
        if self.tokenizer is None:
            raise ParameterError("this model has no vocabulary: build it with one, or load it from a checkpoint")
        patches = self.caption_patches(self.encoder(ecg).tokens)
        ids = torch.full((len(ecg), 1), START_ID, device=ecg.device)
        ended = torch.zeros(len(ecg), dtype=torch.bool, device=ecg.device)
        for _ in range(pieces or self.config.decoder.context):
            following = self.decoder(ids[:, -self.config.decoder.context :], patches)[:, -1].argmax(dim=-1)
            following[ended] = PAD_ID
            ids = torch.cat([ids, following[:, None]], dim=1)
            ended |= following == END_ID
            if bool(ended.all()) or ids.shape[1] > self.config.decoder.context:
                break
        return [self.tokenizer.decode(row.tolist()) for row in ids]


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module, on the meta device too."""
    return sum(parameter.numel() for parameter in module.parameters())

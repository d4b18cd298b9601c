"""EcgCoca: the ECG encoder, a linear map for the frozen report encoder's vectors, and the caption decoder, together.

One forward pass gives all that the two losses need. The report encoder itself is outside (it is frozen, and its vectors
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
from ecgchat_lib.coca.text import END_ID, PAD_ID, START_ID, CaptionTokenizer, ReportEncoder
from ecgchat_lib.errors import ParameterError


class CocaOutput(NamedTuple):
    """One forward pass of B pairs.

    Attributes:
        ecg: (B, embedding), L2-normalized.
        text: (B, embedding), L2-normalized.
        logits: (B, L − 1, vocabulary), the next piece at each position.
        labels: (B, L − 1), the pieces shifted by one.
        scale: the inverse temperature, a scalar.
    """

    ecg: torch.Tensor
    text: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor
    scale: torch.Tensor


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
        self.text_projection = nn.Linear(config.text_width, config.encoder.embedding, bias=False)
        self.decoder = CaptionDecoder(config.decoder, config.encoder.width)
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        self.tokenizer = CaptionTokenizer(vocabulary) if vocabulary is not None else None
        self.report_encoder = report_encoder or ReportEncoder()  # not a module: nothing of it is saved or trained

    def caption_patches(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what the decoder looks at: the patch tokens after the encoder's final norm, CLS left out."""
        return self.encoder.ln_post(tokens[:, 1:])

    def encode_ecg(self, ecg: torch.Tensor) -> torch.Tensor:
        """Return L2-normalized embeddings (B, embedding) of windows (B, 12, samples)."""
        return functional.normalize(self.encoder(ecg).embedding, dim=-1)

    def encode_text_vectors(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return L2-normalized embeddings (B, embedding) of the report encoder's vectors (B, 384)."""
        return functional.normalize(self.text_projection(vectors), dim=-1)

    def forward(self, ecg: torch.Tensor, vectors: torch.Tensor, pieces: torch.Tensor) -> CocaOutput:
        """Run both towers and the decoder.

        Args:
            ecg: (B, 12, samples) windows, as `front_end` makes them.
            vectors: (B, 384) vectors of the reports, from the report encoder.
            pieces: (B, L) ids of the reports, start piece first, from the tokenizer.
        """
        encoded = self.encoder(ecg)
        logits = self.decoder(pieces[:, :-1], self.caption_patches(encoded.tokens))
        return CocaOutput(
            ecg=functional.normalize(encoded.embedding, dim=-1),
            text=self.encode_text_vectors(vectors),
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
        ids = torch.full((len(ecg), 1), START_ID)
        ended = torch.zeros(len(ecg), dtype=torch.bool)
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

"""The ECG encoder: a vision transformer in one dimension, from 12 leads to a CLS embedding and 101 tokens.

The transformer blocks are open_clip's; what is ours is the patch embedding in time and what is returned. It reads what
`coca.preprocess.front_end` makes, not raw millivolts (unless its config says so). Taught in: 05 §2–4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from open_clip.transformer import LayerNorm, PatchDropout, Transformer
from torch import nn

from ecgchat_lib.coca.config import LEADS, EcgEncoderConfig
from ecgchat_lib.coca.preprocess import FLAT
from ecgchat_lib.errors import ParameterError


class EncoderOutput(NamedTuple):
    """What the encoder returns for a batch of B windows.

    Attributes:
        embedding: (B, embedding), the projected CLS token, not normalized; it meets the report's embedding.
        tokens: (B, 101, width), the last block's output before the final norm, CLS first; what a language model reads.
    """

    embedding: torch.Tensor
    tokens: torch.Tensor


def convolutional_stem(channels: int) -> nn.Module:
    """Return two convolutions that keep the length: (B, 12, T) → (B, channels, T).

    A transformer has to learn from data that neighboring samples belong together; with thousands of recordings instead
    of hundreds of thousands, two small convolutions in front of the patches give it that for nothing
    (Xiao et al. 2021, arXiv 2106.14881).
    """
    return nn.Sequential(
        nn.Conv1d(LEADS, channels, kernel_size=7, padding=3, bias=False),
        nn.GroupNorm(4, channels),
        nn.GELU(),
        nn.Conv1d(channels, channels, kernel_size=5, padding=2, bias=False),
        nn.GroupNorm(4, channels),
        nn.GELU(),
    )


USUAL_MV = 0.2  # a usual standard deviation of a lead; log-deviations are counted from it


def standardize_leads(ecg: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale each lead to mean 0 and standard deviation 1, and return what that took away.

    Args:
        ecg: (B, 12, T) mV.

    Returns:
        The scaled leads (B, 12, T), a flat lead as zeros; and (B, 24): the logarithm of each lead's deviation over a
        usual one, then whether the lead holds a signal (a flat lead has 0 in both places).
    """
    deviation = ecg.std(dim=2, keepdim=True, correction=0)
    alive = deviation > FLAT
    scaled = torch.where(alive, (ecg - ecg.mean(dim=2, keepdim=True)) / deviation.clamp_min(FLAT), 0.0)
    size = torch.where(alive, (deviation / USUAL_MV).clamp_min(FLAT).log(), 0.0)
    return scaled, torch.cat([size, alive.to(size)], dim=1).squeeze(2)


class EcgEncoder(nn.Module):
    """A 1-D vision transformer over the 12 leads. Parameter names are those of the original's ECG tower.

    Args:
        config: the sizes.

    Raises:
        ParameterError: `stem_channels` is not a multiple of 4.
    """

    def __init__(self, config: EcgEncoderConfig) -> None:
        super().__init__()
        if config.stem_channels % 4:
            raise ParameterError(f"stem_channels={config.stem_channels} is not a multiple of 4 (its norm has 4 groups)")
        self.config = config
        scale = config.width**-0.5
        self.stem = convolutional_stem(config.stem_channels) if config.stem_channels else nn.Identity()
        self.conv1 = nn.Conv1d(
            config.stem_channels or LEADS,
            config.width,
            kernel_size=config.patch_samples,
            stride=config.patch_samples,  # patches do not overlap
            bias=False,  # ln_pre follows
        )
        self.scale_projection = nn.Linear(2 * LEADS, config.width, bias=False) if config.keep_scale else None
        self.class_embedding = nn.Parameter(scale * torch.randn(config.width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(config.tokens, config.width))
        self.patch_dropout = PatchDropout(config.patch_dropout) if config.patch_dropout else nn.Identity()
        self.ln_pre = LayerNorm(config.width)
        self.transformer = Transformer(config.width, config.layers, config.heads, config.mlp_ratio)
        self.ln_post = LayerNorm(config.width)
        self.proj = nn.Parameter(scale * torch.randn(config.width, config.embedding))

    def embed_patches(self, ecg: torch.Tensor) -> torch.Tensor:
        """Cut windows (B, 12, T) into patches and return CLS and patch tokens (B, 101, width), normed.

        Raises:
            ParameterError: the batch has another shape than the config's window.
        """
        expected = (LEADS, self.config.samples)
        if ecg.ndim != 3 or tuple(ecg.shape[1:]) != expected:
            raise ParameterError(
                f"the encoder reads (batch, {LEADS}, {self.config.samples}), that is {self.config.seconds:g} s at "
                f"{self.config.fs:g} Hz, but got {tuple(ecg.shape)}. Pass millivolts through front_end() first."
            )
        cls = self.class_embedding.expand(len(ecg), 1, -1)  # (B, 1, width)
        if self.scale_projection is not None:
            ecg, scale = standardize_leads(ecg)
            cls = cls + self.scale_projection(scale)[:, None]
        patches = self.conv1(self.stem(ecg)).transpose(1, 2)  # (B, 100, width)
        tokens = torch.cat([cls, patches], dim=1) + self.positional_embedding
        return self.ln_pre(self.patch_dropout(tokens))

    def forward(self, ecg: torch.Tensor) -> EncoderOutput:
        """Encode windows.

        Args:
            ecg: (B, 12, samples), as `front_end` makes it.

        Returns:
            The embedding (B, embedding) and the tokens (B, 101, width). In training with patch dropout there are
            fewer tokens.
        """
        tokens = self.transformer(self.embed_patches(ecg))
        return EncoderOutput(self.ln_post(tokens[:, 0]) @ self.proj, tokens)

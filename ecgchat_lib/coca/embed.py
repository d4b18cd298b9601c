"""Embeddings and tokens of recordings and texts, for those who want to use a trained model and nothing else.

Computed where the model is, given back on the CPU. Taught in: 08 §1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.coca.preprocess import recording_windows
from ecgchat_lib.coca.text import TextBatch
from ecgchat_lib.ecg.recording import Recording

BATCH = 64


def _device(model: EcgCoca) -> torch.device:
    return model.logit_scale.device


@torch.inference_mode()
def embed_windows(windows: torch.Tensor, model: EcgCoca) -> torch.Tensor:
    """Return L2-normalized embeddings (n, embedding) of windows (n, 12, samples), in batches."""
    model.eval()
    if not len(windows):
        return torch.zeros(0, model.config.encoder.embedding)
    return torch.cat([model.encode_ecg(part.float().to(_device(model))).cpu() for part in windows.split(BATCH)])


@torch.inference_mode()
def embed_recordings(recordings: Sequence[Recording], model: EcgCoca) -> torch.Tensor:
    """Return L2-normalized embeddings (n, embedding) of recordings, of any rate and length."""
    return embed_windows(recording_windows(recordings, model.config.encoder), model)


@torch.inference_mode()
def embed_texts(texts: Sequence[str], model: EcgCoca) -> torch.Tensor:
    """Return L2-normalized embeddings (n, embedding) of texts."""
    model.eval()
    parts = []
    for start in range(0, len(texts), BATCH):
        text = model.read_texts(texts[start : start + BATCH])
        parts.append(model.encode_text(TextBatch(*(tensor.to(_device(model)) for tensor in text))).cpu())
    return torch.cat(parts) if parts else torch.zeros(0, model.config.encoder.embedding)


@torch.inference_mode()
def encoder_tokens(windows: torch.Tensor, model: EcgCoca) -> torch.Tensor:
    """Return the tokens (n, 101, width) of windows: the last block's output before the final norm, CLS first."""
    model.eval()
    return torch.cat([model.encoder(part.float().to(_device(model))).tokens.cpu() for part in windows.split(BATCH)])


@torch.inference_mode()
def raw_embeddings(windows: torch.Tensor, model: EcgCoca) -> torch.Tensor:
    """Return the pooled CLS after the final norm, before the projection: (n, width), what a linear probe reads."""
    model.eval()
    parts = [part.float().to(_device(model)) for part in windows.split(BATCH)]
    return torch.cat([model.encoder.ln_post(model.encoder(part).tokens[:, 0]).cpu() for part in parts])


def similarity(ecg: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Return cosines (n, m) of embeddings (n, dim) and (m, dim)."""
    return functional.normalize(ecg, dim=-1) @ functional.normalize(text, dim=-1).T

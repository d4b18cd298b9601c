"""Exercises of notebook 05: cut an ECG into patches, and count an encoder's parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ecgchat_lib.course import Exercise, Misconception, expect_equal

# --- 05.1 --------------------------------------------------------------------------------------------------------


def to_patches(ecg: Any, size: int) -> Any:
    """Reference of 05.1: (batch, lead, time) → (batch, patch, lead × size)."""
    batch, leads, time = ecg.shape
    return ecg.reshape(batch, leads, time // size, size).permute(0, 2, 1, 3).flatten(2)


def _verify_patches(answer: Callable[[Any, int], Any], rng: Any) -> None:
    import torch

    for _ in range(10):
        batch, leads, patches, size = (int(n) for n in rng.integers(2, 6, size=4))
        ecg = torch.arange(batch * leads * patches * size).view(batch, leads, patches * size).float()
        found, expected = answer(ecg, size), to_patches(ecg, size)
        if not isinstance(found, torch.Tensor):
            raise Misconception("Return a tensor of shape (batch, patch, lead × size).")
        what = f"an ecg of shape {tuple(ecg.shape)} in patches of {size}"
        if found.shape == expected.shape and torch.equal(found, ecg.reshape(expected.shape)):
            raise Misconception(
                f"{what}: a reshape alone keeps the order in memory, where each lead's whole time comes first. So your "
                "rows hold one lead at several times. Move the patch axis in front of the lead axis before you flatten."
            )
        if found.shape == expected.shape and torch.equal(found, _sample_by_sample(ecg, size)):
            raise Misconception(f"{what}: the right numbers, but sample after sample. Put lead after lead.")
        if found.ndim == 3 and found.shape[1] == leads and leads != patches:
            raise Misconception(f"{what}: axis 1 of your result is the lead. It must be the patch.")
        expect_equal(found, expected, what)


def _sample_by_sample(ecg: Any, size: int) -> Any:
    batch, leads, time = ecg.shape
    return ecg.reshape(batch, leads, time // size, size).permute(0, 2, 3, 1).flatten(2)


def _only_reshape(ecg: Any, size: int) -> Any:
    batch, leads, time = ecg.shape
    return ecg.reshape(batch, time // size, leads * size)


# --- 05.2 --------------------------------------------------------------------------------------------------------


def encoder_parameters(width: int, layers: int, patch_samples: int, tokens: int, embedding: int) -> int:
    """Reference of 05.2: the parameters of an encoder without stem, 12 leads."""
    block = 12 * width**2 + 13 * width
    return 12 * patch_samples * width + width + tokens * width + 4 * width + layers * block + width * embedding


def _verify_count(answer: Callable[..., int], rng: Any) -> None:
    paper = {"width": 768, "layers": 12, "patch_samples": 50, "tokens": 101, "embedding": 512}
    mistakes = {
        "the biases of the blocks are missing (13 × width per block with the norms', not 4 × width)": 9 * 768 * 12,
        "the places are missing: one vector per token": 101 * 768,
        "the CLS token is missing: one vector of its own": 768,
        "one of the two norms outside the blocks is missing": 2 * 768,
        "both norms outside the blocks are missing": 4 * 768,
        "the patch matrix reads one lead only; a patch holds all 12": 11 * 50 * 768,
        "the projection to the embedding is missing": 768 * 512,
    }
    missing = encoder_parameters(**paper) - answer(**paper)
    for reason, size in mistakes.items():
        if missing == size:
            raise Misconception(f"The paper's encoder: {reason}.")
    expect_equal(answer(**paper), encoder_parameters(**paper), "the paper's encoder")
    for _ in range(10):
        sizes = {name: int(rng.integers(2, 40)) for name in paper}
        expect_equal(answer(**sizes), encoder_parameters(**sizes), f"an encoder with {sizes}")


def _without_biases(width: int, layers: int, patch_samples: int, tokens: int, embedding: int) -> int:
    return encoder_parameters(width, layers, patch_samples, tokens, embedding) - 9 * width * layers


def _one_lead(width: int, layers: int, patch_samples: int, tokens: int, embedding: int) -> int:
    return encoder_parameters(width, layers, patch_samples, tokens, embedding) - 11 * patch_samples * width


EXERCISES = (
    Exercise(
        id="05.1",
        title="Cut into patches",
        difficulty=2,
        minutes=10,
        verify=_verify_patches,
        reference=to_patches,
        wrong=(
            ("reshapes without moving axes", _only_reshape),
            ("flattens samples before leads", _sample_by_sample),
        ),
    ),
    Exercise(
        id="05.2",
        title="Count before you build",
        difficulty=2,
        minutes=15,
        verify=_verify_count,
        reference=encoder_parameters,
        wrong=(
            ("forgets the biases of the linear layers", _without_biases),
            ("counts one lead per patch", _one_lead),
        ),
    ),
)

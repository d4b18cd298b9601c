"""Exercises of notebook 05: cut an ECG into patches, count an encoder's parameters, and attend with several heads."""

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


# --- 05.3 --------------------------------------------------------------------------------------------------------


def heads_attend(query: Any, key: Any, value: Any, heads: int) -> Any:
    """Reference of 05.3: attention of (token, width) in slices of the width."""
    tokens, width = query.shape
    q, k, v = (x.view(tokens, heads, width // heads).transpose(0, 1) for x in (query, key, value))
    share = (q @ k.transpose(1, 2) / (width // heads) ** 0.5).softmax(dim=2)
    return (share @ v).transpose(0, 1).reshape(tokens, width)


def _verify_heads(answer: Callable[..., Any], rng: Any) -> None:
    import torch

    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for _ in range(8):
        tokens, heads, slice_ = (int(n) for n in rng.integers(2, 6, size=3))
        query, key, value = (2 * torch.randn(tokens, heads * slice_, generator=generator) for _ in range(3))
        found, right = answer(query, key, value, heads), heads_attend(query, key, value, heads)
        what = f"{tokens} tokens, {heads} heads of width {slice_}"
        comparable = isinstance(found, torch.Tensor) and found.shape == right.shape
        if comparable and not torch.allclose(found, right, atol=1e-4):
            for wrong, reason in (
                (_root_of_the_whole, "you divide by the root of the whole width; a head's is that of its slice."),
                (_one_head, "that is one head over the whole width. Cut the width into slices first."),
                (
                    _heads_by_reshape,
                    "the slices mix tokens. Give the width two axes, then move the heads to the front.",
                ),
                (_back_by_reshape, "the heads are right, but joined in the order of memory: transpose back first."),
            ):
                if torch.allclose(found, wrong(query, key, value, heads), atol=1e-5):
                    raise Misconception(f"{what}: {reason}")
        expect_equal(found, right, what, tolerance=1e-4)


def _root_of_the_whole(query: Any, key: Any, value: Any, heads: int) -> Any:
    return heads_attend(query / heads**0.5, key, value, heads)


def _one_head(query: Any, key: Any, value: Any, heads: int) -> Any:
    return heads_attend(query, key, value, 1)


def _heads_by_reshape(query: Any, key: Any, value: Any, heads: int) -> Any:
    tokens, width = query.shape
    q, k, v = (x.reshape(heads, tokens, width // heads) for x in (query, key, value))
    share = (q @ k.transpose(1, 2) / (width // heads) ** 0.5).softmax(dim=2)
    return (share @ v).reshape(tokens, width)


def _back_by_reshape(query: Any, key: Any, value: Any, heads: int) -> Any:
    tokens, width = query.shape
    q, k, v = (x.view(tokens, heads, width // heads).transpose(0, 1) for x in (query, key, value))
    share = (q @ k.transpose(1, 2) / (width // heads) ** 0.5).softmax(dim=2)
    return (share @ v).reshape(tokens, width)


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
    Exercise(
        id="05.3",
        title="Several heads",
        difficulty=3,
        minutes=20,
        verify=_verify_heads,
        reference=heads_attend,
        wrong=(
            ("divides by the root of the whole width", _root_of_the_whole),
            ("attends with one head", _one_head),
            ("cuts the heads by a reshape alone", _heads_by_reshape),
            ("joins the heads by a reshape alone", _back_by_reshape),
        ),
    ),
)

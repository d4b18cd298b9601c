"""Exercises of notebook 06: the contrastive loss, attention that looks back only, and how to catch a leak."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ecgchat_lib.course import Exercise, Misconception, expect_equal

# --- 06.1 --------------------------------------------------------------------------------------------------------


def contrastive(ecg: Any, text: Any, scale: float) -> Any:
    """Reference of 06.1: the library's loss on normalized vectors."""
    from torch.nn.functional import normalize

    from ecgchat_lib.coca.losses import contrastive_loss

    return contrastive_loss(normalize(ecg, dim=1), normalize(text, dim=1), scale)


def _verify_contrastive(answer: Callable[..., Any], rng: Any) -> None:
    import torch

    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for _ in range(8):
        batch, dim = int(rng.integers(3, 9)), int(rng.integers(2, 12))
        scale = float(rng.uniform(2, 20))
        ecg, text = (3 * torch.randn(batch, dim, generator=generator) for _ in range(2))
        found, expected = answer(ecg, text, scale), contrastive(ecg, text, scale)
        right = isinstance(found, torch.Tensor) and torch.allclose(found, expected, rtol=1e-4)
        if isinstance(found, torch.Tensor) and found.ndim == 0 and not right:
            for wrong, reason in (
                (
                    _one_direction,
                    "that is one direction only. Reports must find their ECGs too: add the transpose.",
                ),
                (_no_norm, "the vectors are not normalized, so long ones win. Make each row's length 1 first."),
                (_divides, "you divide by the scale. It is the inverse temperature: multiply by it."),
                (_summed, "that is the sum of both directions. Take their mean."),
            ):
                if torch.isclose(found, wrong(ecg, text, scale), rtol=1e-4):
                    raise Misconception(f"A batch of {batch}: {reason}")
        expect_equal(found, expected, f"the loss of a batch of {batch}", tolerance=1e-4)


def _logits(ecg: Any, text: Any, scale: float) -> Any:
    from torch.nn.functional import normalize

    return scale * normalize(ecg, dim=1) @ normalize(text, dim=1).T


def _cross_entropy(logits: Any) -> Any:
    import torch

    return torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)))


def _one_direction(ecg: Any, text: Any, scale: float) -> Any:
    return _cross_entropy(_logits(ecg, text, scale))


def _no_norm(ecg: Any, text: Any, scale: float) -> Any:
    logits = scale * ecg @ text.T
    return (_cross_entropy(logits) + _cross_entropy(logits.T)) / 2


def _divides(ecg: Any, text: Any, scale: float) -> Any:
    return contrastive(ecg, text, 1 / scale)


def _summed(ecg: Any, text: Any, scale: float) -> Any:
    return 2 * contrastive(ecg, text, scale)


# --- 06.2 --------------------------------------------------------------------------------------------------------


def causal_attention(query: Any, key: Any, value: Any) -> Any:
    """Reference of 06.2: masked attention over (length, width)."""
    import torch

    length, width = query.shape
    mask = torch.full((length, length), -math.inf).triu(1)
    return (query @ key.T / width**0.5 + mask).softmax(dim=1) @ value


def _verify_attention(answer: Callable[..., Any], rng: Any) -> None:
    import torch

    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for _ in range(8):
        length, width = int(rng.integers(3, 9)), int(rng.integers(2, 9))
        query, key, value = (torch.randn(length, width, generator=generator) for _ in range(3))
        found = answer(query, key, value)
        what = f"{length} places of width {width}"
        if isinstance(found, torch.Tensor) and found.shape == value.shape:
            _name_the_mask(answer, found, query, key, value, what)
        expect_equal(found, causal_attention(query, key, value), what, tolerance=1e-4)


def _name_the_mask(answer: Callable[..., Any], found: Any, query: Any, key: Any, value: Any, what: str) -> None:
    import torch

    if torch.isnan(found).any():
        raise Misconception(
            f"{what}: some rows are NaN. Your mask hides the diagonal too, so the first place sees nothing at all. "
            "A place may look at itself."
        )
    later = value.clone()
    later[-1] += 100.0
    if not torch.allclose(answer(query, key, later)[0], found[0], atol=1e-4):
        if torch.allclose(found[-1], value[-1], atol=1e-4):
            raise Misconception(f"{what}: the mask is upside down: place t looks at t and later.")
        raise Misconception(f"{what}: the first place changes when the last piece does, so it sees the future.")
    if torch.allclose(found, _masked_late(query, key, value), atol=1e-4):
        raise Misconception(
            f"{what}: the shares of a row don't add up to 1. Add minus infinity before the softmax instead of "
            "multiplying by 0 after it."
        )
    if torch.allclose(found, causal_attention(query * query.shape[1] ** 0.5, key, value), atol=1e-4):
        raise Misconception(f"{what}: the fits aren't divided by the root of the width.")


def _masked_late(query: Any, key: Any, value: Any) -> Any:
    return (query @ key.T / query.shape[1] ** 0.5).softmax(dim=1).tril() @ value


def _unmasked(query: Any, key: Any, value: Any) -> Any:
    return (query @ key.T / query.shape[1] ** 0.5).softmax(dim=1) @ value


def _hides_itself(query: Any, key: Any, value: Any) -> Any:
    import torch

    mask = torch.full((len(query), len(query)), -math.inf).triu(0)
    return (query @ key.T / query.shape[1] ** 0.5 + mask).softmax(dim=1) @ value


# --- 06.3 --------------------------------------------------------------------------------------------------------

PIECES = 30


def leaks(logits_of: Callable[[Any], Any], pieces: Any) -> bool:
    """Reference of 06.3: whether some piece moves a logit at an earlier place."""
    import torch

    before = logits_of(pieces)
    for place in range(1, len(pieces)):
        changed = pieces.clone()
        changed[place] = (pieces[place] + 1) % PIECES
        if not torch.equal(logits_of(changed)[:place], before[:place]):
            return True
    return False


def _decoder(rng: Any, length: int, leak: tuple[int, int] | None) -> Callable[[Any], Any]:
    """Return a decoder whose place t reads the pieces 0 to t, and, if `leak` is (t, s), at place t also piece s > t."""
    import torch

    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    table = torch.randn(PIECES, 8, generator=generator)
    out = torch.randn(8, PIECES, generator=generator)
    reads = torch.ones(length, length).tril()
    if leak is not None:
        reads[leak] = 0.01

    def logits_of(pieces: Any) -> Any:
        states = table[pieces]  # each place is added up by itself: what it doesn't read can't move it
        return torch.stack(
            [states[reads[place] > 0].mul(reads[place][reads[place] > 0, None]).sum(0) @ out for place in range(length)]
        )

    return logits_of


def _verify_leaks(answer: Callable[..., Any], rng: Any) -> None:
    import torch

    for number in range(9):
        length = int(rng.integers(5, 9))
        pieces = torch.from_numpy(rng.integers(0, PIECES, size=length))
        place = (0, length - 2, int(rng.integers(0, length - 2)))[number % 3]
        leak = None if number < 3 else (place, place + 1) if number < 6 else (0, int(rng.integers(1, length)))
        found = answer(_decoder(rng, length, leak), pieces.clone())
        if found is None or found is Ellipsis:
            raise Misconception("your function returned nothing; end it with return")
        if bool(found) and leak is None:
            raise Misconception(
                "An honest decoder: you say it leaks. The changed piece itself and what comes after it may move its "
                "logits; compare only the places before it."
            )
        if not bool(found) and leak is not None:
            raise Misconception(
                f"A decoder of {length} places, where place {leak[0]} reads piece {leak[1]}, a little: you say it is "
                "honest. Change each piece in turn, and let no difference be too small."
            )


def _changes_the_last(logits_of: Callable[[Any], Any], pieces: Any) -> bool:
    import torch

    changed = pieces.clone()
    changed[-1] = (pieces[-1] + 1) % PIECES
    return not torch.equal(logits_of(changed)[:-1], logits_of(pieces)[:-1])


def _compares_all(logits_of: Callable[[Any], Any], pieces: Any) -> bool:
    import torch

    changed = pieces.clone()
    changed[-1] = (pieces[-1] + 1) % PIECES
    return not torch.equal(logits_of(changed), logits_of(pieces))


def _tolerant(logits_of: Callable[[Any], Any], pieces: Any) -> bool:
    import torch

    before = logits_of(pieces)
    for place in range(1, len(pieces)):
        changed = pieces.clone()
        changed[place] = (pieces[place] + 1) % PIECES
        if not torch.allclose(logits_of(changed)[:place], before[:place], atol=0.5):
            return True
    return False


EXERCISES = (
    Exercise(
        id="06.1",
        title="The contrastive loss",
        difficulty=2,
        minutes=15,
        verify=_verify_contrastive,
        reference=contrastive,
        wrong=(
            ("takes one direction only", _one_direction),
            ("forgets to normalize", _no_norm),
            ("divides by the scale", _divides),
        ),
    ),
    Exercise(
        id="06.2",
        title="Attention that looks back only",
        difficulty=2,
        minutes=15,
        verify=_verify_attention,
        reference=causal_attention,
        wrong=(
            ("has no mask", _unmasked),
            ("masks after the softmax", _masked_late),
            ("hides the diagonal too", _hides_itself),
        ),
    ),
    Exercise(
        id="06.3",
        title="Catch a leak",
        difficulty=3,
        minutes=20,
        verify=_verify_leaks,
        reference=leaks,
        wrong=(
            ("changes the last piece only", _changes_the_last),
            ("compares the changed place too", _compares_all),
            ("lets small differences pass", _tolerant),
        ),
    ),
)

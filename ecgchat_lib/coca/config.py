"""Sizes of ECG-CoCa as data: the front end, the 1-D vision transformer, the caption decoder, and two presets.

`MINI` is what the course trains and ships; `PAPER` is the size of the original. A config builds nothing by itself:
`EcgEncoder` and `EcgCoca` read it, and a checkpoint stores it beside the weights. Taught in: 05 §1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ecgchat_lib.errors import ParameterError

LEADS = 12


@dataclass(frozen=True)
class EcgEncoderConfig:
    """Sizes of the ECG encoder, and the front end its weights expect.

    Attributes:
        fs: samples per second that the encoder reads, Hz.
        seconds: length of the window that the encoder reads, s.
        band: pass band of the front end, Hz, or None for the raw signal.
        z_score: the front end scales each lead to mean 0 and standard deviation 1 (millivolts are lost).
        keep_scale: the encoder itself scales each lead so, and tells the CLS token what the deviations were. So a
            recording in millivolts and one that was scaled before can be read alike, and height still counts.
        patch_samples: samples in one patch; the window must hold a whole number of patches.
        stem_channels: channels of a small convolutional stem in front of the patches; 0 for none, as in the paper.
        width: length of one token.
        layers: transformer blocks.
        heads: attention heads; they divide the width.
        mlp_ratio: hidden width of a block's MLP, as a multiple of `width`.
        embedding: length of the pooled embedding that meets the text's.
        patch_dropout: share of patches dropped in training, 0 to 1 (exclusive); none in evaluation.
    """

    fs: float = 100.0
    seconds: float = 10.0
    band: tuple[float, float] | None = (0.5, 40.0)
    z_score: bool = True
    keep_scale: bool = False
    patch_samples: int = 10
    stem_channels: int = 0
    width: int = 192
    layers: int = 4
    heads: int = 6
    mlp_ratio: float = 4.0
    embedding: int = 256
    patch_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.samples % self.patch_samples:
            raise ParameterError(
                f"patch_samples={self.patch_samples} does not divide the window of {self.samples} samples "
                f"({self.seconds} s at {self.fs} Hz). Choose a divisor of {self.samples}."
            )
        if self.width % self.heads:
            raise ParameterError(f"heads={self.heads} does not divide width={self.width}. Choose a divisor.")

    @property
    def samples(self) -> int:
        """Samples per lead in one window."""
        return round(self.fs * self.seconds)

    @property
    def patches(self) -> int:
        """Patch tokens in one window."""
        return self.samples // self.patch_samples

    @property
    def tokens(self) -> int:
        """All tokens of one window: CLS and the patches."""
        return self.patches + 1


@dataclass(frozen=True)
class CaptionDecoderConfig:
    """Sizes of the caption decoder. Its width is the encoder's, since it attends to the encoder's tokens.

    Attributes:
        vocabulary: number of word pieces, the four special ones included.
        context: most pieces that go in (the start piece included).
        layers: pairs of a causal self-attention block and a cross-attention block.
        heads: attention heads.
    """

    vocabulary: int = 512
    context: int = 63
    layers: int = 2
    heads: int = 6


@dataclass(frozen=True)
class EcgCocaConfig:
    """The whole model.

    Attributes:
        encoder: sizes of the ECG encoder.
        decoder: sizes of the caption decoder.
        text_width: length of the frozen report encoder's states; 384 for all-MiniLM-L6-v2.
        token_hidden: hidden width of a network that reads each state before they are pooled; 0 for a linear map of the
            pooled states alone, as in the paper.
        number_hidden: hidden width of the network that reads the measured numbers at a report's end; 0 for none: the
            numbers are words then.
    """

    encoder: EcgEncoderConfig = EcgEncoderConfig()
    decoder: CaptionDecoderConfig = CaptionDecoderConfig()
    text_width: int = 384
    token_hidden: int = 0
    number_hidden: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the config as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EcgCocaConfig:
        """Build a config from `as_dict()`'s values.

        Raises:
            ParameterError: a field is missing, unknown, or out of range.
        """
        try:
            encoder = dict(values["encoder"])
            encoder["band"] = tuple(encoder["band"]) if encoder["band"] is not None else None
            return cls(
                encoder=EcgEncoderConfig(**encoder),
                decoder=CaptionDecoderConfig(**values["decoder"]),
                **{name: int(value) for name, value in values.items() if name not in ("encoder", "decoder")},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ParameterError(
                f"the ECG-CoCa config does not fit this version of the library ({error}). "
                "Load the weights with the version that wrote them, or train them again."
            ) from error


MINI = EcgCocaConfig(
    encoder=EcgEncoderConfig(z_score=False, keep_scale=True, stem_channels=32, patch_dropout=0.4),
    decoder=CaptionDecoderConfig(context=48, layers=1),
    token_hidden=256,
    number_hidden=256,
)

PAPER_ENCODER_PARAMETERS = 85_989_888  # counted in the released code's encoder
PAPER = EcgCocaConfig(
    encoder=EcgEncoderConfig(
        fs=500.0,
        band=None,
        z_score=False,
        patch_samples=50,
        width=768,
        layers=12,
        heads=12,
        embedding=512,
    ),
    decoder=CaptionDecoderConfig(vocabulary=49_408, context=76, layers=12, heads=8),
    text_width=768,
)

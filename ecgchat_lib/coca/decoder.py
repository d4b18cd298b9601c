"""The caption decoder: writes the report word piece by word piece, looking only back, and at the ECG.

Causal self-attention over the pieces and cross-attention to the patch tokens, by open_clip's `MultimodalTransformer`.
Unlike the original, its input is its own embedding of the pieces, never the states of a bidirectional text encoder,
which would hand it the next piece (see the test of the leak). Taught in: 06 §4–5.
"""

from __future__ import annotations

import torch
from open_clip.transformer import MultimodalTransformer
from torch import nn

from ecgchat_lib.coca.config import CaptionDecoderConfig
from ecgchat_lib.errors import ParameterError


class CaptionDecoder(nn.Module):
    """Predict the next word piece from the pieces so far and the ECG's patch tokens.

    Args:
        config: the sizes.
        width: length of a token; the same as the encoder's.

    Raises:
        ParameterError: `heads` does not divide `width`.
    """

    def __init__(self, config: CaptionDecoderConfig, width: int) -> None:
        super().__init__()
        if width % config.heads:
            raise ParameterError(f"the decoder's heads={config.heads} do not divide width={width}. Choose a divisor.")
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context, width))
        self.transformer = MultimodalTransformer(
            width, config.layers, config.heads, context_length=config.context, output_dim=config.vocabulary
        )
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        # open_clip's projection to the vocabulary is left uninitialized by its constructor.
        nn.init.normal_(self.transformer.text_projection, std=width**-0.5)

    def forward(self, pieces: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next piece at every position.

        Args:
            pieces: (B, L) ids, the start piece first, L ≤ context.
            patches: (B, N, width) patch tokens of the ECG, CLS left out.

        Returns:
            (B, L, vocabulary); position t is computed from pieces 0..t only.
        """
        length = pieces.shape[1]
        if length > self.config.context:
            raise ParameterError(f"{length} pieces do not fit the decoder's context of {self.config.context}")
        states = self.token_embedding(pieces) + self.positional_embedding[:length]  # (B, L, width)
        return self.transformer(patches, states)

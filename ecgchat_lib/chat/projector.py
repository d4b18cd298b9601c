"""The projector: a two-layer MLP that turns ECG tokens into vectors the language model reads like word embeddings.

It is the bridge that stage 1 trains while both of its shores stay frozen. Taught in: 11 §2.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from ecgchat_lib.errors import ParameterError


class Projector(nn.Module):
    """Linear, GELU, linear (LLaVA's "mlp2x_gelu"): (batch, tokens, width) → (batch, tokens, hidden).

    A LayerNorm in front evens out the tokens, which come from the encoder's last block before its final norm and so
    have no fixed scale. `input_norm=False` leaves it out, as the original does.

    Args:
        width: length of one ECG token.
        hidden: length of one word embedding of the language model.
        input_norm: whether the LayerNorm is there.
        places: 0: each token is projected by itself, as in the original. Else the ECG tokens of a recording: each is
            read together with the first one (CLS), which sums up the ECG, and with a learned vector for its
            place, so that the places can say different things about the ECG.
    """

    def __init__(self, width: int, hidden: int, *, input_norm: bool = True, places: int = 0) -> None:
        super().__init__()
        self.width, self.hidden, self.places = width, hidden, places
        self.norm = nn.LayerNorm(width) if input_norm else nn.Identity()
        self.up = nn.Linear(2 * width if places else width, hidden)
        self.place = nn.Parameter(torch.randn(places, hidden)) if places else None
        self.down = nn.Linear(hidden, hidden)

    def forward(self, tokens: torch.Tensor, drawn: torch.Tensor | None = None) -> torch.Tensor:
        """Project ECG tokens (batch, tokens, width) to (batch, tokens, hidden).

        Args:
            tokens: of whole recordings, CLS first.
            drawn: places (k,) to project; only these come back, (batch, k, hidden). All if None.

        Raises:
            ParameterError: the tokens have another width or number, so another encoder made them.
        """
        if tokens.ndim != 3 or tokens.shape[-1] != self.width:
            raise ParameterError(
                f"projector: got ECG tokens of shape {tuple(tokens.shape)}, expected (batch, tokens, {self.width}). "
                "Use the encoder that this projector was trained with."
            )
        if self.places and len(tokens) and tokens.shape[1] != self.places:
            raise ParameterError(
                f"projector: got {tokens.shape[1]} tokens of each ECG, expected {self.places}, the places it was made "
                "for. Use the encoder that it was trained with."
            )
        if tokens.is_inference():  # made under torch.inference_mode(), and of no use to a backward pass as it is
            tokens = tokens.clone()
        read = self.norm(tokens if drawn is None else tokens[:, drawn])
        if self.place is None:
            up = self.up(read)
        else:
            whole = self.norm(tokens[:, :1])
            up = self.up(torch.cat([read, whole.expand_as(read)], dim=-1))
            up = up + (self.place if drawn is None else self.place[drawn])
        return cast(torch.Tensor, self.down(nn.functional.gelu(up)))

    def scale_to(self, embeddings: torch.Tensor) -> None:
        """Scale the last layer so that outputs start about as long as word embeddings (vocabulary, hidden).

        Random outputs many times longer than any word would drown the text in the first steps.
        """
        with torch.no_grad():
            sample = torch.randn(64, self.places or 1, self.width, generator=torch.Generator().manual_seed(0)).to(
                self.up.weight.device
            )
            ratio = embeddings.float().std() / self(sample).std()
            self.down.weight.mul_(ratio)
            self.down.bias.mul_(ratio)

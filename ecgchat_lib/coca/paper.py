"""The original ECG-CoCa, name for name: a model whose state dict is that of the released `cpt_wfep_epoch_20.pt`.

For those who have that file (666 entries, 403,348,993 parameters): `load_paper_checkpoint` reads it strictly and runs
no code from it. It computes what the original computes, the leak of its caption loss included; to train, take
`EcgCoca`, which has none. The file itself isn't shipped, so the tests load random ones. Taught in: 06 §7.

Where the names come from: the released training code keeps an ECG tower as `ecg`, open_clip's `HFTextEncoder` (mean
pooling, linear projection) around MedCPT as `text`, open_clip's multimodal transformer as `text_decoder`, and
`logit_scale`. Only one reading of that gives 666: a BERT without pooler (with one: 668), positions that aren't saved
(with them: 667), and one projection matrix (open_clip's other kind, an MLP: 667).
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from open_clip.transformer import MultimodalTransformer
from torch import nn
from torch.nn import functional

from ecgchat_lib.coca.config import PAPER, CaptionDecoderConfig, EcgEncoderConfig
from ecgchat_lib.coca.encoder import EcgEncoder
from ecgchat_lib.coca.losses import INITIAL_LOGIT_SCALE
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError
from ecgchat_lib.models import resolve

PAPER_ENTRIES = 666
PAPER_PARAMETERS = 403_348_993
POSITION_IDS = "text.transformer.embeddings.position_ids"  # transformers before 4.31 saved these; they are no weights
FLOATS = {torch.float16, torch.bfloat16, torch.float32}
SHOWN = 3  # names that an error message lists


@dataclass(frozen=True)
class PaperConfig:
    """Sizes of the original; the defaults are the released file's. The three towers share one width.

    Attributes:
        encoder: the ECG tower, without stem, on raw millivolts.
        decoder: the caption decoder; its vocabulary is larger than the text tower's, as in the original.
        text_layers: BERT layers of the text tower.
        text_heads: attention heads of each.
        text_vocabulary: word pieces that the text tower knows.
        text_positions: longest text that it could read, in pieces.
    """

    encoder: EcgEncoderConfig = PAPER.encoder
    decoder: CaptionDecoderConfig = PAPER.decoder
    text_layers: int = 12
    text_heads: int = 12
    text_vocabulary: int = 30_522
    text_positions: int = 512


class PaperOutput(NamedTuple):
    """One forward pass of B pairs, L pieces each.

    Attributes:
        ecg: (B, embedding), L2-normalized.
        text: (B, embedding), L2-normalized.
        logits: (B, L − 1, vocabulary), the next piece at each place, **with the leak**.
        labels: (B, L − 1), the pieces shifted by one; 0 is padding.
        scale: the inverse temperature, a scalar.
    """

    ecg: torch.Tensor
    text: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor
    scale: torch.Tensor


class PaperCoca(nn.Module):
    """The original's model from open_clip's parts, with random weights; `load_paper_checkpoint` fills it.

    Args:
        config: the sizes.

    Raises:
        ParameterError: the heads of a tower do not divide the width, or the encoder's config has what the original
            hasn't (a stem, patch dropout).
    """

    def __init__(self, config: PaperConfig = PaperConfig()) -> None:
        super().__init__()
        width = config.encoder.width
        if config.encoder.stem_channels or config.encoder.patch_dropout:
            raise ParameterError("the original's ECG tower has no stem and no patch dropout: set both to 0")
        for name, heads in (("text_heads", config.text_heads), ("the decoder's heads", config.decoder.heads)):
            if width % heads:
                raise ParameterError(f"{name}={heads} does not divide width={width}. Choose a divisor.")
        self.config = config
        self.ecg = EcgEncoder(config.encoder)
        self.text = _text_tower(config)
        self.text_decoder = MultimodalTransformer(
            width,
            config.decoder.layers,
            config.decoder.heads,
            context_length=config.decoder.context,
            output_dim=config.decoder.vocabulary,
        )
        # open_clip's projection to the vocabulary is left uninitialized by its constructor.
        nn.init.normal_(self.text_decoder.text_projection, std=width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))

    def tokens(self, ecg: torch.Tensor) -> torch.Tensor:
        """Return what the original's language model reads: (B, 101, width), CLS first, before the final norm.

        Args:
            ecg: (B, 12, 5000) raw millivolts at 500 Hz; NaN and infinite samples count as 0.
        """
        return self.ecg(_finite(ecg)).tokens

    def encode_ecg(self, ecg: torch.Tensor) -> torch.Tensor:
        """Return L2-normalized embeddings (B, embedding) of (B, 12, 5000) raw millivolts at 500 Hz."""
        return functional.normalize(self.ecg(_finite(ecg)).embedding, dim=-1)

    def encode_text(self, pieces: torch.Tensor) -> torch.Tensor:
        """Return L2-normalized embeddings (B, embedding) of pieces (B, L) from `paper_pieces`."""
        pooled, _ = self.text(pieces)
        return functional.normalize(pooled, dim=-1)

    def forward(self, ecg: torch.Tensor, pieces: torch.Tensor) -> PaperOutput:
        """Run all three towers as the original does in training.

        The decoder reads the token states of the text tower, which looks in both directions, so the state at place t
        already holds piece t + 1, the label. Its own mask is causal, but that comes too late. The logits are therefore
        no measure of how well the model writes.

        Args:
            ecg: (B, 12, 5000) raw millivolts at 500 Hz.
            pieces: (B, L) ids from `paper_pieces`, L − 1 ≤ the decoder's context.

        Raises:
            ParameterError: more pieces than the decoder's context and one.
        """
        if pieces.shape[1] - 1 > self.config.decoder.context:
            raise ParameterError(
                f"{pieces.shape[1]} pieces do not fit: the decoder's context is {self.config.decoder.context}, and the "
                "last piece is only a label. Cut the texts."
            )
        encoded = self.ecg(_finite(ecg))
        pooled, states = self.text(pieces)  # (B, embedding), (B, L, width)
        patches = self.ecg.ln_post(encoded.tokens[:, 1:])  # (B, 100, width)
        return PaperOutput(
            ecg=functional.normalize(encoded.embedding, dim=-1),
            text=functional.normalize(pooled, dim=-1),
            logits=self.text_decoder(patches, states[:, :-1]),
            labels=pieces[:, 1:],
            scale=self.logit_scale.exp(),
        )


def _text_tower(config: PaperConfig) -> nn.Module:
    """Return open_clip's text tower around a random BERT: mean pooling, projection without bias, no download."""
    from open_clip.hf_model import HFTextEncoder
    from transformers import BertConfig

    width = config.encoder.width
    bert = BertConfig(
        vocab_size=config.text_vocabulary,
        hidden_size=width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        intermediate_size=4 * width,
        max_position_embeddings=config.text_positions,
    )
    tower = HFTextEncoder(
        "", config.encoder.embedding, bert, pooler_type="mean_pooler", proj_type="linear", output_tokens=True
    )
    tower.transformer.pooler = None  # BERT's own pooler, which mean pooling replaces; the released file has none
    return tower


def _finite(ecg: torch.Tensor) -> torch.Tensor:
    return torch.nan_to_num(ecg, nan=0.0, posinf=0.0, neginf=0.0)


def paper_shapes(config: PaperConfig = PaperConfig()) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of each entry of the state dict. Built on the meta device: it takes no memory."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in PaperCoca(config).state_dict().items()}


def paper_pieces(texts: Sequence[str], *, length: int = 77, folder: Path | None = None) -> torch.Tensor:
    """Return BERT ids (n, length) of texts as the original makes them: start, pieces, end, padding with 0.

    Args:
        texts: reports; runs of blanks count as one, upper and lower case are the same.
        length: pieces a text; the rest is cut off before the end piece.
        folder: where MedCPT's `tokenizer.json` lies; None for the installed part "report-encoder-full".

    Raises:
        MissingPartError: the tokenizer isn't on this machine.
    """
    from tokenizers import Tokenizer

    path = (folder or resolve("report-encoder-full")) / "tokenizer.json"
    if not path.is_file():
        raise MissingPartError("report-encoder-full", f"{path} is missing", "Fetch ncbi/MedCPT-Query-Encoder again")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    return torch.tensor([line.ids for line in tokenizer.encode_batch([" ".join(text.split()) for text in texts])])


def load_paper_checkpoint(path: Path, config: PaperConfig = PaperConfig()) -> PaperCoca:
    """Read the original's weights, strictly: every name, every shape, nothing left over. No code from the file runs.

    Args:
        path: safetensors, or a `torch.save` file that holds nothing but tensors and plain values. The weights may lie
            under `state_dict`, as training scripts leave them, and carry the prefix `module.`; float16, bfloat16 or
            float32.
        config: the sizes; other ones only for tests.

    Returns:
        The model in float32 and evaluation mode, without gradients.

    Raises:
        MissingPartError: there is no such file.
        EcgChatError: the file is cut off, asks to run code, or has other names, shapes or kinds of numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingPartError(
            path.name, f"no file {path}", "Give the path of the released checkpoint, or a copy of it"
        )
    weights = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)
    _check(path, weights, paper_shapes(config))
    model = PaperCoca(config)
    model.load_state_dict(weights)  # copies into float32, one tensor at a time
    broken = [name for name, value in model.named_parameters() if not bool(torch.isfinite(value).all())]
    if broken:
        raise EcgChatError(
            f"{path}: NaN or infinite weights in {_listed(broken)}. The file is damaged: fetch it again."
        )
    return model.eval().requires_grad_(False)


def _is_safetensors(path: Path) -> bool:
    """Tell by the content: eight bytes with the length of a JSON header, then the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return _plain_names(load_file(path))
    except (SafetensorError, OSError) as error:
        raise EcgChatError(f"{path}: not readable as safetensors ({error}). It is cut off: fetch it again.") from error


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Read a `torch.save` file with torch's unpickler that knows tensors only; large ones stay in the file."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise EcgChatError(
            f"{path}: holds more than tensors, or isn't a torch.save file; reading it could run code, so it was not "
            f"read ({_first_line(error)}). Ask for a safetensors file, or convert it where nothing can be lost: "
            "safetensors.torch.save_file(torch.load(path, weights_only=False)['state_dict'], 'weights.safetensors')"
        ) from error
    except Exception as error:  # damaged bytes make torch raise nearly anything, assertions included
        raise EcgChatError(
            f"{path}: not readable as a torch.save file ({_first_line(error)}). It is cut off or something else: "
            "fetch it again."
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise EcgChatError(
            f"{path}: holds {type(content).__name__}, expected a dictionary of named tensors. Save model.state_dict()."
        )
    return _plain_names(content)


def _plain_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the prefix that distributed training leaves, and position ids that old transformers saved."""
    prefix = "module."
    wrapped = all(name.startswith(prefix) for name in weights)
    named = {name.removeprefix(prefix) if wrapped else name: value for name, value in weights.items()}
    return {name: value for name, value in named.items() if name != POSITION_IDS}


def _check(path: Path, weights: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise an EcgChatError unless the names, kinds and shapes are exactly those expected."""
    missing, unexpected = (sorted(a.keys() - b.keys()) for a, b in ((shapes, weights), (weights, shapes)))
    problems = [f"{len(missing)} names are missing ({_listed(missing)})"] if missing else []
    if unexpected:
        problems.append(f"{len(unexpected)} names are unknown ({_listed(unexpected)})")
    both = [name for name in shapes if name in weights]
    kinds = [name for name in both if not _is_plain(weights[name])]
    if kinds:
        problems.append(f"{len(kinds)} entries are no dense float16, bfloat16 or float32 tensors ({_listed(kinds)})")
    other = [name for name in both if name not in kinds and tuple(weights[name].shape) != shapes[name]]
    if other:
        first = other[0]
        found = f"{first} is {tuple(weights[first].shape)}, expected {shapes[first]}"
        problems.append(f"{len(other)} shapes differ ({found})")
    if problems:
        raise EcgChatError(
            f"{path}: not the original's ECG-CoCa: {'; '.join(problems)}; expected {len(shapes)} entries. "
            "Give the whole model's checkpoint, not one tower's, and no other model's."
        )


def _is_plain(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and value.dtype in FLOATS


def _listed(names: Iterable[str]) -> str:
    """Return the first few names, and how many more there are. A name from outside is cut at 80 characters."""
    shown = [name[:80] for name in names]
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + more


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:120]

"""The original's model, name for name: 666 entries, equality with open_clip's CoCa, and files that must be refused."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ecgchat_lib.coca.config import PAPER, PAPER_ENCODER_PARAMETERS, CaptionDecoderConfig, EcgEncoderConfig
from ecgchat_lib.coca.losses import caption_loss
from ecgchat_lib.coca.paper import (
    PAPER_ENTRIES,
    PAPER_PARAMETERS,
    POSITION_IDS,
    PaperCoca,
    PaperConfig,
    load_paper_checkpoint,
    paper_pieces,
    paper_shapes,
)
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError

# torch warns of pickles that it doesn't expect; those of these tests are meant to be unexpected.
pytestmark = pytest.mark.filterwarnings("ignore:(Validating sparse|Detected pickle protocol):UserWarning")

SMALL = PaperConfig(
    encoder=EcgEncoderConfig(
        fs=20.0, seconds=4.0, band=None, z_score=False, patch_samples=8, width=24, layers=2, heads=3, embedding=16
    ),
    decoder=CaptionDecoderConfig(vocabulary=60, context=12, layers=2, heads=3),
    text_layers=2,
    text_heads=3,
    text_vocabulary=50,
    text_positions=20,
)


def small_model(seed: int = 0) -> PaperCoca:
    torch.manual_seed(seed)
    return PaperCoca(SMALL).eval().requires_grad_(False)


def pair(batch: int = 3, length: int = 13) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pieces = torch.randint(1, 50, (batch, length), generator=generator)
    return torch.randn(batch, 12, 80, generator=generator), pieces


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint as the training script writes it: nested, prefixed, with the optimizer's state."""
    path = tmp_path_factory.mktemp("paper") / "cpt_wfep_epoch_20.pt"
    state = {f"module.{name}": value for name, value in small_model().state_dict().items()}
    torch.save({"epoch": 20, "name": "coca", "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}, path)
    return path


# --- names, shapes, sizes -------------------------------------------------------------------------------------------


def test_the_released_files_names_and_shapes():
    shapes = paper_shapes()
    assert len(shapes) == PAPER_ENTRIES == 666
    assert sum(math.prod(shape) for shape in shapes.values()) == PAPER_PARAMETERS == 403_348_993
    towers = {name.split(".")[0] for name in shapes}
    assert towers == {"ecg", "text", "text_decoder", "logit_scale"}
    ecg = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("ecg."))
    assert ecg == PAPER_ENCODER_PARAMETERS


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("logit_scale", ()),
        ("ecg.conv1.weight", (768, 12, 50)),
        ("ecg.class_embedding", (768,)),
        ("ecg.positional_embedding", (101, 768)),
        ("ecg.ln_pre.bias", (768,)),
        ("ecg.transformer.resblocks.11.attn.in_proj_weight", (2304, 768)),
        ("ecg.proj", (768, 512)),
        ("text.transformer.embeddings.word_embeddings.weight", (30_522, 768)),
        ("text.transformer.encoder.layer.11.output.dense.weight", (768, 3072)),
        ("text.proj.weight", (512, 768)),
        ("text_decoder.resblocks.0.mlp.c_fc.weight", (3072, 768)),
        ("text_decoder.cross_attn.11.ln_1_kv.weight", (768,)),
        ("text_decoder.text_projection", (768, 49_408)),
    ],
)
def test_one_entry_of_each_kind(name, shape):
    assert paper_shapes()[name] == shape


def test_the_model_holds_no_buffer_that_would_be_saved():
    model = small_model()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


# --- what it computes -----------------------------------------------------------------------------------------------


def test_forward_equals_open_clips_coca():
    """open_clip's CoCa with the same towers (a picture one pixel high in place of the ECG) gives the same numbers."""
    from open_clip.coca_model import CoCa
    from open_clip.transformer import VisionTransformer

    ours, (ecg, pieces) = small_model(), pair()
    sizes = {"width": 24, "layers": 2}
    decoder, text = {**sizes, "heads": 3, "context_length": 12}, {**sizes, "heads": 3, "vocab_size": 60}
    theirs = CoCa(16, decoder, text, {**sizes, "head_width": 8})
    theirs.visual = VisionTransformer((1, 80), (1, 8), 24, 2, 3, 4.0, output_dim=16, output_tokens=True)
    theirs.visual.conv1 = torch.nn.Conv2d(12, 24, (1, 8), stride=(1, 8), bias=False)
    theirs.text = PaperCoca(SMALL).text
    weights = {name.replace("ecg.", "visual.", 1): value for name, value in ours.state_dict().items()}
    weights["visual.conv1.weight"] = weights["visual.conv1.weight"].unsqueeze(2)
    theirs.load_state_dict(weights)  # strict: the same names
    with torch.inference_mode():
        out, expected = ours(ecg, pieces), theirs.eval()(ecg.unsqueeze(2), pieces)
    torch.testing.assert_close(out.ecg, expected["image_features"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.text, expected["text_features"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.logits, expected["logits"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.scale, expected["logit_scale"])
    assert torch.equal(out.labels, expected["labels"])


def test_embeddings_and_tokens():
    model, (ecg, pieces) = small_model(), pair()
    out = model(ecg, pieces)
    torch.testing.assert_close(model.encode_ecg(ecg), out.ecg)
    torch.testing.assert_close(model.encode_text(pieces), out.text)
    torch.testing.assert_close(out.ecg.norm(dim=1), torch.ones(3))
    assert model.tokens(ecg).shape == (3, 11, 24)  # CLS and ten patches
    torch.testing.assert_close(model.tokens(ecg), model.ecg(ecg).tokens)


def test_missing_samples_count_as_zero():
    model, (ecg, _) = small_model(), pair()
    broken, zeroed = ecg.clone(), ecg.clone()
    broken[0, 3, :10], broken[1, 2, 5], broken[1, 2, 6] = torch.nan, torch.inf, -torch.inf
    zeroed[0, 3, :10], zeroed[1, 2, 5:7] = 0.0, 0.0
    assert torch.equal(model.encode_ecg(broken), model.encode_ecg(zeroed))


def test_padding_moves_no_text_embedding():
    model, (_, pieces) = small_model(), pair(length=9)
    padded = torch.cat([pieces, torch.zeros(3, 4, dtype=torch.long)], dim=1)
    torch.testing.assert_close(model.encode_text(pieces), model.encode_text(padded), rtol=1e-4, atol=1e-5)


def test_the_original_leaks_the_next_piece():
    """This is the original's fault, kept on purpose: later pieces move earlier logits. `EcgCoca`'s must not."""
    model, (ecg, pieces) = small_model(), pair()
    changed = pieces.clone()
    changed[:, 8:] = changed[:, 8:] % 49 + 1
    before, after = model(ecg, pieces).logits, model(ecg, changed).logits
    assert bool(((before[:, :8] - after[:, :8]).abs().amax(dim=2) > 1e-4).all())


def test_gradients_reach_all_that_its_losses_use():
    torch.manual_seed(0)
    model, (ecg, pieces) = PaperCoca(SMALL).train(), pair()
    out = model(ecg, pieces)
    logits = out.scale * out.ecg @ out.text.T
    (torch.nn.functional.cross_entropy(logits, torch.arange(3)) + caption_loss(out.logits, out.labels)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


def test_wrong_sizes_are_told():
    from dataclasses import replace

    model, (ecg, pieces) = small_model(), pair(length=14)
    with pytest.raises(ParameterError, match="14 pieces do not fit: the decoder's context is 12"):
        model(ecg, pieces)
    with pytest.raises(ParameterError, match="text_heads=5 does not divide width=24"):
        PaperCoca(replace(SMALL, text_heads=5))
    with pytest.raises(ParameterError, match="no stem"):
        PaperCoca(replace(SMALL, encoder=replace(SMALL.encoder, stem_channels=4)))


def test_pieces_as_the_originals_tokenizer_makes_them():
    """MiniLM's tokenizer stands for MedCPT's: both are BERT's lower-cased WordPiece, with other words."""
    from ecgchat_lib.models import resolve

    folder = resolve("report-encoder")
    pieces = paper_pieces(["Sinus   rhythm.", "sinus rhythm.", " ".join(["normal"] * 100)], folder=folder)
    assert pieces.shape == (3, 77)
    assert torch.equal(pieces[0], pieces[1])
    start, end = pieces[0, 0].item(), pieces[2, -1].item()
    assert (start, end) == (101, 102)  # [CLS] and [SEP]
    assert pieces[0, 10:].sum() == 0
    with pytest.raises(MissingPartError, match="report-encoder-full"):
        paper_pieces(["sinus rhythm"])


# --- files ----------------------------------------------------------------------------------------------------------


def expect_small(model: PaperCoca, tolerance: float = 0.0) -> None:
    expected = small_model().state_dict()
    assert set(model.state_dict()) == set(expected)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_reads_a_training_scripts_file(saved):
    expect_small(load_paper_checkpoint(saved, SMALL))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_reads_bare_dictionaries_in_both_formats(tmp_path, dtype):
    state = {name: value.to(dtype) for name, value in small_model().state_dict().items()}
    torch.save(state, tmp_path / "bare.pt")
    save_file(state, tmp_path / "bare.safetensors")
    for name in ("bare.pt", "bare.safetensors"):
        expect_small(load_paper_checkpoint(tmp_path / name, SMALL), 0.0 if dtype == torch.float32 else 0.01)


def test_the_format_is_told_by_content_and_not_by_name(tmp_path, saved):
    (tmp_path / "weights.bin").write_bytes(saved.read_bytes())
    save_file(small_model().state_dict(), tmp_path / "weights.pt")
    for name in ("weights.bin", "weights.pt"):
        expect_small(load_paper_checkpoint(tmp_path / name, SMALL))


def test_reads_the_format_of_old_torch_and_the_position_ids_of_old_transformers(tmp_path):
    state = small_model().state_dict() | {POSITION_IDS: torch.arange(20)[None]}
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    expect_small(load_paper_checkpoint(tmp_path / "old.pt", SMALL))


def change(state: dict, what: str) -> dict:
    """Return a state dict with one fault."""
    name = "ecg.ln_pre.weight"
    if what == "missing":
        return {key: value for key, value in state.items() if not key.startswith("ecg.ln_p")}
    if what == "unexpected":
        return state | {"visual.proj": torch.zeros(2), "logit_bias": torch.zeros(())}
    if what == "shape":
        return state | {name: torch.zeros(25)}
    if what == "integers":
        return state | {name: torch.zeros(24, dtype=torch.long)}
    if what == "sparse":
        return state | {name: torch.zeros(24).to_sparse()}
    if what == "number":
        return state | {name: 3.0}
    assert what == "nan"
    return state | {name: torch.full((24,), torch.nan)}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", r"4 names are missing \(ecg\.ln_post\.bias, ecg\.ln_post\.weight, ecg\.ln_pre\.bias and 1 more\)"),
        ("unexpected", r"2 names are unknown \(logit_bias, visual\.proj\)"),
        ("shape", r"1 shapes differ \(ecg\.ln_pre\.weight is \(25,\), expected \(24,\)\)"),
        ("integers", r"1 entries are no dense float16.*\(ecg\.ln_pre\.weight\)"),
        ("sparse", r"1 entries are no dense float16"),
        ("number", r"1 entries are no dense float16"),
        ("nan", r"NaN or infinite weights in ecg\.ln_pre\.weight"),
    ],
)
def test_other_files_are_refused_with_reasons(tmp_path, what, message):
    path = tmp_path / "other.pt"
    torch.save({"state_dict": change(dict(small_model().state_dict()), what)}, path)
    with pytest.raises(EcgChatError, match=message) as error:
        load_paper_checkpoint(path, SMALL)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 700 + len(str(path))


def test_one_towers_file_is_refused(tmp_path):
    save_file(small_model().ecg.state_dict(), tmp_path / "tower.safetensors")
    with pytest.raises(EcgChatError, match=r"names are missing .*names are unknown .*whole model's checkpoint"):
        load_paper_checkpoint(tmp_path / "tower.safetensors", SMALL)


def test_a_missing_file_and_another_object(tmp_path):
    with pytest.raises(MissingPartError, match="no file"):
        load_paper_checkpoint(tmp_path / "nowhere.pt", SMALL)
    for content in ([1, 2], {1: torch.zeros(1)}, {}):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(EcgChatError, match=r"other\.pt"):
            load_paper_checkpoint(tmp_path / "other.pt", SMALL)


class RunsOnLoad:
    """What a malicious checkpoint holds: an object whose unpickling calls a function of its maker's choice."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path, zipped):
    trace, path = tmp_path / "trace", tmp_path / "cpt_wfep_epoch_20.pt"
    content = {"state_dict": dict(small_model().state_dict()), "name": RunsOnLoad(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(EcgChatError, match=r"reading it could run code.*safetensors"):
        load_paper_checkpoint(path, SMALL)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the trap works: whoever trusts the file is caught
    assert trace.exists()


def test_a_plain_pickle_is_refused_and_does_nothing(tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"state_dict": RunsOnLoad(trace)}))
    with pytest.raises(EcgChatError, match="reading it could run code"):
        load_paper_checkpoint(path, SMALL)
    assert not trace.exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_give_the_projects_error_or_the_right_model(tmp_path, saved, data):
    whole = saved.read_bytes()
    content = bytearray(whole)
    if data.draw(st.booleans(), label="cut"):
        del content[data.draw(st.integers(0, len(whole) - 1), label="length") :]
    for _ in range(data.draw(st.integers(0, 4), label="changes")):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.pt"
    path.write_bytes(bytes(content))
    try:
        model = load_paper_checkpoint(path, SMALL)
    except EcgChatError:
        return
    assert set(model.state_dict()) == set(paper_shapes(SMALL))  # a weight's bytes may have changed; nothing else


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_random_file_of_the_released_size(tmp_path, kind):
    """403 million float16 weights, 0.8 GB: each name once, each value where it belongs."""
    path = tmp_path / f"cpt_wfep_epoch_20.{kind}"
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator).mul_(0.02).half() for name, shape in paper_shapes().items()}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 20, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    assert path.stat().st_size > 2 * PAPER_PARAMETERS
    model = load_paper_checkpoint(path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name].float()), name
    with torch.inference_mode():
        out = model(torch.randn(1, 12, PAPER.encoder.samples), torch.randint(1, 30_000, (1, 77)))
    assert out.logits.shape == (1, 76, 49_408)
    assert bool(torch.isfinite(out.logits).all())

"""Loading language models: several files straight into NF4, number types by device, hashes, and what is refused."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_chat import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from ecgchat_lib import models
from ecgchat_lib.chat import language_model as lm_module
from ecgchat_lib.chat.language_model import (
    INDEX,
    SINGLE,
    combined_hash,
    compute_dtype,
    load_folder,
    load_language_model,
    model_folder,
    nf4_config,
    weight_hashes,
)
from ecgchat_lib.chat.plan import Peak, plan
from ecgchat_lib.errors import MissingPartError

CONFIG = LlamaConfig(
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=4,
    vocab_size=len(tiny_tokenizer()),
    tie_word_embeddings=False,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A Llama of 6.6 million weights, saved in several files."""
    folder = tmp_path_factory.mktemp("shards")
    torch.manual_seed(0)
    LlamaForCausalLM(CONFIG).save_pretrained(folder, max_shard_size="5MB")
    tiny_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) >= 4
    return folder


@pytest.fixture
def copy(shards, tmp_path):
    return shutil.copytree(shards, tmp_path / "copy")


def test_shards_go_into_nf4_as_after_loading_everything(shards):
    import bitsandbytes.functional as four_bits

    quantized, _ = load_folder(shards, quantized=True, device="cpu", dtype=torch.float32)
    full, _ = load_folder(shards, quantized=False, device="cpu", dtype=torch.float32)
    linears = dict(quantized.named_modules())
    checked = 0
    for name, module in list(full.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        packed, state = four_bits.quantize_4bit(module.weight.data, compress_statistics=True, quant_type="nf4")
        ours = linears[name].weight
        assert torch.equal(packed.flatten(), ours.data.flatten())
        assert torch.equal(state.absmax, ours.quant_state.absmax)
        module.weight.data = four_bits.dequantize_4bit(packed, state)
        checked += 1
    assert checked == 8 * 7
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        assert torch.allclose(full(ids).logits, quantized(ids).logits, atol=1e-5)


def test_the_host_holds_far_less_than_the_whole_while_loading_shards(shards, tmp_path, monkeypatch):
    half = shutil.copytree(shards, tmp_path / "half")  # in 16 bits, as Vicuna is: every tensor is converted
    for path in half.glob("model-*.safetensors"):
        tensors = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(tensors, path, {"format": "pt"})

    def load(quantized):
        with Peak() as peak:
            model, _ = load_folder(half, quantized=quantized, device="cpu", dtype=torch.float32)
        return peak.bytes, model

    load(True)  # imports and tables
    held, model = load(True)
    mapped = sum(path.stat().st_size for path in half.glob("model-*.safetensors"))  # counted by the allocator, too
    full = 4 * sum(p.numel() for p in model.parameters() if p.dtype != torch.uint8)
    full += 2 * 4 * sum(p.numel() for p in model.parameters() if p.dtype == torch.uint8)
    planned = plan(CONFIG, quantized=True, device="cpu")
    assert planned.weights < held - mapped < 0.35 * full
    assert held - mapped <= planned.host
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # allocations of other threads aren't seen
    without, _ = load(False)
    assert without - mapped >= full  # the measurement sees what isn't bounded


@pytest.mark.parametrize(
    ("device", "bf16", "expected"),
    [("cpu", True, torch.float32), ("cuda", True, torch.bfloat16), ("cuda", False, torch.float16)],
)
def test_number_types_by_device(monkeypatch, device, bf16, expected):
    # torch says of a T4 that it supports bfloat16, if emulation counts
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    assert compute_dtype(device) == expected
    config = nf4_config(expected)
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", True)
    assert config.bnb_4bit_compute_dtype == expected


def test_several_files_have_one_hash_that_each_of_them_changes(shards, copy):
    files = weight_hashes(shards, "vicuna-7b")
    assert set(files) == {path.name for path in shards.glob("model-*.safetensors")}
    assert combined_hash(files) == combined_hash(dict(reversed(files.items())))
    assert combined_hash(weight_hashes(copy, "vicuna-7b")) == combined_hash(files)
    changed = sorted(copy.glob("model-*.safetensors"))[2]
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    assert combined_hash(weight_hashes(copy, "vicuna-7b")) != combined_hash(files)
    names = sorted(files)
    swapped = files | {names[0]: files[names[1]], names[1]: files[names[0]]}
    assert combined_hash(swapped) != combined_hash(files)
    assert combined_hash({SINGLE: "abc"}) == "abc"


def _part(monkeypatch, folder):
    monkeypatch.setattr(lm_module, "resolve", lambda name, *, download, revision: folder)


def test_a_model_of_several_files_knows_their_hashes_and_its_revision(monkeypatch, shards, tmp_path):
    snapshot = tmp_path / "snapshots" / "0123abc"
    shutil.copytree(shards, snapshot)
    _part(monkeypatch, snapshot)
    lm = load_language_model("vicuna-7b")
    assert lm.quantized
    assert lm.revision == "0123abc"
    assert lm.files == weight_hashes(snapshot, "vicuna-7b")
    assert lm.sha256 == combined_hash(lm.files)


def test_pickles_are_refused_with_a_way_out(monkeypatch, copy):
    for path in [*copy.glob("*.safetensors"), copy / INDEX]:
        path.unlink()
    (copy / "pytorch_model-00001-of-00002.bin").write_bytes(b"\x80\x04.")
    _part(monkeypatch, copy)
    with pytest.raises(MissingPartError, match=r"pytorch_model-00001-of-00002\.bin, a pickle.*revision="):
        model_folder("vicuna-13b")
    (copy / "pytorch_model-00001-of-00002.bin").unlink()
    with pytest.raises(MissingPartError, match=r"neither model\.safetensors nor"):
        model_folder("vicuna-13b")


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{", "isn't an index"),
        ("[]", "isn't an index"),
        ('{"weight_map": 3}', "isn't an index"),
        ('{"weight_map": {}}', "no file"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "expected"),
        ('{"weight_map": {"a": "model.bin"}}', "model.bin"),
        ('{"weight_map": {"a": "model-7.safetensors"}}', "1 of 1 files"),
    ],
)
def test_a_bad_index_is_told(copy, index, said):
    (copy / INDEX).write_text(index, encoding="utf-8")
    with pytest.raises(MissingPartError, match=said):
        weight_hashes(copy, "vicuna-7b")


def test_a_revision_goes_to_the_hub_and_passes_by_the_package(monkeypatch, tmp_path):
    asked = []

    def snapshot(repository, **options):
        asked.append((repository, options["revision"], options["local_files_only"]))
        (tmp_path / "config.json").write_text("{}", encoding="utf-8")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    models.resolve("language-model", revision="refs/pr/7")
    models.resolve("vicuna-13b", download=True)
    assert asked == [(models.PARTS["language-model"].hub, "refs/pr/7", True), ("lmsys/vicuna-13b-v1.5", None, False)]
    assert not any(pattern.endswith(".bin") for pattern in models.PARTS["vicuna-13b"].patterns)


@pytest.mark.slow
def test_smollm2_in_nf4_takes_a_third_of_the_memory():
    lm = load_language_model(quantized=True)
    footprint = plan(lm.model.config, quantized=True).weights
    assert abs(lm.model.get_memory_footprint() / footprint - 1) < 0.02
    assert footprint < 0.33 * plan(lm.model.config, quantized=False).weights
    with torch.no_grad():
        logits = lm.model(**lm.tokenizer("The capital of France is", return_tensors="pt")).logits
    assert lm.tokenizer.decode(logits[0, -1].argmax()).strip() == "Paris"

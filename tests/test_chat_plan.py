"""The memory plan: counted right, near to what training steps really take, and of use where something doesn't fit."""

import dataclasses
import importlib.util
import json

import pytest
import torch
from tiny_chat import ECG_TOKENS, WIDTH, tiny_chat, tiny_llama, tiny_tokenizer
from transformers import GPT2Config

from ecgchat_lib.chat.plan import GPUS, Peak, give_up, known_config, plan, table
from ecgchat_lib.chat.train import add_lora, trained_parameters
from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.paths import project_root

T4, T4_HOST, _ = GPUS["T4"]
SHAPES = {  # hidden, middle, blocks, heads, heads of keys and values, vocabulary, tied
    "4 M": (256, 704, 4, 4, 4, 1000, False),
    "16 M": (384, 1024, 8, 6, 6, 4000, False),
    "tiny": (128, 352, 4, 4, 4, 600, False),
    "grouped heads, tied": (192, 512, 6, 6, 2, 8000, True),
}


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("chat_plan", project_root() / "benchmarks" / "chat_plan.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compare(benchmark, name, folder, **settings):
    """Assert that plan and measurement agree within 10 %, in all and in what a step takes."""
    common = {"rank": 8, "batch": 2, "length": 160, **settings, "ecg_tokens": ECG_TOKENS}
    config = benchmark.llama_config(SHAPES[name])
    kept, step, _ = benchmark.measure_step(config, folder, tiny_tokenizer(), **common, learned=24, width=WIDTH)
    planned = plan(config, **common, answers=2, answer_tokens=12, ecg_width=WIDTH, device="cpu")
    for kind, size in kept.items():
        assert getattr(planned, kind) == pytest.approx(size, rel=0.01), kind
    assert planned.total == pytest.approx(sum(kept.values()) + step, rel=0.1)
    assert planned.total - sum(getattr(planned, kind) for kind in kept) == pytest.approx(step, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["4 M", "16 M", "grouped heads, tied"])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_a_step_takes_what_was_planned(benchmark, tmp_path, name, quantized, checkpointing, dropout):
    compare(benchmark, name, tmp_path, quantized=quantized, checkpointing=checkpointing, dropout=dropout)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_large_rank_is_planned_as_well(benchmark, tmp_path, checkpointing):
    compare(benchmark, "4 M", tmp_path, quantized=False, checkpointing=checkpointing, dropout=0.0, rank=64)


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_half_precision_is_planned_as_well(benchmark, tmp_path, quantized, checkpointing, dropout):
    half = {"dtype": torch.float16, "length": 64, "rank": 4}
    compare(benchmark, "tiny", tmp_path, quantized=quantized, checkpointing=checkpointing, dropout=dropout, **half)


def test_plan_counts_what_is_there():
    model = tiny_llama()
    full = plan(model.config, quantized=False, rank=4, ecg_width=WIDTH)
    assert full.parameters == sum(p.numel() for p in model.parameters())
    assert full.weights == full.parameters * 4
    chat = tiny_chat()
    add_lora(chat, rank=4)
    trained = trained_parameters(chat)
    assert full.trainable == sum(p.numel() for name, p in trained.items() if "lora_" in name)
    assert full.adapters == 4 * sum(p.numel() for p in trained.values())
    assert full.optimizer == 2 * full.adapters
    assert plan(model.config, quantized=True).weights < full.weights
    assert full.total == sum(full.parts.values())


def test_what_saves_memory_saves_it():
    config = known_config("vicuna-7b")
    asked = plan(config, quantized=False, dtype=torch.float16, rank=32, batch=4, length=768, answers=4)
    for change in (
        {"quantized": True},
        {"checkpointing": True},
        {"batch": 2},
        {"optimizer": "paged_adamw_8bit"},
        {"rank": 16},
        {"length": 384},
    ):
        settings = dataclasses.asdict(asked.settings) | change
        assert plan(config, **settings).total < asked.total, change
    words = dict(asked.remedies())
    assert len(words) == 6
    assert all(saved > 0 for saved in words.values())


def test_published_sizes_of_vicuna():
    seven, thirteen = (
        plan(known_config(name), quantized=True, dtype=torch.float16) for name in ("vicuna-7b", "vicuna-13b")
    )
    assert seven.parameters == 6_738_415_616  # the published counts of Llama 2
    assert thirteen.parameters == 13_015_864_320
    assert 3.5e9 < seven.weights < 4.0e9
    assert 6.9e9 < thirteen.weights < 7.5e9
    assert plan(known_config("vicuna-13b"), quantized=False, dtype=torch.float16).weights == 2 * 13_015_864_320


def test_a_t4_trains_both_when_something_is_given_up():
    asked = {"quantized": True, "dtype": torch.float16, "rank": 16, "batch": 4, "length": 512}
    for name in ("vicuna-7b", "vicuna-13b"):
        given, found = give_up(known_config(name), T4, T4_HOST, **asked)
        assert found.fits(T4, T4_HOST)
        assert found.settings.quantized
        assert given
        found.check(T4, T4_HOST, name="a T4")
    given, found = give_up(known_config("vicuna-13b"), 4e9, T4_HOST, **asked)
    assert not found.fits(4e9, T4_HOST)


def test_what_does_not_fit_is_told_with_what_helps():
    asked = plan(known_config("vicuna-13b"), quantized=False, dtype=torch.float16, batch=4, length=512)
    with pytest.raises(EcgChatError, match=r"on a T4, 15\.00 GB are there.*NF4 weights saves 1\d\.\d\d GB"):
        asked.check(T4, T4_HOST, name="a T4")
    with pytest.raises(EcgChatError, match="of host memory"):
        plan(known_config("vicuna-13b"), quantized=False, device="cpu").check(1e12, T4_HOST)


def test_lines_and_table():
    lines = plan(known_config("vicuna-7b"), quantized=True, dtype=torch.float16).lines()
    assert any(line.startswith("memory") for line in lines)
    assert any("reserve" in line for line in lines)
    assert not any("reserve" in line for line in plan(tiny_llama().config, quantized=True, device="cpu").lines())
    rows = table(["vicuna-7b"], quantized=True, rank=16, batch=4, length=512)
    assert [row["gpu"] for row in rows] == list(GPUS)
    assert all(row["fits"] for row in rows)
    assert rows[0]["given_up"]
    assert not rows[-1]["given_up"]
    assert rows[0]["plan"].settings.dtype == torch.float16
    assert rows[1]["plan"].settings.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 0}, "rank=0"),
        ({"batch": 0, "length": 0}, "batch=0, length=0"),
        ({"optimizer": "sgd"}, "paged_adamw_8bit"),
        ({"dtype": torch.int8}, "float32"),
        ({"lenght": 3}, "lenght"),
    ],
)
def test_settings_out_of_range_are_told(settings, said):
    with pytest.raises(ParameterError, match=said):
        plan(tiny_llama().config, quantized=False, **settings)


def test_a_config_of_another_kind_is_told():
    with pytest.raises(ParameterError, match="gpt2 without intermediate_size"):
        plan(GPT2Config(), quantized=False)


def test_peak_sees_what_is_freed_and_inside_of_operations():
    with Peak() as peak:
        first = torch.empty(1000, 1000)
        second = first @ first
        del first, second
        torch.empty(10)
    assert peak.bytes == pytest.approx(8_000_000, rel=0.01)


@pytest.fixture(scope="module")
def vicuna():
    spec = importlib.util.spec_from_file_location("chat_vicuna", project_root() / "benchmarks" / "chat_vicuna.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SMALL = ["--layers", "2", "--hidden", "128", "--middle", "352", "--heads", "4", "--vocabulary", "600"]


@pytest.mark.slow
def test_the_proof_on_vicunas_shape_runs_small_on_a_cpu(monkeypatch, vicuna, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "vicuna.json"
    few = ["--length", "160", "--learned", "24", "--steps", "3", "--batch", "2", "--rank", "4", "--out", str(out)]
    assert vicuna.main([*SMALL, *few]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert "no CUDA" in found["note"]
    assert "random" in found["what"]
    (run,) = found["runs"]
    assert run["fits"]
    assert run["tokens_per_second"] > 0
    assert len(run["losses"]) == 3
    assert run["ratio"] == pytest.approx(1, rel=0.1)
    assert "no CUDA" in capsys.readouterr().out


def test_the_proof_does_not_try_the_full_size_on_a_cpu(monkeypatch, vicuna, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert vicuna.main([]) == 2
    assert "no CUDA" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        vicuna.main([*SMALL, "--length", "100"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
@pytest.mark.slow
def test_the_proof_on_vicunas_shape_holds_on_a_gpu(vicuna, tmp_path):
    out = tmp_path / "vicuna.json"
    assert vicuna.main(["--model", "vicuna-7b", "--memory-gb", "14.5", "--steps", "3", "--out", str(out)]) == 0
    for run in json.loads(out.read_text(encoding="utf-8"))["runs"]:
        assert run["ratio"] == pytest.approx(1, rel=0.1)

"""Prompt tuning with DSPy: a program's instruction and examples are searched for by what they do to a score.

The language model is whatever a writer is, a function from messages to text: a transformers model on this machine
(`LocalWriter`), or a server that speaks OpenAI's API (`ServerLM`). Both are `dspy.LM`s, so each of DSPy's optimizers
runs on them. DSPy's caches stay off, since they hold pickles in the home folder; a tuned program is saved as JSON.
This module needs the extra `[prompts]`. Taught in: 14 §8.

Sources: Khattab et al. 2023, DSPy (arXiv 2310.03714); §4 there is the search over bootstrapped examples.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError
from ecgchat_lib.instruct.teachers import BudgetSpent, Messages
from ecgchat_lib.knowledge.metrics import correct

if TYPE_CHECKING:
    from ecgchat_lib.knowledge.questions import Question
    from ecgchat_lib.knowledge.retrieve import Retriever

_REMEDY = "Install it with: pip install 'ecgchat[prompts]'"
try:
    import dspy
except ImportError as error:
    raise MissingPartError("dspy", f"it can't be imported ({error})", _REMEDY) from None
if not hasattr(dspy, "lm15"):  # engines came with 3.4; without them a model of one's own needs what 3.5 removes
    raise MissingPartError("dspy", f"version {dspy.__version__}, expected 3.4 or newer", _REMEDY)

FORMAT = 1  # of the saved files
MAX_FILE_BYTES = 2_000_000
ALL_ERRORS = 1_000_000  # an answer that can't be used scores 0; it isn't a reason to stop
NO_KEY = "none"  # what a local server gets for a key

Metric = Callable[..., float]  # (example, prediction, trace=None) → 0 to 1


# --- a language model for DSPy ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """What a writer wrote.

    Attributes:
        text: the answer.
        read: tokens of the prompt.
        reused: how many of these the writer still had in memory from the last prompt.
        written: tokens of the answer.
    """

    text: str
    read: int = 0
    reused: int = 0
    written: int = 0


Writer = Callable[[Messages, float, int], Written]  # (messages, temperature, most tokens) → what was written


@dataclass
class Cost:
    """What a model was asked so far. `read` counts whole prompts; `reused` of these tokens cost next to nothing."""

    calls: int = 0
    read: int = 0
    reused: int = 0
    written: int = 0

    def since(self, before: Cost) -> Cost:
        """Return what has come on top of an earlier count."""
        return Cost(**{name: count - getattr(before, name) for name, count in asdict(self).items()})


class CountedLM(dspy.LM):
    """A `dspy.LM` that counts its calls and tokens, copies of it included, and keeps nothing on disk.

    Args:
        model: its name.
        limit: most tokens, read and written together; None: no limit. The call that passes it is answered, the next
            one raises.
        options: as `dspy.LM`.

    Attributes:
        cost: what it was asked so far, by itself and by its copies.
    """

    def __init__(self, model: str, *, limit: int | None = None, **options: Any) -> None:
        if limit is not None and limit < 1:
            raise ParameterError(f"limit={limit}: expected a number of tokens above 0, or None")
        super().__init__(model, cache=False, **options)
        self.cost, self.limit = Cost(), limit  # `copy` shares them

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Answer a prompt, messages or a request.

        Raises:
            BudgetSpent: the limit has been reached.
        """
        self.check_limit()
        return super().__call__(*args, **options)

    def expect(self, contents: Sequence[str]) -> None:
        """Take note of the last messages that are going to be sent; here it makes no difference."""

    def check_limit(self) -> None:
        """Raise `BudgetSpent` if the limit has been reached; optimizers count an error and go on, so ask afterward."""
        if self.limit is not None and (used := self.cost.read + self.cost.written) >= self.limit:
            raise BudgetSpent(f"{self.model}: {used} tokens used of {self.limit}. Raise the limit, or try less")

    def update_history(self, entry: dict[str, Any]) -> None:
        """Count an answered call; DSPy calls this once for each."""
        usage = entry["usage"]
        self.cost.calls += len(entry["outputs"])
        self.cost.read += usage.get("prompt_tokens") or 0
        self.cost.written += usage.get("completion_tokens") or 0
        self.cost.reused += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        super().update_history(entry)


class LocalLM(CountedLM):
    """A writer as a `dspy.LM`.

    Args:
        writer: called with messages, temperature and most tokens.
        model: its name, for the record.
        temperature: 0: the likeliest text, always the same.
        max_tokens: most tokens of an answer.
        limit: as `CountedLM`.
    """

    def __init__(
        self,
        writer: Writer,
        model: str = "local",
        *,
        temperature: float = 0.0,
        max_tokens: int = 48,
        limit: int | None = None,
    ) -> None:
        self.writer = writer
        engine = _WriterEngine(writer, max_tokens)
        options = {"temperature": temperature, "max_tokens": max_tokens, "num_retries": 0}
        super().__init__(model, limit=limit, engine=engine, **options)

    def expect(self, contents: Sequence[str]) -> None:
        """Tell the writer what will be asked, if it wants to know (`LocalWriter.expect`)."""
        if isinstance(self.writer, LocalWriter):
            self.writer.expect(contents)


class ServerLM(CountedLM):
    """A model behind a server with OpenAI's `/chat/completions`, as a `dspy.LM`, by DSPy's own client.

    Args:
        model: its name there.
        base_url: such as "http://localhost:8000/v1".
        key_name: the environment variable that holds the key; read here, never saved.
        temperature: how freely it writes.
        max_tokens: most tokens of an answer.
        limit: as `CountedLM`.
        timeout: seconds to wait for an answer.
        retries: how often a busy server is asked again.

    Raises:
        ParameterError: the address isn't one of http.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        key_name: str = "OPENAI_API_KEY",
        temperature: float = 0.0,
        max_tokens: int = 200,
        limit: int | None = None,
        timeout: float = 120.0,
        retries: int = 3,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ParameterError(
                f"base URL {base_url[:60]!r}: expected http:// or https://, such as http://localhost:8000/v1"
            )
        super().__init__(
            f"openai/{model}",
            limit=limit,
            engine="lm15",  # DSPy's other client fetches a price list when it is imported
            api_base=base_url,
            api_key=os.environ.get(key_name, "").strip() or NO_KEY,
            temperature=temperature,
            max_tokens=max_tokens,
            timeout=timeout,
            num_retries=retries,
        )


class _WriterEngine:
    """What DSPy calls: one request in, one response out."""

    def __init__(self, writer: Writer, max_tokens: int) -> None:
        self.writer, self.max_tokens = writer, max_tokens

    def complete(self, request: Any) -> Any:
        """Let the writer answer a `dspy.lm15.Request`."""
        from dspy.lm15 import Message, Response, TextPart, Usage

        limit = request.config.max_tokens or self.max_tokens
        done = self.writer(_as_messages(request), request.config.temperature or 0.0, limit)
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant([TextPart(done.text)]),
            finish_reason="length" if done.written >= limit else "stop",
            usage=Usage(done.read, done.written, done.read + done.written, cache_read_tokens=done.reused),
        )


def _as_messages(request: Any) -> list[dict[str, str]]:
    system = request.system
    if system is not None and not isinstance(system, str):
        system = "".join(part.text for part in system)
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": message.role, "content": message.text or ""} for message in request.messages]


class LocalWriter:
    """A transformers chat model as a writer. What a prompt shares with the last one isn't read again.

    Examples stand before the question, so the questions of one program share most of their prompts. Once a writer knows
    which questions are going to be asked (`expect`), it answers several at a time and hands the answers out later.

    Args:
        model: a causal language model in evaluation mode, such as `chat.language_model` loads.
        tokenizer: its tokenizer, with a chat template.
        together: how many expected questions are answered at a time.
        seed: of what is drawn at a temperature above 0; the same calls in the same order give the same texts.
    """

    def __init__(self, model: Any, tokenizer: Any, *, together: int = 8, seed: int = 0) -> None:
        if not tokenizer.chat_template:
            raise EcgChatError("the tokenizer has no chat template, so its model is no chat model. Load another")
        if together < 1:
            raise ParameterError(f"together={together}: expected at least 1")
        self.model, self.tokenizer, self.together, self.seed = model, tokenizer, together, seed
        self._held: list[int] = []  # token ids whose keys and values are in the cache
        self._cache: Any = None
        self._expected: list[str] = []
        self._ready: dict[str, Written] = {}
        self._drawn = 0

    def expect(self, contents: Sequence[str]) -> None:
        """Take note of what the last messages of the next prompts will say, in their order; all else will be alike."""
        self._expected, self._ready = list(dict.fromkeys(contents)), {}

    def __call__(self, messages: Messages, temperature: float, max_tokens: int) -> Written:
        """Write an answer of at most `max_tokens` tokens.

        Raises:
            EcgChatError: prompt and answer are longer than what the model reads.
        """
        if temperature > 0:
            return self._write([self._ids(messages, max_tokens)], temperature, max_tokens)[0]
        key = digest_of(messages, max_tokens)
        if key not in self._ready:
            batch = self._with_next(messages)
            done = self._write([self._ids(one, max_tokens) for one in batch], 0.0, max_tokens)
            self._ready |= {digest_of(one, max_tokens): written for one, written in zip(batch, done, strict=True)}
        return self._ready.pop(key)

    def _with_next(self, messages: Messages) -> list[Messages]:
        """Return a prompt with those that are expected after it."""
        content = messages[-1]["content"]
        if content not in self._expected:
            return [messages]
        place = self._expected.index(content)
        following = self._expected[place : place + self.together]
        return [[*messages[:-1], {**messages[-1], "content": one}] for one in following]

    def _ids(self, messages: Messages, max_tokens: int) -> list[int]:
        ids = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
        room = int(self.model.config.max_position_embeddings)
        if len(ids) + max_tokens > room:
            raise EcgChatError(
                f"a prompt of {len(ids)} tokens and an answer of {max_tokens}: the model reads {room}. "
                "Give fewer examples or passages"
            )
        return [int(one) for one in ids]

    def _write(self, prompts: list[list[int]], temperature: float, max_tokens: int) -> list[Written]:
        """Answer prompts of token ids; what all of them begin with is read once, or not at all."""
        import torch

        prefix = _shared([ids[:-1] for ids in prompts] if len(prompts) > 1 else [prompts[0][:-1], self._held])
        reused = len(_shared([prefix, self._held]))
        longest = max(map(len, prompts)) - len(prefix)
        pads = [longest + len(prefix) - len(ids) for ids in prompts]
        end = self.tokenizer.eos_token_id
        padded = [prefix + [end] * pad + ids[len(prefix) :] for pad, ids in zip(pads, prompts, strict=True)]
        seen = [[1] * len(prefix) + [0] * pad + [1] * (longest - pad) for pad in pads]
        how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        with torch.inference_mode(), torch.random.fork_rng(enabled=temperature > 0):
            if temperature > 0:
                how |= {"do_sample": True, "temperature": temperature}
                torch.manual_seed(self.seed + self._drawn)
                self._drawn += 1
            out = self.model.generate(
                torch.tensor(padded, device=self.model.device),
                attention_mask=torch.tensor(seen, device=self.model.device),
                past_key_values=self._prefilled(prefix, len(prompts)),
                max_new_tokens=max_tokens,
                pad_token_id=end,
                **how,
            )
        if len(prompts) == 1:
            self._held = prompts[0]
        texts = [row[len(prefix) + longest :] for row in out.tolist()]
        new = [ids[: ids.index(end) + 1] if end in ids else ids for ids in texts]
        said = [str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in new]
        shared = [reused] + [len(prefix)] * (len(prompts) - 1)
        return [Written(*one) for one in zip(said, map(len, prompts), shared, map(len, new), strict=True)]

    def _prefilled(self, prefix: list[int], rows: int) -> Any:
        """Return a cache that holds what the prompts begin with: for one prompt the one that is kept, else a copy."""
        import torch
        from transformers import DynamicCache

        same = len(_shared([prefix, self._held]))
        if self._cache is None or not same:
            self._cache, same = DynamicCache(config=self.model.config), 0
        elif surplus := self._cache.get_seq_length() - same:
            self._cache.crop(-surplus)  # negative: how many to remove, in every version of transformers
        self._held = []  # until it is known again what the cache holds
        if rows == 1:
            return self._cache
        if prefix[same:]:
            rest = torch.tensor([prefix[same:]], device=self.model.device)
            self.model(rest, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._held = prefix
        several = copy.deepcopy(self._cache)
        several.batch_repeat_interleave(rows)
        return several


def _shared(rows: Sequence[Sequence[int]]) -> list[int]:
    """Return what all rows begin with."""
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))]


def digest_of(messages: Messages, max_tokens: int) -> str:
    """Return a key for what a writer was asked."""
    text = json.dumps([list(messages), max_tokens], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# --- prompts that a small model can read -----------------------------------------------------------------------------


class PlainAdapter(dspy.Adapter):
    """Signatures as a plain conversation, whose answer is the one output field and nothing else.

    The system text is the instruction, an example a question with its answer. DSPy's own adapter asks for each field
    between marks, which a model of 135 million parameters seldom writes right.
    """

    def format_system_message(self, signature: Any) -> str:
        """Return the instruction."""
        return str(signature.instructions)

    def format_user_message_content(
        self,
        signature: Any,
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """Return the input fields that are given, each under its name."""
        parts = [
            f"{name.replace('_', ' ').capitalize()}:\n{inputs[name]}"
            for name in signature.input_fields
            if inputs.get(name)
        ]
        return "\n\n".join(part for part in (prefix, *parts, suffix) if part)

    def format_assistant_message_content(
        self, signature: Any, outputs: dict[str, Any], missing_field_message: str | None = None
    ) -> str:
        """Return the output field's text."""
        return str(outputs.get(_only_output(signature), missing_field_message or ""))

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        """Return the whole text as the output field."""
        return {_only_output(signature): completion.strip()}


def _only_output(signature: Any) -> str:
    names = list(signature.output_fields)
    if len(names) != 1:
        raise ParameterError(f"PlainAdapter: the signature has {len(names)} output fields, expected one: {names}")
    return str(names[0])


def make_program(instruction: str, fields: str = "passages, question -> answer") -> Any:
    """Return the smallest program that can be tuned: one `dspy.Predict`.

    Args:
        instruction: what the model is told to do.
        fields: input fields, an arrow, and one output field.
    """
    return dspy.Predict(dspy.Signature(fields, instruction))


def run_program(program: Any, lm: Any, inputs: dict[str, str], adapter: Any = None) -> str:
    """Return a program's answer to one set of input fields.

    Raises:
        EcgChatError: the model wrote nothing, or the call failed.
    """
    try:
        with dspy.context(lm=lm, adapter=adapter or PlainAdapter()):
            prediction = program(**inputs)
    except (dspy.DSPyError, dspy.AdapterParseError) as error:
        raise EcgChatError(f"{lm.model}: no answer ({str(error).splitlines()[0][:200]}). Ask otherwise") from None
    return str(prediction[_only_output(program.signature)])


# --- the search ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One candidate.

    Attributes:
        how: what made it: "instruction", or "examples" for one with examples.
        instruction: what it tells the model.
        examples: how many examples it shows, and how many of them the model wrote itself.
        score: mean metric on the validation questions, 0 to 1.
    """

    how: str
    instruction: str
    examples: tuple[int, int]
    score: float


@dataclass(frozen=True)
class Tuned:
    """A tuned program.

    Attributes:
        program: the best candidate, a `dspy.Predict`.
        trials: every candidate, in the order they were tried.
        score: the best one's mean metric on the validation questions; it was chosen by this, so it is too high.
        about: what it was tuned on: model, optimizer, numbers of questions, seed, calls, tokens and seconds.
    """

    program: Any
    trials: tuple[Trial, ...]
    score: float
    about: dict[str, Any] = field(default_factory=dict)


def tune(
    program: Any,
    train: Sequence[Any],
    validation: Sequence[Any],
    metric: Metric,
    lm: CountedLM,
    *,
    instructions: Sequence[str] = (),
    candidates: int = 6,
    examples: int = 3,
    labeled: int | None = None,
    seed: int = 0,
    adapter: Any = None,
) -> Tuned:
    """Search for an instruction, then for examples that go with it: DSPy's `BootstrapFewShotWithRandomSearch`.

    An example is a training question with its gold answer, or with the model's own answer where the metric calls that
    right (1.0). Each candidate is scored on the validation questions; of equal ones the first wins, so what is shorter.

    Args:
        program: a `dspy.Predict`, such as `make_program` returns; its own instruction is the first to be tried.
        train: `dspy.Example`s that examples are taken from, with inputs set and the output field filled.
        validation: others, that candidates are scored on.
        metric: of example and prediction, 0 to 1.
        lm: the model; its `cost` goes on counting.
        instructions: others to try.
        candidates: sets of examples that are drawn; beside them DSPy tries two fixed ones.
        examples: most examples of a candidate that the model has answered itself.
        labeled: most examples of a candidate in all; `examples` if None.
        seed: of the order of the training questions, and so of what is drawn.
        adapter: how fields become messages; `PlainAdapter` if None.

    Raises:
        ParameterError: a set is empty, they overlap, or a number is out of range.
        BudgetSpent: the model's limit was reached.
    """
    _check_sets(train, validation, candidates, examples)
    began, before = time.monotonic(), Cost(**asdict(lm.cost))
    trials: list[Trial] = []
    best, best_score = program, -1.0
    shuffled = list(train)
    random.Random(seed).shuffle(shuffled)
    adapter = adapter or PlainAdapter()
    with dspy.context(lm=lm, adapter=adapter, max_errors=ALL_ERRORS), _quiet():
        for instruction in dict.fromkeys([program.signature.instructions, *instructions]):
            one = _told(program, instruction)
            score = sum(score_each(one, validation, metric, lm, adapter)) / len(validation)
            trials.append(Trial("instruction", instruction, (0, 0), score))
            best, best_score = (one, score) if score > best_score else (best, best_score)
        _announce(best, validation, lm, adapter)
        for one, score in _with_examples(best, shuffled, validation, metric, candidates, examples, labeled):
            lm.check_limit()
            trials.append(Trial("examples", one.signature.instructions, _shown(one), score))
            best, best_score = (one, score) if score > best_score else (best, best_score)
    about = {
        "model": lm.model,
        "optimizer": f"dspy {dspy.__version__}, instructions, then BootstrapFewShotWithRandomSearch",
        "train": len(train),
        "validation": len(validation),
        "seed": seed,
        "cost": asdict(lm.cost.since(before)),
        "seconds": round(time.monotonic() - began, 1),
    }
    return Tuned(best, tuple(trials), best_score, about)


def score_each(
    program: Any, questions: Sequence[Any], metric: Metric, lm: CountedLM, adapter: Any = None
) -> list[float]:
    """Return the metric of a program's answer to each question, 0 where it gave none (`dspy.Evaluate`).

    Raises:
        BudgetSpent: the model's limit was reached.
    """
    return [score for _, _, score in evaluate(program, questions, metric, lm, adapter)]


def evaluate(
    program: Any, questions: Sequence[Any], metric: Metric, lm: CountedLM, adapter: Any = None
) -> list[tuple[Any, str, float]]:
    """Return each question with a program's answer ("" if it gave none) and its metric.

    Raises:
        BudgetSpent: the model's limit was reached.
    """
    output = _only_output(program.signature)
    adapter = adapter or PlainAdapter()
    _announce(program, questions, lm, adapter)
    run = dspy.Evaluate(devset=list(questions), metric=metric, num_threads=1, max_errors=ALL_ERRORS)
    with dspy.context(lm=lm, adapter=adapter), _quiet():
        found = run(program)
    lm.check_limit()
    return [(question, str(made.toDict().get(output, "")), float(score)) for question, made, score in found.results]


def _announce(program: Any, questions: Sequence[Any], lm: CountedLM, adapter: Any) -> None:
    """Let the model know what will be asked."""
    inputs = [dict(one.inputs()) for one in questions]
    lm.expect([adapter.format_user_message_content(program.signature, one, main_request=True) for one in inputs])


def _check_sets(train: Sequence[Any], validation: Sequence[Any], candidates: int, examples: int) -> None:
    if not train or not validation:
        raise ParameterError(f"{len(train)} training and {len(validation)} validation questions: expected some of each")
    inputs = [json.dumps(one.inputs().toDict(), sort_keys=True, default=str) for one in [*train, *validation]]
    both = set(inputs[: len(train)]) & set(inputs[len(train) :])
    if both:
        raise ParameterError(f"{len(both)} questions are in both sets, such as {min(both)[:80]}. Split them")
    if not 0 <= candidates <= 100 or not 1 <= examples <= 32:
        raise ParameterError(f"candidates={candidates}, examples={examples}: expected 0 to 100, and 1 to 32")


def _told(program: Any, instruction: str) -> Any:
    """Return a copy of a program with another instruction."""
    one = program.deepcopy()
    one.signature = one.signature.with_instructions(instruction)
    return one


def _with_examples(
    program: Any,
    train: list[Any],
    validation: Sequence[Any],
    metric: Metric,
    candidates: int,
    examples: int,
    labeled: int | None,
) -> list[tuple[Any, float]]:
    """Run DSPy's random search; return its candidates and scores in the order they were tried."""

    def right(example: Any, prediction: Any, trace: Any = None) -> float:
        score = metric(example, prediction, trace)
        return score if trace is None else float(score >= 1.0)  # an example has to be right altogether

    search = dspy.BootstrapFewShotWithRandomSearch(
        metric=right,
        max_bootstrapped_demos=examples,
        max_labeled_demos=examples if labeled is None else labeled,
        num_candidate_programs=candidates,
        num_threads=1,
        max_errors=ALL_ERRORS,
    )
    found = search.compile(program, trainset=train, valset=list(validation), restrict=range(-2, candidates))
    made = sorted(found.candidate_programs, key=lambda one: one["seed"])
    del found.candidate_programs
    return [(one["program"], sum(one["subscores"]) / len(one["subscores"])) for one in made]


def _shown(program: Any) -> tuple[int, int]:
    """Return how many examples a program shows, and how many of them the model wrote itself."""
    return len(program.demos), sum(bool(dict(demo).get("augmented")) for demo in program.demos)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Mute DSPy's prints, progress bars and log: what was tried is returned."""
    dspy.disable_logging()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        dspy.enable_logging()


# --- saving ----------------------------------------------------------------------------------------------------------


def save_tuned(tuned: Tuned, path: Path) -> None:
    """Write a tuned program as JSON: instruction, examples, and what it was tuned on. Nothing in it is run on loading.

    Raises:
        EcgChatError: the file can't be written.
    """
    signature = tuned.program.signature
    content = {
        "format": FORMAT,
        "about": tuned.about,
        "score": tuned.score,
        "trials": [asdict(trial) for trial in tuned.trials],
        "inputs": list(signature.input_fields),
        "output": _only_output(signature),
        "instruction": signature.instructions,
        "examples": [_plain_example(demo, signature) for demo in tuned.program.demos],
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise EcgChatError(f"{path}: can't be written ({error.strerror}). Choose another place") from None


def _plain_example(demo: Any, signature: Any) -> dict[str, Any]:
    row = dict(demo)
    fields = {name: str(row.get(name) or "") for name in signature.fields}
    return fields | {"augmented": bool(row.get("augmented"))}


def load_tuned(path: Path) -> Tuned:
    """Read what `save_tuned` wrote.

    Raises:
        EcgChatError: the file can't be read, is too large, or holds something else.
    """
    content = _read_saved(path)
    fields = [*content["inputs"], content["output"]]
    named = all(isinstance(name, str) and name.isidentifier() for name in fields)
    if not named or len(fields) < 2 or len(set(fields)) < len(fields):
        raise _odd(path, f"fields {str(fields)[:80]}, expected different names, inputs and an output")
    try:
        program = make_program(content["instruction"], f"{', '.join(content['inputs'])} -> {content['output']}")
        program.demos = [dspy.Example(_read_example(path, one, fields)) for one in content["examples"]]
        trials = tuple(Trial(**(one | {"examples": tuple(one["examples"])})) for one in content["trials"])
    except (TypeError, ValueError, KeyError) as error:
        raise _odd(path, f"{type(error).__name__}: {str(error)[:80]}") from None
    return Tuned(program, trials, float(content["score"]), content["about"])


def _read_saved(path: Path) -> dict[str, Any]:
    """Read the file and check the types of its parts."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        content = json.loads(raw) if len(raw) <= MAX_FILE_BYTES else None
    except OSError as error:
        raise EcgChatError(f"{path}: can't be read ({error.strerror}). Tune a program and save it there") from None
    except (ValueError, RecursionError):
        raise _odd(path, "no JSON") from None
    kinds = {
        "about": dict,
        "score": int | float,
        "trials": list,
        "inputs": list,
        "output": str,
        "instruction": str,
        "examples": list,
    }
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _odd(path, f"no object with format {FORMAT}, or more than {MAX_FILE_BYTES} bytes")
    wrong = [name for name, kind in kinds.items() if not isinstance(content.get(name), kind)]
    if wrong:
        raise _odd(path, f"{wrong[0]!r} is missing or of another type")
    return content


def _read_example(path: Path, row: Any, fields: Sequence[str]) -> dict[str, Any]:
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in fields):
        raise _odd(path, f"an example without the texts {', '.join(fields)}")
    return {name: row[name] for name in fields} | ({"augmented": True} if row.get("augmented") else {})


def _odd(path: Path, found: str) -> EcgChatError:
    return EcgChatError(f"{path}: not a tuned program ({found}). Save one with save_tuned")


# --- the knowledge base's questions as examples ----------------------------------------------------------------------


def knowledge_examples(
    questions: Sequence[Question], retriever: Retriever, *, top: int = 3, lines: int = 8
) -> list[Any]:
    """Return questions of the knowledge base as `dspy.Example`s, in their order.

    Args:
        questions: from `load_questions`.
        retriever: finds the entries.
        top: how many entries.
        lines: how many of their lines are shown, those nearest to the question (`answers.best_lines`).

    Returns:
        Examples with the inputs `passages` and `question`; beside them `answer` (the lines that state the gold facts,
        "" if what is shown doesn't hold them all), `facts` and `id`.

    Raises:
        MissingPartError: MiniLM isn't on this machine.
    """
    from ecgchat_lib.knowledge.answers import best_lines

    made = []
    for one in questions:
        quoted = best_lines(one.question, retriever.search(one.question, top), most=lines)
        row = {
            "passages": _shown_lines([(line.entry.title, line.text) for line in quoted]),
            "question": one.question,
            "answer": _gold_answer(one.facts, [line.text for line in quoted]),
            "facts": [list(group) for group in one.facts],
            "id": one.id,
        }
        made.append(dspy.Example(row).with_inputs("passages", "question"))
    return made


def _shown_lines(lines: Sequence[tuple[str, str]]) -> str:
    """Return lines under their entries' titles, each title once."""
    by_title: dict[str, list[str]] = {}
    for title, text in lines:
        by_title.setdefault(title, []).append(text)
    return "\n".join(f"{title}\n" + "\n".join(f"- {text}" for text in texts) for title, texts in by_title.items())


def _gold_answer(facts: Sequence[Sequence[str]], lines: Sequence[str]) -> str:
    """Return the first line that states each fact, each once, in the order of the facts; "" if one is missing."""
    chosen: list[str] = []
    for group in facts:
        if correct(" ".join(chosen), [group]):
            continue
        line = next((line for line in lines if correct(line, [group])), None)
        if line is None:
            return ""
        chosen.append(line)
    return " ".join(chosen)


def finding_examples(questions: Sequence[Question], retriever: Retriever, *, top: int = 3) -> list[Any]:
    """Return questions with the findings that retrieval offers for them, as `dspy.Example`s.

    Args:
        questions: from `load_questions`; those whose gold entries retrieval doesn't find are left out.
        retriever: finds the entries.
        top: how many are offered; in the order of their titles, so that their rank isn't told.

    Returns:
        Examples with the inputs `findings` (titles, one a line) and `question`; beside them `answer` (the best gold
        entry's title), `right` (all that are gold), `first` (what retrieval ranks first) and `id`.

    Raises:
        MissingPartError: MiniLM isn't on this machine, and the retriever needs it.
    """
    made = []
    for one in questions:
        found = [hit.entry for hit in retriever.search(one.question, top)]
        right = [entry.title for entry in found if entry.id in one.entries]
        if right:
            row = {
                "findings": "\n".join(sorted(entry.title for entry in found)),
                "question": one.question,
                "answer": right[0],
                "right": right,
                "first": found[0].title,
                "id": one.id,
            }
            made.append(dspy.Example(row).with_inputs("findings", "question"))
    return made


def names_the_finding(example: Any, prediction: Any, trace: Any = None) -> float:
    """Return 1.0 if the first of the offered findings that an answer names is a right one: a metric for `tune`.

    Where two begin at the same place ("Long QT" and "Long QT interval"), the longer is meant.
    """
    said = str(prediction.answer).lower()
    offered = [title for title in example.findings.splitlines() if title.lower() in said]
    if not offered:
        return 0.0
    return float(min(offered, key=lambda title: (said.index(title.lower()), -len(title))) in example.right)


def states_the_facts(example: Any, prediction: Any, trace: Any = None) -> float:
    """Return 1.0 if an answer states a fact of each group (`metrics.correct`), else 0.0: a metric for `tune`."""
    return float(correct(str(prediction.answer), example.facts))

"""Teachers: who words the answers of a data set. Rules, a local language model, or a server that speaks OpenAI's API.

Every teacher gets the same drafts, whose answers are right, and returns answers; whether these still say what is known
is checked later and not here. Taught in: 10 §6.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import ecgchat_lib
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError
from ecgchat_lib.instruct.prompts import messages_for, read_answers, rewrite_messages

if TYPE_CHECKING:
    from ecgchat_lib.instruct.drafts import Draft

Messages = Sequence[dict[str, str]]
MAX_REPLY_BYTES = 1_000_000
MAX_WAIT = 300.0  # s; a longer Retry-After is cut to this
CHARACTERS_PER_TOKEN = 3  # fewer than English has, so that an estimate is rather too high


@dataclass(frozen=True)
class Reply:
    """What a teacher answered to one draft.

    Attributes:
        answers: one per round; empty if the reply couldn't be used.
        problem: why it couldn't be used; "" if it could.
        tokens: tokens read and written, as the server counted them.
    """

    answers: tuple[str, ...]
    problem: str = ""
    tokens: tuple[int, int] = (0, 0)


class ConversationTeacher(Protocol):
    """Who words answers.

    Attributes:
        jobs: how many drafts may be asked at a time.
    """

    jobs: int

    @property
    def about(self) -> dict[str, Any]:
        """What goes into each conversation's provenance: name, version or model."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether replies are worth keeping on disk, since asking again costs time or money."""
        ...

    def answer(self, draft: Draft) -> Reply:
        """Return an answer for each round of a draft."""
        ...

    def resume(self, tokens: tuple[int, int]) -> None:
        """Take note of the tokens that earlier runs have already used."""
        ...


class TemplateTeacher:
    """The rules themselves: the drafts' own answers."""

    jobs = 1
    keeps = False

    @property
    def about(self) -> dict[str, Any]:
        """Return name and version."""
        return {"name": "template", "version": ecgchat_lib.__version__}

    def answer(self, draft: Draft) -> Reply:
        """Return the draft's answers."""
        return Reply(tuple(one.turn.answer for one in draft.rounds))

    def resume(self, tokens: tuple[int, int]) -> None:
        """Do nothing: rules cost nothing."""


class LocalTeacher:
    """A language model on this machine, which rewords one answer at a time.

    Args:
        generate: messages ({"role", "content"}) → the model's text.
        model: the model's name, for provenance.
        details: further provenance, such as a hash.
    """

    jobs = 1
    keeps = True

    def __init__(self, generate: Callable[[Messages], str], model: str, details: dict[str, Any] | None = None) -> None:
        self.generate, self.model, self.details = generate, model, details or {}

    @property
    def about(self) -> dict[str, Any]:
        """Return name and model."""
        return {"name": "local", "model": self.model, **self.details}

    def answer(self, draft: Draft) -> Reply:
        """Return each answer in the model's words."""
        texts = [self.generate(rewrite_messages(one.turn.answer)) for one in draft.rounds]
        return Reply(tuple(text.strip().strip('"').strip() for text in texts))

    def resume(self, tokens: tuple[int, int]) -> None:
        """Do nothing: it costs time alone."""


def load_local_teacher(model: str = "language-model", *, max_new_tokens: int = 80) -> LocalTeacher:
    """Load a transformers chat model as a teacher; it writes greedily, so the same draft gives the same text.

    Args:
        model: a part that `models.resolve` knows, or a folder with a transformers model. Nothing is fetched.
        max_new_tokens: most tokens of an answer.

    Raises:
        MissingPartError: the model isn't on this machine.
        EcgChatError: the folder holds no model that transformers can load, or one without a chat template.
    """
    from pathlib import Path

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from ecgchat_lib.models import PARTS, resolve, sha256_of
    from ecgchat_lib.paths import cache_folder

    folder = Path(model) if model not in PARTS else resolve(model)
    if not folder.is_dir():
        raise MissingPartError(model, "neither a known part nor a folder", f"Known parts: {', '.join(PARTS)}")
    logging.disable_progress_bar()
    gguf = next(iter(sorted(folder.glob("*.gguf"))), None)
    weights = gguf or next(iter(sorted(folder.glob("*.safetensors"))), None)
    digest = {"sha256": sha256_of(weights)[:16]} if weights else {}
    if gguf and weights:  # unpacking takes a minute; `chat.language_model` keeps what it unpacked
        unpacked = cache_folder() / f"{gguf.stem}-{digest['sha256'][:12]}-float32"
        if (unpacked / "ecgchat-manifest.json").is_file():
            folder, gguf = unpacked, None
    options: dict[str, Any] = {"local_files_only": True} | ({"gguf_file": gguf.name} if gguf else {})
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    except (OSError, ValueError) as error:
        raise EcgChatError(f"{model}: transformers can't load it ({str(error)[:120]}). Name another model") from None
    if not tokenizer.chat_template:
        raise EcgChatError(f"{model}: it has no chat template, so it is no chat model. Name one with instructions")

    def generate(messages: Messages) -> str:
        ids: Any = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            out = network.generate(
                **ids, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id
            )
        return str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))

    return LocalTeacher(generate, model if model in PARTS else Path(model).name, digest)


# --- a server that speaks OpenAI's API -------------------------------------------------------------------------------


class BudgetSpent(EcgChatError):
    """The next request could cost more than the budget has left."""


@dataclass
class Budget:
    """How much a teacher may use; None: no limit.

    Attributes:
        tokens: most tokens, read and written together.
        dollars: most dollars; needs both prices.
        prices: dollars per million tokens read, and written.
    """

    tokens: int | None = None
    dollars: float | None = None
    prices: tuple[float, float] | None = None
    used: tuple[int, int] = (0, 0)
    _held: list[tuple[int, int]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Refuse a budget that can't be kept."""
        if self.dollars is not None and self.prices is None:
            raise ParameterError("a budget in dollars needs the prices: --price-in and --price-out, per million tokens")
        numbers = [self.tokens, self.dollars, *(self.prices or ())]
        if any(number is not None and not 0 <= number < 1e12 for number in numbers):
            raise ParameterError(f"budget {self.tokens} tokens, {self.dollars} dollars, {self.prices}: expected ≥ 0")

    def cost(self, tokens: tuple[int, int]) -> float:
        """Return what tokens cost in dollars; 0 without prices."""
        return 0.0 if self.prices is None else sum(n * p for n, p in zip(tokens, self.prices, strict=True)) / 1e6

    def hold(self, most: tuple[int, int]) -> None:
        """Set aside what one request may use at most.

        Raises:
            BudgetSpent: that is more than is left.
        """
        with self._lock:
            whole = [self.used, *self._held, most]
            total = (sum(one[0] for one in whole), sum(one[1] for one in whole))
            if self.tokens is not None and sum(total) > self.tokens:
                raise BudgetSpent(f"budget: {sum(self.used)} of {self.tokens} tokens used, and the next may need more")
            if self.dollars is not None and self.cost(total) > self.dollars:
                raise BudgetSpent(
                    f"budget: {self.cost(self.used):.4f} of {self.dollars} dollars used, and the next may need more"
                )
            self._held.append(most)

    def settle(self, most: tuple[int, int], used: tuple[int, int]) -> None:
        """Replace what was set aside by what was used."""
        with self._lock:
            self._held.remove(most)
            self.used = (self.used[0] + used[0], self.used[1] + used[1])


class OpenAITeacher:
    """A model behind a server with OpenAI's `/chat/completions`, which words all answers of a draft at once.

    A busy server (429, 5xx), a lost connection and a reply that is no JSON are tried again, later and later, and as
    late as a Retry-After asks. A request that was answered is never sent again. One that timed out may have been billed
    without an answer; its worst case counts as used.

    Args:
        model: the model's name there.
        base_url: such as "https://api.openai.com/v1".
        key_name: the environment variable that holds the key; it is read here and never written anywhere.
        budget: how much it may use.
        per_minute: most requests a minute; None: no limit.
        jobs: requests at a time.
        timeout: seconds to wait for an answer.
        attempts: how often to try before giving up.
        max_tokens: most tokens to write per round of a draft.
        temperature: how freely it writes.
        sleep: how to wait, for tests.
    """

    keeps = True

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        key_name: str = "OPENAI_API_KEY",
        budget: Budget | None = None,
        per_minute: float | None = None,
        jobs: int = 4,
        timeout: float = 120.0,
        attempts: int = 6,
        max_tokens: int = 160,
        temperature: float = 0.7,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ParameterError(
                f"base URL {base_url[:60]!r}: expected http:// or https://, such as http://localhost:8000/v1"
            )
        if not 1 <= jobs <= 64 or not 1 <= attempts <= 20 or timeout <= 0 or not (per_minute is None or per_minute > 0):
            raise ParameterError(
                f"jobs={jobs}, attempts={attempts}, timeout={timeout}, per_minute={per_minute}: "
                "expected 1 to 64, 1 to 20, and positive numbers"
            )
        self.model, self.url, self.key_name = model, base_url.rstrip("/") + "/chat/completions", key_name
        self.budget, self.jobs, self.timeout = budget or Budget(), jobs, timeout
        self.attempts, self.max_tokens, self.temperature, self.sleep = attempts, max_tokens, temperature, sleep
        self._gap = 0.0 if per_minute is None else 60.0 / per_minute
        self._next, self._lock = 0.0, threading.Lock()

    @property
    def about(self) -> dict[str, Any]:
        """Return name and model; neither the server's address nor the key."""
        return {"name": "openai", "model": self.model, "temperature": self.temperature}

    def resume(self, tokens: tuple[int, int]) -> None:
        """Count the tokens of earlier runs against the budget."""
        self.budget.used = (self.budget.used[0] + tokens[0], self.budget.used[1] + tokens[1])

    def answer(self, draft: Draft) -> Reply:
        """Ask the server for a draft's answers.

        Raises:
            BudgetSpent: the request could cost more than is left.
            EcgChatError: the server refuses, or gives no answer after all attempts.
        """
        messages = messages_for(draft)
        most_written = self.max_tokens * len(draft.rounds) + 40
        body = {
            "model": self.model,
            "messages": messages,
            "temperature": self.temperature,
            "max_tokens": most_written,
        }
        most = (sum(len(one["content"]) for one in messages) // CHARACTERS_PER_TOKEN + 40, most_written)
        for attempt in range(self.attempts):
            self.budget.hold(most)
            used = (0, 0)
            try:
                self._wait_for_turn()
                found = self._ask(body)
                if not isinstance(found, _Later):
                    reply = _read_reply(found, len(draft.rounds), most)
                    used = reply.tokens
                    return reply
                used = most if found.maybe_billed else (0, 0)
            finally:
                self.budget.settle(most, used)
            if attempt + 1 < self.attempts:
                self.sleep(min(max(found.wait, 2.0**attempt), MAX_WAIT))
        raise EcgChatError(
            f"{self.model}: no answer after {self.attempts} tries ({found.reason}). "
            "What was answered is kept; run again with --resume"
        )

    def _wait_for_turn(self) -> None:
        """Keep the requests of all threads at least the allowed time apart."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._gap
        if start > now:
            self.sleep(start - now)

    def _ask(self, body: dict[str, Any]) -> Any:
        """Send one request; return the parsed answer, or `_Later` if it is worth another try."""
        import requests

        key = os.environ.get(self.key_name, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ParameterError(f"{self.key_name}: the key holds characters that no key has. Set it again")

        def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
            """Put the key on the request; given as `auth`, since a .netrc would replace a plain header."""
            if key:
                request.headers["Authorization"] = f"Bearer {key}"
            return request

        try:
            with requests.post(
                self.url, json=body, auth=sign, timeout=self.timeout, stream=True, allow_redirects=False
            ) as response:
                if response.status_code == 429 or response.status_code >= 500:
                    return _Later(f"status {response.status_code}", _retry_after(response.headers.get("Retry-After")))
                content = _read_limited(response)
                if response.status_code != 200:
                    raise EcgChatError(_refusal(self.model, response.status_code, content, key, self.key_name))
        except requests.Timeout:
            return _Later("timed out", maybe_billed=True)
        except requests.RequestException as error:
            if isinstance(error, ValueError):  # an address or header that can't be sent stays so
                raise EcgChatError(f"{self.model}: the server's address can't be used. Check --base-url") from None
            return _Later(type(error).__name__, maybe_billed=not _never_connected(error))
        import json

        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            return _Later("the answer is no JSON", maybe_billed=True)


def _never_connected(error: Exception) -> bool:
    """Return whether a request failed before there was a connection to send it on; any other may be billed."""
    from urllib3.exceptions import NewConnectionError

    return bool(error.args) and isinstance(getattr(error.args[0], "reason", None), NewConnectionError)


@dataclass(frozen=True)
class _Later:
    """A request to be tried again."""

    reason: str
    wait: float = 0.0
    maybe_billed: bool = False


def _read_limited(response: Any) -> bytes:
    out = b""
    for part in response.iter_content(65536):
        out += part
        if len(out) > MAX_REPLY_BYTES:
            return b""  # no JSON
    return out


def _retry_after(text: str | None) -> float:
    """Return a Retry-After header, seconds or a date, as seconds from now; 0 if it is missing or strange."""
    if not text:
        return 0.0
    try:
        seconds = float(text)
    except ValueError:
        from email.utils import parsedate_to_datetime

        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), MAX_WAIT) if seconds == seconds else 0.0  # NaN isn't itself


def _refusal(model: str, status: int, content: bytes, key: str, key_name: str) -> str:
    """Say why a server refused, without the key that a server may echo."""
    text = content.decode("utf-8", "replace")
    text = (text.replace(key, "***") if key else text)[:300]  # cut last, or half a key would stay
    text = "".join(character if character.isprintable() else " " for character in text)
    remedy = f"Set {key_name}" if status in (401, 403) else "Check --model, --base-url and the server's own log"
    return f"{model}: the server refuses with status {status}: {text.strip() or 'no reason given'}. {remedy}"


def _read_reply(found: Any, rounds: int, most: tuple[int, int]) -> Reply:
    """Turn a server's answer, whatever it holds, into a `Reply`. It was paid for, so it isn't asked again."""
    tokens = _usage(found, most)
    try:
        content = found["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        content = None
    answers = read_answers(content) if isinstance(content, str) else None
    if answers is None:
        return Reply((), "no answers in it", tokens)
    if len(answers) != rounds:
        return Reply((), f"{len(answers)} answers for {rounds} questions", tokens)
    return Reply(tuple(answers), "", tokens)


def _usage(found: Any, most: tuple[int, int]) -> tuple[int, int]:
    """Return the tokens that a server counted; the worst case where it doesn't say."""
    usage = found.get("usage") if isinstance(found, dict) else None
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    if all(isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 10**9 for count in counts):
        return counts[0], counts[1]  # type: ignore[return-value]
    return most

"""The page itself, in Gradio: what stands where, what happens at a click, and what keeps it private.

Everything a visitor has is in the visitor's own `Visitor`; the model's weights are all that visitors share. Questions
and reports wait in one queue and are served in order. `Guard` lets only what the page needs through. Taught in: 13 §7
"""

from __future__ import annotations

import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gradio as gr

from ecgchat_lib.app.view import (
    Turn,
    announced,
    check_question,
    conversation_html,
    examine,
    found_html,
    header_html,
    report_html,
    status_html,
    tracings_html,
)
from ecgchat_lib.app.visitors import KINDS, MOST_BYTES, MOST_FILES, Visitor, Visitors, read_upload, told
from ecgchat_lib.chat.grounding import DEFAULT, GROUNDING
from ecgchat_lib.chat.session import ChatSession
from ecgchat_lib.ecg.recording import Recording, read_recording
from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.paths import data_folder

if TYPE_CHECKING:
    from collections.abc import Awaitable

HOST = "127.0.0.1"
WAITING = 64  # questions in the queue; more are refused
EVERY_SECONDS = 0.1  # between two states of an answer that is being made
IDLE_SECONDS = 2 * 3600.0  # after which a visitor who does nothing has left
MOST_UPLOAD = MOST_FILES * MOST_BYTES + 2**16  # bytes of one request with files; the rest is what stands between them
MOST_ASKED = 2**20  # bytes of any other request
SAMPLES = tuple(f"A{number:04d}" for number in range(1, 11))
QUESTIONS = (
    "What is the heart rhythm?",
    "What does this ECG show?",
    "Is this ECG normal?",
    "What is the heart rate?",
    "What makes a QRS complex wide?",
)
GROUNDING_NAMES = {
    "tokens": "ECG tokens",
    "labels": "Labels with probabilities",
    "measurements": "Measurements",
    "neighbours": "Similar recordings",
    "knowledge": "Knowledge",
}
KINDS_OF_REPORT: dict[str, Literal["pdf", "html", "md"]] = {"PDF": "pdf", "HTML": "html", "Markdown": "md"}
_SAID = "as the file says"
_CSP = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_OPEN = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/(?:static|assets|svelte)/.*"
    r"|/gradio_api/(?:info|upload|upload_progress|startup-events|cancel|reset|app_id|login_check|token|user)/?"
    r"|/gradio_api/(?:queue/join|queue/data|heartbeat/[A-Za-z0-9-]+)"
)
_JS = """() => {
  document.documentElement.lang = 'en';
  const wrap = (id, role, label) => {
    const found = document.getElementById(id);
    if (found) { found.setAttribute('role', role); if (label) found.setAttribute('aria-label', label); }
    return found;
  };
  wrap('status', 'status'); wrap('report', 'status'); wrap('announce', 'status');
  wrap('conversation', 'region', 'Conversation, the newest answer first');
  wrap('tracings', 'region', 'Tracing'); wrap('found', 'region', 'Measurements and quality');
  const box = document.querySelector('#upload input[type=file]');
  if (box) box.setAttribute('aria-label', 'Recording: one or several files');
}"""


class Guard:
    """Lets only the addresses through that the page needs, only of this machine, and of the files only reports.

    Gradio serves more: uploads of others, files of its caches, a proxy, a log of runs. A page elsewhere could also
    point its own name at this machine, or send to it blindly from a visitor's browser; so the name in the request must
    be this machine's, and a request that another page makes is refused. So is what is too large.
    """

    def __init__(self, app: Any, visitors: Visitors) -> None:
        """Wrap an ASGI application; of the visitors' files only reports may be fetched."""
        self.app, self.visitors, self.reports = app, visitors, visitors.reports

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] == "websocket":  # the page has none
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = (
            403 if not self.allows(scope["path"]) else self.refuses(scope["method"], scope["path"], scope["headers"])
        )
        if refused:
            head = {"type": "http.response.start", "status": refused, "headers": [(b"content-type", b"text/plain")]}
            await send(head)
            await send({"type": "http.response.body", "body": b"not served here"})
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = {"content-security-policy": _CSP, "x-content-type-options": "nosniff"}
                more |= {"referrer-policy": "no-referrer", "cross-origin-resource-policy": "same-origin"}
                added = [(name.encode(), value.encode()) for name, value in more.items()]
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        await self.app(scope, receive, with_headers)

    def refuses(self, method: str, path: str, headers: list[tuple[bytes, bytes]]) -> int:
        """Return the status with which a request is refused because of its headers, or 0."""
        found: dict[str, list[str]] = {}
        for name, value in headers:
            found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        host = found.get("host", [])
        if len(host) != 1 or not re.fullmatch(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::\d+)?", host[0]):
            return 403
        if any(origin != f"http://{host[0]}" for origin in found.get("origin", [])):
            return 403
        if method in ("GET", "HEAD"):
            return 0
        if not {"same-origin", "none"}.issuperset(found.get("sec-fetch-site", [])):
            return 403
        if "transfer-encoding" in found:  # it doesn't say how much it is
            return 411
        upload = path.startswith("/gradio_api/upload")
        size = found.get("content-length", ["0"])[0]
        if not re.fullmatch(r"[0-9]{1,15}", size) or int(size) > (MOST_UPLOAD if upload else MOST_ASKED):
            return 413
        return 507 if upload and self.visitors.crowded() else 0

    def allows(self, path: str) -> bool:
        """Return whether the address is one that the page needs."""
        start = "/gradio_api/file="
        if path.startswith(start):
            file = Path(path[len(start) :])
            return (
                ".." not in file.parts and len(file.relative_to(self.reports).parts) == 2
                if (file.is_relative_to(self.reports))
                else False
            )
        return _OPEN.fullmatch(path) is not None


@dataclass
class Page:
    """The page, with what its visitors have."""

    loader: Callable[[], ChatSession]
    visitors: Visitors
    demo: gr.Blocks = field(init=False)
    url: str = ""
    _session: ChatSession | None = None
    _loading: threading.Lock = field(default_factory=threading.Lock)

    def load(self) -> ChatSession:
        """Return the session whose model all visitors share; loaded once."""
        with self._loading:
            if self._session is None:
                self._session = self.loader()
            return self._session

    def open(self, port: int, *, open_browser: bool = False) -> None:
        """Serve the page on 127.0.0.1.

        Raises:
            EcgChatError: the port is taken.
        """
        from starlette.middleware import Middleware

        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise EcgChatError(f"port {port} of {HOST}: {error.strerror}. Give another port") from None
        for name in ("NO_PROXY", "no_proxy"):  # Gradio asks its own address whether it answers
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST)))
        guard = Middleware(Guard, visitors=self.visitors)
        _, self.url, _ = self.demo.launch(
            server_name=HOST,
            server_port=port,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            share=False,
            max_file_size=MOST_BYTES,
            allowed_paths=[],
            blocked_paths=[str(self.visitors.private), str(data_folder())],
            app_kwargs={"middleware": [guard], "docs_url": None, "redoc_url": None, "openapi_url": None},
            state_session_capacity=1000,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=_theme(),
            css=Path(__file__).with_name("style.css").read_text(encoding="utf-8"),
            js=_JS,
        )

    def close(self) -> None:
        """End serving, and remove all that visitors brought and got."""
        if hasattr(self, "demo"):
            self.demo.close(verbose=False)
        self.visitors.close()

    # --- what happens at a click ---------------------------------------------------------------------------------

    def visitor(self, request: gr.Request) -> Visitor:
        """Return the visitor who asks."""
        return self.visitors.enter(request.session_hash)

    def upload(
        self, files: list[str] | None, fs: float | None, leads: str, unit: str, compare: bool, request: gr.Request
    ) -> tuple[Any, ...]:
        """Take files over, and show the recording that they are."""

        def read(visitor: Visitor) -> Recording:
            if files:
                self.visitors.receive(visitor, files)
            given = {"fs": fs or None, "leads": (leads or "").strip() or None, "unit": None if unit == _SAID else unit}
            return read_upload(visitor, **given)  # type: ignore[arg-type]

        return self._show(read, compare, request)

    def sample(self, name: str, compare: bool, request: gr.Request) -> tuple[Any, ...]:
        """Show one of the course's recordings."""

        def read(visitor: Visitor) -> Recording:
            if name not in SAMPLES:
                raise EcgChatError("no such sample. Choose one of those shown")
            visitor.forget_files()
            return read_recording(data_folder() / "real_sample" / name)

        return self._show(read, compare, request)

    def _show(self, read: Callable[[Visitor], Recording], compare: bool, request: gr.Request) -> tuple[Any, ...]:
        """Read a recording and show it: status, tracings, findings, talk, report, emptied upload, visitor."""
        visitor: Visitor | None = None
        try:
            visitor = self.visitor(request)
            seen = examine(read(visitor))
            visitor.stay()
        except Exception as error:
            return status_html(_line(error, visitor), "bad"), *[gr.skip()] * 4, None, visitor
        visitor.done = True
        earlier = visitor.seen[-1:] if compare else []
        visitor.seen, visitor.turns, visitor.session = [*earlier, seen], [], None
        done = (
            f"{seen.recording.name} is shown." if not earlier else f"{seen.recording.name} is shown below the earlier."
        )
        return status_html(done), tracings_html(visitor.seen), found_html(visitor.seen), "", "", None, visitor

    def ask(self, question: str, given: list[str], request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Ask about the recordings shown; yield the conversation while the answer is made."""
        try:
            visitor, asked = self._asked(question, request)
        except Exception as error:
            yield status_html(_line(error), "bad"), gr.skip(), "", gr.skip(), gr.skip()
            return
        turn = Turn(asked)
        visitor.turns.append(turn)
        yield "", conversation_html(visitor.turns, busy=True), "", "", visitor
        try:
            pieces = self._conversation(visitor, given).stream([one.recording for one in visitor.seen], asked)
            shown = time.monotonic()
            while not visitor.gone:
                turn.told += next(pieces)
                if time.monotonic() - shown > EVERY_SECONDS:
                    shown = time.monotonic()
                    yield gr.skip(), conversation_html(visitor.turns, busy=True), gr.skip(), gr.skip(), gr.skip()
            pieces.close()
        except StopIteration as done:
            turn.answer = done.value
        except Exception as error:
            turn.error = _line(error, visitor)
        yield "", conversation_html(visitor.turns), announced(turn), gr.skip(), visitor

    def _asked(self, question: str, request: gr.Request) -> tuple[Visitor, str]:
        """Return who asks, and the question; who brought no recording gets no place among the visitors by asking."""
        visitor = self.visitors.find(request.session_hash)
        asked = check_question(question, visitor.seen if visitor is not None else [])
        assert visitor is not None  # else nothing was seen
        return visitor, asked

    def _conversation(self, visitor: Visitor, given: list[str]) -> ChatSession:
        """Return the visitor's own conversation with the shared model; a new one if the grounding was changed."""
        wanted = frozenset(name for name in given if name in GROUNDING)
        if visitor.session is None or visitor.session.with_ != wanted:
            visitor.session = own_session(self.load(), wanted)
        return visitor.session

    def report(self, kind: str, given: list[str], request: gr.Request) -> tuple[Any, ...]:
        """Write a report on the recording shown last, and return the link to it."""
        from ecgchat_lib.report import make_report, write_report

        visitor: Visitor | None = None
        try:
            visitor = self.visitors.find(request.session_hash)
            if visitor is None or not visitor.seen:
                raise EcgChatError("no recording yet. Drop one, or choose a sample")
            recording = visitor.seen[-1].recording
            session = own_session(self.load(), frozenset(name for name in given if name in GROUNDING))
            ending = KINDS_OF_REPORT[kind]
            name = f"{re.sub(r'[^A-Za-z0-9_-]+', '_', recording.name).strip('_') or 'report'}.{ending}"
            content = make_report(recording, session=session)
            with tempfile.TemporaryDirectory(prefix="ecgchat-report-") as folder:
                write_report(recording, Path(folder) / name, kind=ending, report=content)
                made = self.visitors.hand_over(visitor, Path(folder))
            made.sort(key=lambda path: path.name != name)
        except Exception as error:
            return status_html(_line(error, visitor), "bad"), visitor
        return report_html([(f"gradio_api/file={path}", path.name) for path in made]), visitor

    def leave(self, request: gr.Request) -> None:
        """Remove what a visitor had, when the tab is closed or loaded anew."""
        self.visitors.leave(request.session_hash)

    def forget(self, visitor: Visitor | None) -> None:
        """Remove what a visitor had who did nothing for a long time."""
        if visitor is not None:
            self.visitors.leave(visitor.key)


def own_session(shared: ChatSession, with_: frozenset[str]) -> ChatSession:
    """Return a new conversation with a model that others use too."""
    kept = {item.name: getattr(shared, item.name) for item in fields(shared) if item.init and item.name[0] != "_"}
    return ChatSession(**{**kept, "turns": [], "with_": with_})


def _line(error: Exception, visitor: Visitor | None = None) -> str:
    """Return one line for the visitor; what nobody expected is told to the terminal by its kind only."""
    if isinstance(error, EcgChatError):
        return told(error, visitor)
    kind = type(error).__name__
    print(f"ecgchat app: unexpected {kind}", file=sys.stderr)
    return f"that didn't work ({kind}). Try another recording or question"


def build(load: Callable[[], ChatSession], visitors: Visitors) -> Page:
    """Build the page.

    Args:
        load: returns the chat session whose model all visitors share.
        visitors: what they have.
    """
    page = Page(load, visitors)
    with gr.Blocks(title="ECG-Chat", analytics_enabled=False, delete_cache=(60, 600)) as page.demo:
        state = gr.State(None, time_to_live=IDLE_SECONDS, delete_callback=page.forget)
        gr.HTML(header_html(), elem_id="head", js_on_load=None)
        with gr.Row(elem_id="main"):
            with gr.Column(scale=1, min_width=290, elem_id="side"):
                upload, samples, said, compare, again, grounding = _side()
            with gr.Column(scale=3, min_width=320, elem_id="work"):
                status = gr.HTML("", elem_id="status", js_on_load=None)
                tracings = gr.HTML(tracings_html(()), elem_id="tracings", js_on_load=None)
                with gr.Row(elem_id="below"):
                    with gr.Column(scale=1, min_width=300):
                        gr.HTML("<h2>Measurements</h2>", js_on_load=None)
                        found = gr.HTML('<p class="hint">Nothing yet.</p>', elem_id="found", js_on_load=None)
                    with gr.Column(scale=1, min_width=300):
                        ask = _ask(grounding)
        announce = gr.HTML("", elem_id="announce", js_on_load=None)
        seen = [status, tracings, found, ask.conversation, ask.report, upload, state]
        look: dict[str, Any] = {"concurrency_id": "look", "concurrency_limit": 1, "show_progress": "minimal"}
        given = [upload, *said, compare]
        upload.upload(page.upload, given, seen, api_name="upload", api_visibility="undocumented", **look)
        again.click(page.upload, given, seen, api_visibility="private", **look)
        for name, button in samples.items():
            button.click(_sample(page, name), [compare], seen, api_name=name, api_visibility="undocumented", **look)
        _wire(page, ask, status, announce, state)
        page.demo.unload(page.leave)
    page.demo.queue(default_concurrency_limit=1, max_size=WAITING, api_open=False)
    return page


# Gradio gives the request to a function by its annotations, which a functools.partial doesn't show.


def _sample(page: Page, name: str) -> Callable[..., tuple[Any, ...]]:
    def show_sample(compare: bool, request: gr.Request) -> tuple[Any, ...]:
        return page.sample(name, compare, request)

    return show_sample


def _example(page: Page, text: str) -> Callable[..., Iterator[tuple[Any, ...]]]:
    def ask_example(given: list[str], request: gr.Request) -> Iterator[tuple[Any, ...]]:
        yield from page.ask(text, given, request)

    return ask_example


def _report(page: Page, kind: str) -> Callable[..., tuple[Any, ...]]:
    def write(given: list[str], request: gr.Request) -> tuple[Any, ...]:
        return page.report(kind, given, request)

    return write


@dataclass
class _Ask:
    """The parts of the page that belong to asking."""

    given: gr.CheckboxGroup
    examples: list[gr.Button]
    question: gr.Textbox
    button: gr.Button
    conversation: gr.HTML
    reports: dict[str, gr.Button]
    report: gr.HTML


def _side() -> tuple[gr.File, dict[str, gr.Button], list[Any], gr.Checkbox, gr.Button, gr.CheckboxGroup]:
    """Lay out what a recording is given with."""
    gr.HTML("<h2>Recording</h2>", js_on_load=None)
    upload = gr.File(
        file_count="multiple",
        file_types=list(KINDS),
        label="Recording: one or several files",
        elem_id="upload",
        height=170,
    )
    gr.HTML(
        f'<p class="hint">A WFDB pair (.hea with .dat or .mat), csv, npy, h5, EDF or DICOM, at most '
        f"{MOST_BYTES / 2**20:.0f} MB each. Or one of the course's samples:</p>",
        js_on_load=None,
    )
    with gr.Row(elem_id="samples"):
        samples = {name: gr.Button(name, size="sm", min_width=60) for name in SAMPLES}
    compare = gr.Checkbox(label="Compare: keep the recording shown as the earlier one", value=False)
    with gr.Accordion("If the file doesn't say it", open=False):
        fs = gr.Number(label="Samples per second", value=None, minimum=0, maximum=10_000)
        leads = gr.Textbox(
            label="Leads, in the file's order", placeholder="I, II, III, aVR, aVL, aVF, V1, …, V6", max_length=500
        )
        unit = gr.Radio([_SAID, "mV", "uV", "V", "nV"], value=_SAID, label="Unit")
        again = gr.Button("Read the file again", size="sm")
    choices = [(name, value) for value, name in GROUNDING_NAMES.items() if value in GROUNDING]
    given = gr.CheckboxGroup(
        choices,
        value=[name for name in GROUNDING if name in DEFAULT],
        label="What the model is given",
        info="A change begins a new conversation.",
        elem_id="given",
    )
    return upload, samples, [fs, leads, unit], compare, again, given


def _ask(given: gr.CheckboxGroup) -> _Ask:
    """Lay out the question, the conversation and the report."""
    gr.HTML("<h2>Ask</h2>", js_on_load=None)
    with gr.Row(elem_id="examples"):
        examples = [gr.Button(text, size="sm", min_width=120) for text in QUESTIONS]
    with gr.Row(elem_id="asking"):
        question = gr.Textbox(
            label="Your question",
            placeholder="What is the heart rhythm?",
            lines=1,
            max_length=2000,
            scale=5,
            elem_id="question",
        )
        button = gr.Button("Ask", variant="primary", scale=0, min_width=110, elem_id="ask")
    conversation = gr.HTML("", elem_id="conversation", js_on_load=None)
    gr.HTML("<h2>Report</h2>", js_on_load=None)
    with gr.Row(elem_id="reports"):
        reports = {kind: gr.Button(f"Report as {kind}", size="sm", min_width=120) for kind in KINDS_OF_REPORT}
    report = gr.HTML("", elem_id="report", js_on_load=None)
    return _Ask(given, examples, question, button, conversation, reports, report)


def _wire(page: Page, ask: _Ask, status: gr.HTML, announce: gr.HTML, state: gr.State) -> None:
    """Connect questions and reports; all of them wait in one queue for the model."""
    model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal"}
    outputs = [status, ask.conversation, announce, ask.question, state]
    inputs = [ask.question, ask.given]
    gr.on(
        [ask.button.click, ask.question.submit],
        page.ask,
        inputs,
        outputs,
        api_name="ask",
        api_visibility="undocumented",
        **model,
    )
    for button, text in zip(ask.examples, QUESTIONS, strict=True):
        button.click(_example(page, text), [ask.given], outputs, api_visibility="private", **model)
    for kind, button in ask.reports.items():
        made = button.click(_report(page, kind), [ask.given], [ask.report, state], api_visibility="private", **model)
        made.success(None, js="() => { document.querySelector('.report-link')?.click(); }")


def _theme() -> gr.themes.Base:
    """Return a plain theme in the report's colors, with the system's own fonts, light at any time of day."""
    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue=gr.themes.Color(*_shades("0B5C7A")),
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=[gr.themes.Font(name) for name in sans],
        font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
    ).set(
        body_background_fill="#f4f6f8",
        body_text_color="#1b2a38",
        input_placeholder_color="#5a6875",
        body_text_color_subdued="#51606d",
        block_label_text_color="#51606d",
        block_title_text_color="#1b2a38",
        block_border_width="1px",
        block_border_color="#c9d3da",
        input_border_color="#7b8c98",
        button_primary_background_fill="#0b5c7a",
        button_primary_background_fill_hover="#084860",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="#e6eff3",
        button_secondary_text_color="#0b5c7a",
        button_secondary_border_color="#7b8c98",
        button_border_width="1px",
        checkbox_background_color_selected="#0b5c7a",
        checkbox_border_color="#6b7c88",
    )
    for name in list(vars(theme)):
        if name.endswith("_dark") and hasattr(theme, name[:-5]):
            setattr(theme, name, getattr(theme, name[:-5]))  # ECG paper is light, and so is everything around it
    return theme


def _shades(color: str) -> Iterator[str]:
    """Yield eleven shades of a color, from nearly white to nearly black, as Gradio's themes want them."""
    red, green, blue = (int(color[at : at + 2], 16) for at in (0, 2, 4))
    for part in (0.95, 0.9, 0.75, 0.6, 0.35, 0.15, 0.0, -0.15, -0.3, -0.45, -0.6):
        mixed = (round(c + (255 - c) * part) if part > 0 else round(c * (1 + part)) for c in (red, green, blue))
        yield "#" + "".join(f"{c:02x}" for c in mixed)

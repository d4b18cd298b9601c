"""The six loaders by name, and one call for all of them. A plain dictionary: another dataset is another function.

Taught in: 02 §2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ecgchat_lib.datasets.chapman import load_chapman
from ecgchat_lib.datasets.cpsc2018 import load_cpsc2018
from ecgchat_lib.datasets.manifest import Manifest
from ecgchat_lib.datasets.mimic_iv_ecg import load_mimic_iv_ecg
from ecgchat_lib.datasets.ptbxl import load_ptbxl
from ecgchat_lib.datasets.sph import load_sph
from ecgchat_lib.errors import MissingPartError, ParameterError


def load_synthetic(folder: str | Path, *, require_files: bool = True) -> Manifest:
    """Load a dataset that `synthetic.write_synthetic` wrote: PTB-XL's layout, with `synthetic.json` beside it.

    Raises:
        MissingPartError: the folder holds no synthetic dataset.
    """
    if not (Path(folder) / "synthetic.json").is_file():
        remedy = "Make one with ecgchat_lib.datasets.synthetic.write_synthetic, or load PTB-XL with 'ptbxl'"
        raise MissingPartError(str(folder), "no synthetic.json in this folder", remedy)
    return load_ptbxl(folder, require_files=require_files)


LOADERS: Mapping[str, Callable[..., Manifest]] = MappingProxyType(
    {
        "ptbxl": load_ptbxl,
        "mimic_iv_ecg": load_mimic_iv_ecg,
        "chapman": load_chapman,
        "sph": load_sph,
        "cpsc2018": load_cpsc2018,
        "synthetic": load_synthetic,
    }
)


def load(name: str, folder: str | Path, **options: Any) -> Manifest:
    """Load a dataset as a manifest.

    Args:
        name: one of `LOADERS`.
        folder: the dataset's folder, in its published layout.
        options: as that loader takes them.

    Raises:
        ParameterError: the name or an option is unknown.
        MissingPartError, RecordError, EcgChatError: as the loader.
    """
    if name not in LOADERS:
        raise ParameterError(f"unknown dataset {name!r}; expected one of {', '.join(LOADERS)}")
    loader = LOADERS[name]
    known = list(loader.__kwdefaults__ or {})
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ParameterError(f"dataset {name}: unknown options {unknown}; expected some of {known}")
    return loader(folder, **options)

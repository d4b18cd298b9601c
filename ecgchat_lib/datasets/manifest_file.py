"""A manifest as a Parquet file or an Arrow table, and back, with statements and labels as tuples again.

It converts; what a manifest is stands in `manifest.py`. Taught in: 02 §6.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from ecgchat_lib.datasets.manifest import Manifest


def to_arrow(frame: pd.DataFrame) -> pa.Table:
    """Return a table's columns as Arrow: statements become lists of {code, likelihood}, tuples of texts become lists.

    Raises:
        ParameterError: a column holds what Arrow has no type for.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for name in frame.columns:
        values = frame[name].tolist()
        try:
            if name == "statements":
                pairs = pa.list_(pa.struct([("code", pa.string()), ("likelihood", pa.float64())]))
                columns[name] = pa.array([[{"code": c, "likelihood": p} for c, p in value] for value in values], pairs)
            elif values and all(isinstance(value, tuple) for value in values):
                columns[name] = pa.array([list(value) for value in values], pa.list_(pa.string()))
            else:
                columns[name] = pa.array(values, from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise ParameterError(f"column {name!r}: can't be stored ({error}). Drop or convert it") from None
    return pa.table(columns)


def from_arrow(table: pa.Table) -> pd.DataFrame:
    """Return an Arrow table as a data frame; lists become tuples, {code, likelihood} becomes (code, likelihood)."""
    import pandas as pd
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for name in table.column_names:
        kind = table.schema.field(name).type
        if pa.types.is_list(kind):
            cells = table[name].to_pylist()
            columns[name] = pd.Series([_as_tuple(cell) for cell in cells], dtype=object)
        elif pa.types.is_string(kind) and table[name].null_count:
            columns[name] = pd.Series(table[name].to_pylist(), dtype=object)  # unknown stays None, not NaN
        else:
            columns[name] = table[name].to_pandas()
    return pd.DataFrame(columns)


def _as_tuple(cell: list[Any] | None) -> tuple[Any, ...]:
    return tuple(tuple(item.values()) if isinstance(item, dict) else item for item in cell or ())


def write_manifest(manifest: Manifest, path: str | Path) -> None:
    """Write a manifest as a Parquet file, in one step.

    Raises:
        ParameterError: a column can't be stored.
        EcgChatError: the file can't be written.
    """
    import pyarrow.parquet as pq

    path = Path(path)
    table = to_arrow(manifest)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, partial)
        os.replace(partial, path)
    except OSError as error:
        raise EcgChatError(f"{path}: can't be written ({error.strerror}). Choose another place with --out") from None
    finally:
        partial.unlink(missing_ok=True)


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest that `write_manifest` wrote, and check it.

    Raises:
        MissingPartError: there is no such file.
        EcgChatError: it is no Parquet file, or no manifest.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ecgchat_lib.datasets.manifest import check_manifest

    path = Path(path)
    if not path.is_file():
        raise MissingPartError(str(path), "no such file", "Make it with 'ecgchat data manifest'")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise EcgChatError(
            f"{path}: not a Parquet file ({type(error).__name__}). Make it with 'ecgchat data manifest'"
        ) from None
    return check_manifest(from_arrow(table))

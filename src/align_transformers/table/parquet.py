"""Tables as parquet files, with what is known of the whole inside."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .._errors import ArtifactError, SpecError
from .._optional import optional
from .values import arrow_type, plain_meta

_META_KEY = b"align_transformers"


def as_parquet(columns: Mapping[str, Sequence[Any]], meta: Mapping[str, Any]) -> bytes:
    """Return the file.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    arrow, parquet = optional("pyarrow", extra="tables"), optional("pyarrow.parquet", extra="tables")
    arrays = {name: arrow.array(values, type=arrow_type(name, arrow)) for name, values in columns.items()}
    text = json.dumps(plain_meta(meta))
    schema = arrow.schema([arrow.field(name, array.type) for name, array in arrays.items()])
    stored = arrow.Table.from_arrays(list(arrays.values()), schema=schema.with_metadata({_META_KEY: text.encode()}))
    buffer = io.BytesIO()
    parquet.write_table(stored, buffer)
    return buffer.getvalue()


def from_parquet(where: str) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Return the columns and the meta of a file.

    Raises:
        SpecError: it was not written by `as_parquet`.
        ArtifactError: it is damaged, or no parquet file.
        FileNotFoundError: there is none.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        stored = optional("pyarrow.parquet", extra="tables").read_table(where, partitioning=None)
        text = (stored.schema.metadata or {}).get(_META_KEY)
        meta = None if text is None else json.loads(text)
    except FileNotFoundError:
        raise
    except (ValueError, OSError) as error:  # as pyarrow's are
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ArtifactError(f"{where} is damaged, or no parquet file ({why})") from error
    if not isinstance(meta, dict):
        raise SpecError(f"{where} carries no description of a table; was it written by Table.save?")
    return stored.to_pydict(), meta

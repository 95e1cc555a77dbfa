"""Rows of parquet, CSV and JSON files and of datasets, and which columns hold the texts, images and labels."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from compressor.errors import DataError
from compressor.models.records import Part, Picture, Record, short

TEXT_COLUMNS = ("text", "content", "sentence", "document", "prompt", "review", "article", "body")
PAIR_COLUMNS = (
    ("text", "text_pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("question", "sentence"),
)  # fmt: skip
IMAGE_COLUMNS = ("image", "img", "picture", "photo", "file_name", "image_path", "path")
LABEL_COLUMNS = ("label", "labels", "target", "fine_label", "class")

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Table:
    """Columns of equal length. folder: where relative paths to images start."""

    name: str
    columns: Columns
    folder: Path = Path()

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def first(self, name: str) -> Any:
        """The first value of a column that is there, or None."""
        return next((value for value in self.columns[name] if value is not None), None)

    def named(self, names: Sequence[str]) -> str | None:
        """The column that is called by the earliest of the names, whatever the case."""
        known = {name.lower(): name for name in self.columns}
        return next((known[name] for name in names if name in known), None)


# *** reading ***


def read_text(path: Path) -> str:
    """The file as UTF-8. Raises DataError when it is empty or is not text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name} is not UTF-8 text",
            found=f"byte 0x{error.object[error.start]:02x} at position {error.start:,}",
            hint=f"iconv -f ENCODING -t UTF-8 {path.name}, or a file in another format: .txt, {', '.join(READERS)}",
        ) from error
    except OSError as error:
        raise DataError(f"{path.name} cannot be read", found=short(error), hint="a file that you may read") from error
    if not text.strip():
        raise DataError(
            f"{path.name} is empty", found=f"{len(text)} characters of white space", hint="a file with data in it"
        )
    return text


def read_tables(paths: Sequence[Path], name: str) -> Table:
    """The files, which are shards of one table, one after the other."""
    shards = [READERS[path.suffix.lower()](path) for path in paths]
    columns = shards[0]
    for path, shard in zip(paths, shards, strict=True):
        if shard.keys() != columns.keys():
            raise DataError(
                f"{paths[0].name} and {path.name} have different columns",
                found=f"{', '.join(columns)}; {', '.join(shard)}",
                hint="one of the two files",
            )
    joined = {key: [value for shard in shards for value in shard[key]] for key in columns}
    return Table(name, joined, paths[0].parent)


def _parquet(path: Path) -> Columns:
    """Images stay in the file until they are asked for."""
    from pyarrow import parquet

    def images(name: str, sizes: Sequence[int]) -> list[Any]:
        @lru_cache(maxsize=1)
        def group(number: int) -> Any:
            with _reading(path), parquet.ParquetFile(path) as file:
                return file.read_row_group(number, columns=[name]).column(0)

        return [lambda g=g, i=i: group(g)[i].as_py() for g, size in enumerate(sizes) for i in range(size)]

    with _reading(path), parquet.ParquetFile(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
        sizes = [metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        read = file.read(columns=[field.name for field in schema if not _holds_images(field.type)])
    return {name: read[name].to_pylist() if name in read.column_names else images(name, sizes) for name in schema.names}


def from_arrow(table: Any) -> Columns:
    """Columns of an Arrow table; images stay in it, which may be a file mapped into memory."""
    return {
        name: [partial(_value, column, i) for i in range(len(column))]
        if _holds_images(column.type)
        else column.to_pylist()
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _value(column: Any, i: int) -> Any:
    return column[i].as_py()


def _holds_images(kind: Any) -> bool:
    from pyarrow import types

    encoded = types.is_binary(kind) or types.is_large_binary(kind)
    return encoded or (types.is_struct(kind) and any(field.name == "bytes" for field in kind))


def _csv(path: Path) -> Columns:
    from pyarrow import csv

    raw = read_text(path).encode()
    with _reading(path):
        return csv.read_csv(
            io.BytesIO(raw),
            read_options=csv.ReadOptions(block_size=min(len(raw) + 1, 2**31 - 1)),  # a text may not straddle two blocks
            parse_options=csv.ParseOptions(
                delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True
            ),
        ).to_pydict()


def _json(path: Path) -> Columns:
    """A list of objects, an object that holds one such list, or JSON lines."""
    text = read_text(path)
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        return _json_lines(path)
    lists = [value for value in whole.values() if isinstance(value, list)] if isinstance(whole, dict) else [whole]
    rows = lists[0] if len(lists) == 1 else whole
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(
            f"{path.name} is not a list of JSON objects", found=text.strip()[:60], hint='[{"text": "..."}, ...]'
        )
    return _by_column(rows)


def _json_lines(path: Path) -> Columns:
    lines = read_text(path).split("\n")  # JSON strings may hold what str.splitlines takes for line ends
    return _by_column([_object(path, number, line) for number, line in enumerate(lines, 1) if line.strip()])


def _object(path: Path, number: int, line: str) -> Record:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path.name}, line {number}, is not JSON",
            found=f"{error.msg} at column {error.colno}: {line.strip()[:60]!r}",
            hint="one whole JSON object on each line; the file may have been cut off",
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{path.name}, line {number}, is not a JSON object", found=line.strip()[:60], hint='{"text": "..."}'
        )
    return row


def _by_column(rows: list[Record]) -> Columns:
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


READERS: dict[str, Callable[[Path], Columns]] = {
    ".parquet": _parquet, ".csv": _csv, ".tsv": _csv, ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json,
}  # fmt: skip


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, ValueError, ArrowException) as error:
        raise DataError(
            f"{path.name} is not a {path.suffix.lower()} file that can be read",
            found=short(error) if path.stat().st_size else "0 bytes",
            hint="download or write it again; it may have been cut off",
        ) from error


# *** columns ***


def table_part(table: Table, kind: str) -> Part:
    """The table's texts or images. Raises DataError when it has no such column or no rows."""
    if not len(table):
        raise DataError(f"{table.name} is empty", found="no rows", hint="a file with records in it")
    if kind == "image":
        return Part(table.name, _images(table), "images")
    if kind == "labelled-text":
        return Part(table.name, _labelled_texts(table), "texts")
    # Documents are joined as they stand; a missing one is an empty one.
    return text_part(table.name, "\n\n".join(_texts(table, _text_column(table), missing="")))


def text_part(name: str, text: str) -> Part:
    """Raises DataError when there is nothing but white space."""
    if not text.strip():
        raise DataError(f"{name} is empty", found="only white space", hint="data with text in it")
    return Part(name, [{"text": text}], "characters")


def _labelled_texts(table: Table) -> list[Record]:
    pair = next((pair for pair in PAIR_COLUMNS if all(name in table.columns for name in pair)), None)
    texts = [_texts(table, name) for name in pair or (_text_column(table),)]
    keys = ("text", "text_pair", "label") if pair else ("text", "label")
    return [dict(zip(keys, row, strict=True)) for row in zip(*texts, _labels(table), strict=True)]


def _images(table: Table) -> list[Record]:
    stored = table.columns[_image_column(table)]
    return [
        {"image": Picture(f"the image in row {i + 1:,} of {table.name}", value, table.folder), "label": label}
        for i, (value, label) in enumerate(zip(stored, _labels(table), strict=True))
    ]


def _text_column(table: Table) -> str:
    strings = [
        name for name in table.columns if name.lower() not in LABEL_COLUMNS and isinstance(table.first(name), str)
    ]
    return _column(table, TEXT_COLUMNS, strings, "text")


def _image_column(table: Table) -> str:
    encoded = [name for name in table.columns if callable(table.first(name))]
    return _column(table, IMAGE_COLUMNS, encoded, "image")


def _column(table: Table, names: Sequence[str], candidates: Sequence[str], what: str) -> str:
    """The column called by one of the names, else the only candidate."""
    named = table.named(names)
    if named or len(candidates) == 1:
        return named or candidates[0]
    raise DataError(
        f"{table.name} has no column that is clearly the {what}",
        found=f"columns: {', '.join(table.columns)}",
        hint=f"a column named {', '.join(names[:-1])} or {names[-1]}",
    )


def _texts(table: Table, name: str, missing: str | None = None) -> list[str]:
    """A column in which every value is text, or `missing` where there is none."""
    texts = [missing if value is None else value for value in table.columns[name]]
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            found = f"{'nothing' if text is None else f'a {type(text).__name__}'} in {name}"
            raise DataError(f"row {i + 1:,} of {table.name} has no text", found=found, hint="text in every row")
    return texts  # type: ignore[return-value]


def _labels(table: Table) -> list[int | str | None]:
    """A label for each row, None where there is none; a data set that hides them writes -1 in every row."""
    name = table.named(LABEL_COLUMNS)
    values = table.columns[name] if name else [None] * len(table)
    labels = [_label(value, i, table.name) for i, value in enumerate(values)]
    is_hidden = set(labels) <= {None, -1}
    return [None if is_hidden else label for label in labels]


def _label(value: Any, i: int, name: str) -> int | str | None:
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and float(value).is_integer():
        return int(value)
    raise DataError(
        f"row {i + 1:,} of {name} has a label that is not a class",
        found=f"{str(value)[:40]} of type {type(value).__name__}",
        hint="a class number or a class name in every row",
    )

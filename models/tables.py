"""Rows from parquet, CSV and JSON files and from datasets, and which of their columns hold texts, images and labels."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from compressor.errors import DataError
from compressor.models.records import Label, Lazy, Part, Record, chain

TEXT_COLUMNS = ("text", "content", "sentence", "document", "prompt", "review", "article", "body")
PAIR_COLUMNS = (
    ("text", "text_pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("question", "sentence"),
)  # fmt: skip
IMAGE_COLUMNS = ("image", "img", "picture", "photo", "file_name", "image_path", "path")
LABEL_COLUMNS = ("label", "labels", "target", "fine_label", "class")


@dataclass(frozen=True)
class Table:
    """Columns of equal length. folder: where relative paths to images start."""

    name: str
    columns: dict[str, Sequence[Any]]
    size: int | None = None
    folder: Path = Path()

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @property
    def has(self) -> str:
        return f"columns: {', '.join(self.columns) or 'none'}"


def library(name: str) -> Any:
    """An optional library, loaded where first used. Raises DataError with the line that installs it."""
    try:
        return import_module(name)
    except ImportError as error:
        package = {"PIL": "pillow"}.get(name.split(".")[0], name.split(".")[0])
        raise DataError(
            f"this data needs {package}", found="it is not installed", hint=f"pip install {package}"
        ) from error


def short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# *** files ***


def read_text(path: Path) -> str:
    """The file as UTF-8. Raises DataError when it is empty or is not text."""
    _check_size(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name} is not UTF-8 text",
            found=f"byte 0x{error.object[error.start]:02x} at position {error.start:,}",
            hint=f"iconv -t UTF-8 {path.name}, or a file in another format: .txt, {', '.join(READERS)}",
        ) from error
    except OSError as error:
        raise DataError(f"{path.name} cannot be read", found=short(error)) from error


def read_tables(paths: Sequence[Path]) -> Table:
    """The files, which are shards of one table, one after the other."""
    tables = [READERS[path.suffix.lower()](path) for path in paths]
    first = tables[0]
    odd = next((table for table in tables if table.columns.keys() != first.columns.keys()), None)
    if odd:
        raise DataError(
            f"{first.name} and {odd.name} have different columns",
            found=f"{', '.join(first.columns)}; {', '.join(odd.columns)}",
            hint="one of the two files",
        )
    columns = {name: chain([table.columns[name] for table in tables]) for name in first.columns}
    return Table(shards_name(paths), columns, sum(path.stat().st_size for path in paths), paths[0].parent)


def shards_name(paths: Sequence[Path]) -> str:
    return paths[0].name + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def from_arrow(name: str, table: Any, size: int | None = None, folder: Path = Path()) -> Table:
    return Table(name, {key: _arrow_column(table.column(key)) for key in table.column_names}, size, folder)


def _arrow_column(column: Any) -> Lazy[Any]:
    return Lazy(len(column), lambda i: column[i].as_py())


def _parquet(path: Path) -> Table:
    """Row groups are read when one of their rows is asked for."""
    _check_size(path)
    parquet = library("pyarrow.parquet")

    def read(how: Callable[[Any], Any]) -> Any:
        try:
            with parquet.ParquetFile(path) as file:
                return how(file)
        except (OSError, ValueError) as error:  # pyarrow's own errors are both
            raise DataError(
                f"{path.name} is not a parquet file that can be read", found=short(error), hint="download it again"
            ) from error

    def column(name: str, groups: Sequence[int]) -> Sequence[Any]:
        @lru_cache(maxsize=1)
        def group(number: int) -> Any:
            return read(lambda file: file.read_row_group(number, columns=[name]).column(0))

        return chain([Lazy(n, lambda i, number=number: group(number)[i].as_py()) for number, n in enumerate(groups)])

    names, groups = read(
        lambda file: (
            file.schema_arrow.names,
            [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] or [0],
        )
    )
    return Table(path.name, {name: column(name, groups) for name in names}, path.stat().st_size, path.parent)


def _csv(path: Path) -> Table:
    csv = library("pyarrow.csv")
    raw = read_text(path).encode()
    try:
        table = csv.read_csv(
            io.BytesIO(raw),
            # One block: a long text may not straddle two.
            read_options=csv.ReadOptions(block_size=min(len(raw) + 1, 2**31 - 1)),
            parse_options=csv.ParseOptions(
                delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True
            ),
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path.name} is not a table that can be read", found=short(error), hint="a header line, then as many values"
        ) from error
    return from_arrow(path.name, table, path.stat().st_size, path.parent)


def _jsonl(path: Path) -> Table:
    lines = read_text(path).split("\n")  # JSON strings may hold what str.splitlines takes for line ends
    rows = [_object(path, i, json_line) for i, json_line in enumerate(lines, 1) if json_line.strip()]
    return _from_rows(path, rows)


def _object(path: Path, number: int, line: str) -> Record:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path.name}, line {number}, is not JSON",
            found=f"{error.msg} at column {error.colno}: {line.strip()[:60]!r}",
            hint="one whole JSON object on each line; the file may have been cut off",
        ) from error
    if isinstance(row, dict):
        return row
    raise DataError(f"{path.name}, line {number}, is not a JSON object", found=line.strip()[:60], hint='{"text": "..."}')


def _json(path: Path) -> Table:
    """A list of objects, an object that holds one such list, or JSON lines under this name."""
    text = read_text(path)
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        return _jsonl(path)
    if isinstance(whole, dict) and not all(isinstance(value, list) for value in whole.values()):
        return _jsonl(path)
    lists = list(whole.values()) if isinstance(whole, dict) else [whole]
    if len(lists) == 1 and isinstance(lists[0], list) and all(isinstance(row, dict) for row in lists[0]):
        return _from_rows(path, lists[0])
    raise DataError(
        f"{path.name} is not a list of JSON objects", found=text[:60].strip(), hint='[{"text": "..."}, ...]'
    )


def _from_rows(path: Path, rows: list[Record]) -> Table:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return Table(path.name, columns, path.stat().st_size, path.parent)


READERS: dict[str, Callable[[Path], Table]] = {
    ".parquet": _parquet, ".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json,
}  # fmt: skip


def _check_size(path: Path) -> None:
    if not path.stat().st_size:
        raise DataError(f"{path.name} is empty", found="0 bytes", hint="a file with records in it")


# *** columns ***


def table_part(table: Table, kind: str) -> Part:
    """The table's texts or images as records. Raises DataError when it has no such column or no rows."""
    if not len(table):
        raise DataError(f"{table.name} is empty", found=f"no rows; {table.has}", hint="a file with records in it")
    if kind == "image":
        return _image_part(table)
    if kind == "text":
        texts = _texts(table, _text_column(table), or_empty=True)
        return Part(table.name, [{"text": text} for text in texts], "documents", table.size)
    return _labelled_part(table)


def _labelled_part(table: Table) -> Part:
    pair = next((pair for pair in PAIR_COLUMNS if all(name in table.columns for name in pair)), None)
    names = dict(zip(("text", "text_pair"), pair or (_text_column(table),), strict=False))
    columns = {key: _texts(table, name) for key, name in names.items()}
    labels = _labels(table)
    keys = [*columns, "label"]
    values = zip(*columns.values(), labels or [None] * len(table), strict=True)
    items = [dict(zip(keys, row, strict=True)) for row in values]
    return Part(table.name, items, "texts", table.size, labels)


def _image_part(table: Table) -> Part:
    column, labels = table.columns[_image_column(table)], _labels(table)

    def record(i: int) -> Record:
        image = decode(column[i], f"the image in row {i + 1:,} of {table.name}", table.folder)
        return {"image": image, "label": labels[i] if labels else None}

    return Part(table.name, Lazy(len(table), record), "images", table.size, labels)


def _text_column(table: Table) -> str:
    named = _named(table, TEXT_COLUMNS)
    strings = [name for name in table.columns if name.lower() not in LABEL_COLUMNS and isinstance(_first(table, name), str)]
    if named or len(strings) == 1:
        return named or strings[0]
    raise DataError(
        f"{table.name} has no column that is clearly the text",
        found=table.has,
        hint=f"a column named {', '.join(TEXT_COLUMNS[:-1])} or {TEXT_COLUMNS[-1]}",
    )


def _image_column(table: Table) -> str:
    named = _named(table, IMAGE_COLUMNS)
    encoded = [name for name in table.columns if _encoded(_first(table, name))]
    if named or len(encoded) == 1:
        return named or encoded[0]
    raise DataError(f"{table.name} has no image column", found=table.has, hint="a column named image, with encoded images")


def _named(table: Table, names: Sequence[str]) -> str | None:
    known = {name.lower(): name for name in table.columns}
    return next((known[name] for name in names if name in known), None)


def _first(table: Table, name: str) -> Any:
    """The first value that is there, among the first rows."""
    return next((value for value in table.columns[name][:100] if value is not None), None)


def _encoded(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, dict) and "bytes" in value)


def _texts(table: Table, name: str, or_empty: bool = False) -> list[str]:
    """The column, every value a string. or_empty: whether a missing one is an empty text."""
    texts = ["" if value is None and or_empty else value for value in table.columns[name]]
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is None:
        return texts
    raise DataError(
        f"row {wrong + 1:,} of {table.name} has no text",
        found=f"{name} is {_type(texts[wrong])}",
        hint="a string in every row",
    )


def _labels(table: Table) -> list[Label] | None:
    """The labels, or None when there are none; a data set that hides them writes -1 in every row."""
    name = _named(table, LABEL_COLUMNS)
    if name is None:
        return None
    labels = [_label(value, i, table, name) for i, value in enumerate(table.columns[name])]
    return None if all(label in (None, -1) for label in labels) else labels


def _label(value: Any, i: int, table: Table, name: str) -> Label:
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and value == int(value):
        return int(value)
    raise DataError(
        f"row {i + 1:,} of {table.name} has a label that is not a class",
        found=f"{name} is {_type(value)}",
        hint="a class number or a class name in every row",
    )


def _type(value: Any) -> str:
    return "empty" if value is None else f"of type {type(value).__name__}"


# *** images ***


def decode(value: Any, name: str, folder: Path = Path()) -> Any:
    """A PIL image, upright, from a path, from encoded bytes, or from a dict of either. Raises DataError naming it."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, (bytes, str, Path)):
        raise DataError(f"{name} cannot be read", found=f"a value that is {_type(value)}", hint="encoded bytes or a path")
    image, ops = library("PIL.Image"), library("PIL.ImageOps")
    try:
        with image.open(io.BytesIO(value) if isinstance(value, bytes) else folder / value) as opened:
            return ops.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        raise DataError(f"{name} cannot be read", found=short(error), hint="replace it or leave it out") from error

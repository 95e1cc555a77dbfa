"""Data for calibration and scoring: local files, folders, and datasets of the Hugging Face hub."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from compressor.errors import DataError
from compressor.models.records import Part, Picture, Record, Records, Splits, short
from compressor.models.tables import READERS, Table, from_arrow, read_tables, read_text, table_part, text_part

__all__ = ["Kind", "Records", "Splits", "open_data"]

Kind = Literal["text", "labelled-text", "image"]
Role = Literal["train", "valid", "test"]

TEXT_FILES = (".txt", ".text", ".md", ".rst", ".raw", ".tokens")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "text": (*READERS, *TEXT_FILES), "labelled-text": tuple(READERS), "image": (*READERS, *PICTURES),
}  # fmt: skip
LOCAL_FORMS: dict[Kind, str] = {
    "text": "a file (.txt, .jsonl, .csv, .parquet) or a folder with train and test files",
    "labelled-text": "a .jsonl, .csv or .parquet file with text and labels, or a folder with train and test files",
    "image": "a folder with one sub-folder of images for each class, or .parquet files",
}

# In the order of preference for calibration; the last is preferred for scoring.
_ROLES: dict[Role, str] = {
    "train": "train|training|trainset",
    "valid": "valid|validation|val|dev|validset|devset",
    "test": "test|testing|eval|evaluation|testset|evalset",
}
_ABOUT = re.compile(r"(readme|licen[cs]es?|copying|notice|\.|_)", re.IGNORECASE)
_HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*(/[\w.-]+)?)(:(?P<config>[\w.-]+))?")


def open_data(where: str | Path, *, kind: Kind) -> Splits:
    """The data at `where`, in two parts that never overlap; their descriptions say how they were split.

    where: one of
        a file           text, JSON, JSON lines, CSV or parquet
        a folder         with files or sub-folders for training, validation and test; with files of one kind; or with
                         images, in a sub-folder for each class, or unlabelled and all together
        a saved dataset  a folder written by `datasets.save_to_disk`
        a hub id         `name` or `name:config`, as in `wikitext:wikitext-2-raw-v1`

    It calibrates on train, else on valid; it scores on test, else on valid when calibration did not use it. Where there
    is only one of them, or it alone has labels, the first 80 % calibrate and the last 20 % score: of the characters of
    text; of each class otherwise. Images and texts without labels (or with -1 in every row) calibrate only.

    Names: train, training; valid, validation, val, dev; test, eval, evaluation; then nothing, or what is no letter
    (train-00000-of-00002.parquet; several such files are one part). A name may come before (cifar10-train.parquet)
    when it is the same for all. READMEs, licences and hidden files are not data.

    Raises DataError when the data cannot be found, read, split, or scored on.
    """
    found = _found(where, kind)
    calibration, *others = [found[role] for role in _ROLES if role in found]
    held_out = [part for part in others if kind == "text" or part.is_labelled]
    if held_out:
        _check_labels(held_out[-1])
        return Splits(calibration.whole(), held_out[-1].whole())
    if kind != "text" and not calibration.is_labelled:
        return Splits(calibration.whole(), None)
    _check_labels(calibration)
    return Splits(*calibration.split())


def _check_labels(part: Part) -> None:
    missing = [i for i, record in enumerate(part.items) if part.is_labelled and record["label"] is None]
    if missing:
        raise DataError(
            f"row {missing[0] + 1:,} of {part.name} has no label to score against",
            found=f"{len(missing):,} of {len(part.items):,} rows without a label",
            hint="a label in every row, or a file without these rows",
        )


# *** finding ***


def _found(where: str | Path, kind: Kind) -> dict[Role, Part]:
    """The parts by role; what has no role stands as training data."""
    path = Path(where).expanduser().absolute()
    if path.is_file():
        return {"train": _files_part([path], path.name, kind)}
    if path.is_dir():
        return _in_folder(path, kind)
    named = _HUB_ID.fullmatch(str(where))
    if named is None or path.suffix.lower() in (*READERS, *TEXT_FILES, *PICTURES):
        raise DataError(f"no data at {where}", found="no such file or folder", hint=LOCAL_FORMS[kind])
    return _from_hub(named["name"], named["config"], kind)


def _in_folder(folder: Path, kind: Kind) -> dict[Role, Part]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved(folder, kind)
    entries = [path for path in sorted(folder.iterdir()) if _may_be_data(path, kind)]
    classes = [path for path in entries if kind == "image" and path.is_dir() and _pictures(path.iterdir())]
    # A class may be called train, when those beside it are classes as well.
    roles = {} if any(_role(path.name)[0] is None for path in classes) else _by_role(folder, entries)
    if roles:
        return {role: _role_part(folder, paths, kind) for role, paths in roles.items()}
    if len(entries) == 1 and entries[0].is_dir() and not classes:
        return _in_folder(entries[0], kind)
    return {"train": _folder_part(folder, kind)}


def _may_be_data(path: Path, kind: Kind) -> bool:
    return not _ABOUT.match(path.name) and (path.is_dir() or path.suffix.lower() in SUFFIXES[kind])


def _by_role(folder: Path, entries: Sequence[Path]) -> dict[Role, list[Path]]:
    named = [(path, *_role(path.name)) for path in entries]
    prefixes = {prefix for _, role, prefix in named if role}
    if len(prefixes) > 1 and "" not in prefixes:
        raise _ambiguous(folder, [path for path, role, _ in named if role])
    chosen = [(path, role) for path, role, prefix in named if prefix == min(prefixes, default="")]
    return {role: paths for role in _ROLES if (paths := [path for path, its in chosen if its == role])}


def _role(name: str) -> tuple[Role | None, str]:
    """(role, what comes before it in the name)."""
    for role, words in _ROLES.items():
        match = re.match(rf"(?P<prefix>.*[-_.])??({words})(?![a-z])", name.lower())
        if match:
            return role, match["prefix"] or ""
    return None, ""


def _role_part(folder: Path, paths: Sequence[Path], kind: Kind) -> Part:
    """One folder, or the shards of one file."""
    if len(paths) == 1 and paths[0].is_dir():
        return _folder_part(paths[0], kind)
    if any(path.is_dir() for path in paths) or len({path.suffix.lower() for path in paths}) > 1:
        raise _ambiguous(folder, paths)
    return _files_part(paths, f"{folder.name}/{paths[0].name}", kind)


def _folder_part(folder: Path, kind: Kind) -> Part:
    """Everything in a folder that is not divided further."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and _may_be_data(path, kind)]
    if kind == "image" and _pictures(folder.rglob("*")):
        return _pictures_part(folder, [path for path in files if path.suffix.lower() in READERS])
    if not files:
        raise _nothing(folder, kind)
    if len({path.suffix.lower() for path in files}) > 1:
        raise _ambiguous(folder, files)
    return _files_part(files, f"{folder.name}/{files[0].name}", kind)


def _nothing(folder: Path, kind: Kind) -> DataError:
    names = [path.name + "/" * path.is_dir() for path in sorted(folder.iterdir())]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return DataError(
        f"{folder.name} holds no {'images' if kind == 'image' else kind.replace('-', ' ')}",
        found=(", ".join(names[:10]) or "an empty folder") + more,
        hint=LOCAL_FORMS[kind],
    )


def _ambiguous(folder: Path, paths: Sequence[Path]) -> DataError:
    return DataError(
        f"{folder.name} does not say which data is meant",
        found=", ".join(path.name for path in paths[:10]),
        hint=f"one of them: {folder.name}/{paths[0].name}",
    )


# *** parts ***


def _files_part(paths: Sequence[Path], name: str, kind: Kind) -> Part:
    suffix = paths[0].suffix.lower()
    name += f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    if suffix in READERS:
        return table_part(read_tables(paths, name), kind)
    if kind == "text":
        return text_part(name, "\n\n".join(read_text(path) for path in paths))
    raise DataError(
        f"{name} holds no {'images' if kind == 'image' else 'labelled text'} that can be used",
        found=f"a {suffix or 'nameless'} file",
        hint=LOCAL_FORMS[kind],
    )


def _pictures(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in PICTURES and not path.name.startswith("."))


def _pictures_part(folder: Path, tables: Sequence[Path]) -> Part:
    """Images in class sub-folders, or all together and unlabelled."""
    loose, pictures = _pictures(folder.iterdir()), _pictures(folder.rglob("*"))
    if tables or (loose and len(loose) < len(pictures)):
        raise _ambiguous(folder, [*tables, *loose[:3], *(path for path in sorted(folder.iterdir()) if path.is_dir())])

    def record(path: Path) -> Record:
        within = path.relative_to(folder)
        return {
            "image": Picture(f"{folder.name}/{within.as_posix()}", path),
            "label": None if loose else within.parts[0],
        }

    return Part(folder.name, [record(path) for path in pictures], "images")


# *** datasets ***


def _saved(folder: Path, kind: Kind) -> dict[Role, Part]:
    try:
        loaded = _datasets().load_from_disk(str(folder))
    except Exception as error:
        raise DataError(
            f"{folder.name} is not a saved dataset that can be read", found=short(error), hint="save_to_disk again"
        ) from error
    return _dataset_parts(loaded, folder.name, kind)


def _from_hub(name: str, config: str | None, kind: Kind) -> dict[Role, Part]:
    """Downloads to the hub's own cache. Code that comes with a dataset is never run."""
    full = f"{name}:{config}" if config else name
    try:
        loaded = _datasets().load_dataset(name, config)
    except Exception as error:
        raise DataError(
            f"no data called {full}",
            found=f"no such file or folder, and the hub says: {short(error)}",
            hint=f"local data works too: {LOCAL_FORMS[kind]}",
        ) from error
    return _dataset_parts(loaded, full, kind)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "saved and hub datasets need the package datasets",
            found="it is not installed",
            hint="pip install 'compressor[datasets]'",
        ) from error
    return datasets


def _dataset_parts(loaded: Any, name: str, kind: Kind) -> dict[Role, Part]:
    """One dataset, or a dict of its splits, of which the first of each role is taken."""
    if not isinstance(loaded, dict):
        return {"train": _dataset_part(loaded, name, kind)}
    roles: dict[Role, str] = {}
    for split in loaded:
        role, _ = _role(split)
        if role or len(loaded) == 1:
            roles.setdefault(role or "train", split)
    if not roles:
        raise DataError(
            f"{name} has no train or test split",
            found=", ".join(loaded),
            hint="save_to_disk one of them, and give that",
        )
    return {role: _dataset_part(loaded[split], f"{name}, {split}", kind) for role, split in roles.items()}


def _dataset_part(dataset: Any, name: str, kind: Kind) -> Part:
    return table_part(Table(name, from_arrow(dataset.with_format("arrow")[:])), kind)

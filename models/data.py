"""Data for calibration and scoring: local files, folders, and datasets of the Hugging Face hub."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from compressor.errors import DataError
from compressor.models.records import Lazy, Part, Record, Records, Splits, paragraphs
from compressor.models.tables import (
    READERS, Table, decode, from_arrow, library, read_tables, read_text, shards_name, short, table_part,
)  # fmt: skip

__all__ = ["Kind", "Records", "Splits", "open_data"]

Kind = Literal["text", "labelled-text", "image"]
Role = Literal["train", "valid", "test"]
Found = dict[Role, Part]

TEXT_FILES = (".txt", ".text", ".md", ".rst", ".raw", ".tokens")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
ROLES: tuple[Role, ...] = ("train", "valid", "test")
LOCAL_FORMS = "a file (.txt, .jsonl, .csv, .parquet) or a folder with train and test files"

_WORDS: dict[Role, str] = {
    "train": "train|training|trainset",
    "valid": "valid|validation|val|dev|validset|devset",
    "test": "test|testing|eval|evaluation|testset|evalset",
}
_ABOUT = re.compile(r"(readme|licen[cs]es?|copying|notice|\.|_)", re.IGNORECASE)
_HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*(/[\w.-]+)?)(:(?P<config>[\w.-]+))?")


def open_data(where: str | Path, *, kind: Kind, evaluation: bool = True) -> Splits:
    """The data at `where`, in two parts that never overlap; their descriptions say how they were split.

    where: one of
        a file           text, JSON, JSON lines, CSV or parquet
        a folder         with files or sub-folders for training, validation and test; with one kind of data file;
                         or with images, either in one sub-folder for each class or, unlabelled, all together
        a saved dataset  a folder written by `datasets.save_to_disk`
        a hub id         `name` or `name:config`, as in `wikitext:wikitext-2-raw-v1`
    evaluation: False when nothing will be scored; all of the calibration data is then used.

    The rule: it calibrates on train, else on valid; it scores on test, else on valid when calibration did not use it.
    Where only one of them is there, or a file is given, the first 80 % calibrate and the last 20 % score: of the
    characters, at the end of a paragraph or document, for text; of the records otherwise; within each class when the
    records come class by class. A part without labels (or with -1 in every row) is not scored on.

    Names: train, training; valid, validation, val, dev; test, eval, evaluation; then nothing, or what is no letter
    (train-00000-of-00002.parquet; several such files are one part). A name may come before (cifar10-train.parquet)
    when it is the same for all. READMEs, licences and hidden files are not data.

    Raises DataError when the data cannot be found, read, split, or scored on.
    """
    found = _found(where, kind)
    parts = [found[role] for role in ROLES if role in found]
    calibration, *others = parts
    if not evaluation:
        splits = Splits(calibration.whole(), None)
    elif kind != "text" and not any(part.is_labelled for part in others or parts):
        splits = _unscored(calibration, others, kind)
    elif others:
        splits = Splits(calibration.whole(), _scored(others, kind))
    else:
        splits = Splits(*_checked_split(calibration, kind))
    return _with_text(splits) if kind == "text" else splits


# *** splits ***


def _unscored(calibration: Part, others: Sequence[Part], kind: Kind) -> Splits:
    """Unlabelled images calibrate. Raises DataError when labels were to be expected."""
    if kind == "image" and not calibration.is_labelled:
        return Splits(calibration.whole("unlabelled: for calibration only"), None)
    part = others[-1] if others else calibration
    raise DataError(
        f"{part.name} has no labels to score against",
        found=part.whole().description,
        hint=f"{calibration.name} alone, which is then split" if calibration.is_labelled else "a column named label",
    )


def _scored(others: Sequence[Part], kind: Kind) -> Records:
    """The last part with labels; those passed over are said."""
    if kind == "text":
        return others[-1].whole()
    chosen = next(part for part in reversed(others) if part.is_labelled)
    _check_labels(chosen)
    return chosen.whole(*(f"{part.name} has no labels" for part in others[others.index(chosen) + 1 :]))


def _checked_split(part: Part, kind: Kind) -> tuple[Records, Records]:
    if kind != "text":
        _check_labels(part)
    return part.split()


def _check_labels(part: Part) -> None:
    labels = part.labels or ()
    missing = next((i for i, label in enumerate(labels) if label is None), None)
    if missing is not None:
        n = sum(label is None for label in labels)
        raise DataError(
            f"row {missing + 1:,} of {part.name} has no label to score against",
            found=f"{n:,} of {len(labels):,} rows without a label",
            hint="a label in every row, or a file without these rows",
        )


def _with_text(splits: Splits) -> Splits:
    """Raises DataError when either side has nothing but white space."""
    for side, records in (("calibration", splits.calibration), ("evaluation", splits.evaluation)):
        if records is not None and not any(record["text"].strip() for record in records.items):
            raise DataError(f"{side} text is empty", found=records.description, hint="data with text in it")
    return splits


# *** finding ***


def _found(where: str | Path, kind: Kind) -> Found:
    path = Path(where).expanduser()
    if path.is_file():
        return {"train": _files_part([path], kind)}
    if path.is_dir():
        return _in_folder(path, kind)
    named = _HUB_ID.fullmatch(str(where))
    if named is None or path.suffix.lower() in (*READERS, *TEXT_FILES, *PICTURES):
        raise DataError(f"no data at {where}", found="no such file or folder", hint=LOCAL_FORMS)
    return _from_hub(named["name"], named["config"], kind)


def _in_folder(folder: Path, kind: Kind) -> Found:
    """Every part in the folder; one without a role stands as training data, to be split."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved(folder, kind)
    entries = _entries(folder, kind)
    if len(entries) == 1 and entries[0].is_dir() and not (kind == "image" and _pictures(entries[0].iterdir())):
        return _in_folder(entries[0], kind)
    roles = {} if _are_classes(entries, kind) else _by_role(folder, entries)
    if not roles:
        return {"train": _folder_part(folder, kind)}
    return {role: _role_part(folder, paths, kind) for role, paths in roles.items()}


def _entries(folder: Path, kind: Kind) -> list[Path]:
    """Sub-folders and files that may hold data of this kind, sorted by name."""
    kinds = {"text": (*READERS, *TEXT_FILES), "labelled-text": tuple(READERS), "image": (*READERS, *PICTURES)}[kind]
    return [
        path
        for path in sorted(folder.iterdir())
        if not _ABOUT.match(path.name) and (path.is_dir() or path.suffix.lower() in kinds)
    ]


def _are_classes(entries: Sequence[Path], kind: Kind) -> bool:
    """Whether a folder that is called train is a class, like those beside it."""
    full = [path for path in entries if path.is_dir() and kind == "image" and _pictures(path.iterdir())]
    roles = {_role(path)[0] for path in full}
    return None in roles and len(roles) == 2


def _by_role(folder: Path, entries: Sequence[Path]) -> dict[Role, list[Path]]:
    named = [(path, *_role(path)) for path in entries]
    prefixes = sorted({prefix for _, role, prefix in named if role})
    if len(prefixes) > 1 and "" not in prefixes:
        raise _ambiguous(folder, [path for path, role, _ in named if role])
    chosen = [(path, role) for path, role, prefix in named if role and prefix == prefixes[0]]
    return {role: paths for role in ROLES if (paths := [path for path, its in chosen if its == role])}


def _role(path: Path) -> tuple[Role | None, str]:
    """(role, what comes before it in the name)."""
    stem = path.name.lower() if path.is_dir() else path.stem.lower()
    for role, words in _WORDS.items():
        match = re.match(rf"(?P<prefix>.*[-_.])??({words})(?![a-z])", stem)
        if match:
            return role, match["prefix"] or ""
    return None, ""


def _role_part(folder: Path, paths: Sequence[Path], kind: Kind) -> Part:
    if len({path.suffix.lower() if path.is_file() else "/" for path in paths}) > 1:
        raise _ambiguous(folder, paths)
    if paths[0].is_file():
        return _files_part(paths, kind)
    if len(paths) > 1:
        raise _ambiguous(folder, paths)
    return _folder_part(paths[0], kind)


def _folder_part(folder: Path, kind: Kind) -> Part:
    """Everything in a folder that is not divided further."""
    entries = _entries(folder, kind)
    described = [path for path in entries if path.stem.lower() == "metadata" and path.suffix.lower() in READERS]
    files = described or [path for path in entries if path.is_file()]
    if kind == "image" and not described and _pictures(folder.rglob("*")):
        return _pictures_part(folder, [path for path in files if path.suffix.lower() in READERS])
    if not files:
        raise _nothing(folder, kind)
    if len({path.suffix.lower() for path in files}) > 1:
        raise _ambiguous(folder, files)
    return _files_part(files, kind)


def _nothing(folder: Path, kind: Kind) -> DataError:
    names = [path.name + "/" * path.is_dir() for path in sorted(folder.iterdir())]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return DataError(
        f"{folder.name} holds no {'images' if kind == 'image' else kind.replace('-', ' ')}",
        found=(", ".join(names[:10]) or "nothing") + more,
        hint="class sub-folders with images, or parquet files" if kind == "image" else LOCAL_FORMS,
    )


def _ambiguous(folder: Path, paths: Sequence[Path]) -> DataError:
    return DataError(
        f"{folder.name} does not say which data is meant",
        found=", ".join(path.name for path in paths[:10]),
        hint=f"one of them: {paths[0]}",
    )


# *** parts ***


def _files_part(paths: Sequence[Path], kind: Kind) -> Part:
    suffix = paths[0].suffix.lower()
    if suffix in READERS:
        return table_part(read_tables(paths), kind)
    if kind == "text":
        return _text_part(paths)
    raise DataError(
        f"{paths[0].name} holds no {'images' if kind == 'image' else 'labelled text'}",
        found=f"a {suffix or 'nameless'} file",
        hint=f"{', '.join(READERS)}" + (", or a folder of images" if kind == "image" else ""),
    )


def _text_part(paths: Sequence[Path]) -> Part:
    text = "\n\n".join(read_text(path) for path in paths)
    if not text.strip():
        raise DataError("calibration text is empty", found=f"only white space in {shards_name(paths)}", hint="a file with text")
    pieces, unit = paragraphs(text)
    size = sum(path.stat().st_size for path in paths)
    return Part(shards_name(paths), [{"text": piece} for piece in pieces], unit, size, joint="")


def _pictures(paths: Any) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in PICTURES and not path.name.startswith("."))


def _pictures_part(folder: Path, tables: Sequence[Path]) -> Part:
    """Images in class sub-folders, or all together and unlabelled."""
    loose, pictures = _pictures(folder.iterdir()), _pictures(folder.rglob("*"))
    if tables or (loose and len(loose) < len(pictures)):
        raise _ambiguous(folder, [*loose[:2], *tables[:2], *(path for path in _entries(folder, "image") if path.is_dir())])
    labels = None if loose else [path.relative_to(folder).parts[0] for path in pictures]

    def record(i: int) -> Record:
        name = str(pictures[i].relative_to(folder.parent))
        return {"image": decode(pictures[i], name), "label": labels[i] if labels else None}

    others = sum(path.is_file() and not path.name.startswith(".") for path in folder.rglob("*")) - len(pictures)
    notes = (f"{others:,} other files left out",) if others else ()
    return Part(folder.name, Lazy(len(pictures), record), "images", labels=labels, notes=notes)


# *** datasets ***


def _saved(folder: Path, kind: Kind) -> Found:
    datasets = library("datasets")
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(
            f"{folder.name} is not a saved dataset that can be read", found=short(error), hint="save_to_disk again"
        ) from error
    return _dataset_parts(loaded, folder.name, kind)


def _from_hub(name: str, config: str | None, kind: Kind) -> Found:
    """Downloads to the hub's own cache. Code that comes with a dataset is never run."""
    datasets = library("datasets")
    try:
        loaded = datasets.load_dataset(name, config)
    except Exception as error:
        raise DataError(
            f"no data called {name}{':' + config if config else ''}",
            found=f"no such file or folder, and the hub says: {short(error)}",
            hint=f"local data works too: {LOCAL_FORMS}",
        ) from error
    return _dataset_parts(loaded, f"{name}{':' + config if config else ''}", kind)


def _dataset_parts(loaded: Any, name: str, kind: Kind) -> Found:
    if not hasattr(loaded, "items"):
        return {"train": table_part(_dataset_table(loaded, name), kind)}
    roles = _by_role(Path(name), [Path(f"{split}.arrow") for split in loaded])
    if not roles and len(loaded) == 1:
        return {"train": table_part(_dataset_table(next(iter(loaded.values())), name), kind)}
    if not roles:
        raise DataError(f"{name} has no train or test split", found=", ".join(loaded), hint="save one of them and give that")
    raise NotImplementedError


def _dataset_table(dataset: Any, name: str) -> Table:
    return from_arrow(name, dataset.with_format("arrow")[:])

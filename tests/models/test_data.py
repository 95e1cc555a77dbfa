"""Data in every form that is read, and every form that is refused."""

import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from compressor.errors import DataError
from compressor.models.data import Kind, Splits, open_data
from compressor.models.records import Part
from tests.models.architectures import words

PROSE = words(400)


def png(color: tuple[int, int, int] = (255, 0, 0), size: int = 4) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), color).save(stream, format="PNG")
    return stream.getvalue()


def table(file: Path, **columns: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), file)
    return file


def text(file: Path, content: str = PROSE) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
    return file


def pictures(folder: Path, n: int = 5) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (folder / f"{i}.png").write_bytes(png((i, 0, 0)))
    return folder


def refusal(where: Path | str, kind: Kind = "text") -> DataError:
    with pytest.raises(DataError) as caught:
        open_data(where, kind=kind)
    assert caught.value.found, "an error says what was found"
    assert caught.value.hint, "an error says what to type"
    return caught.value


def sides(splits: Splits) -> tuple[list, list]:
    """What the records of each side hold, images as their bytes."""
    assert splits.evaluation is not None
    calibration, evaluation = (
        [tuple(x.open().tobytes() if hasattr(x, "open") else x for x in record.values()) for record in records.items]
        for records in (splits.calibration, splits.evaluation)
    )
    return calibration, evaluation


# *** text ***


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("notes.txt", text),
        ("notes.md", text),
        ("notes.jsonl", lambda file: text(file, "\n".join(json.dumps({"text": line}) for line in PROSE.split("\n")))),
        ("notes.json", lambda file: text(file, json.dumps([{"id": 1, "content": line} for line in PROSE.split("\n")]))),
        ("notes.csv", lambda file: text(file, "id,text\n" + "\n".join(f'7,"{line}"' for line in PROSE.split("\n")))),
        ("notes.tsv", lambda file: text(file, "id\ttext\n" + "\n".join(f"7\t{line}" for line in PROSE.split("\n")))),
        ("notes.parquet", lambda file: table(file, text=PROSE.split("\n"))),
    ],
)
def test_text_is_read_from_every_kind_of_file(tmp_path, name, write):
    write(tmp_path / name)
    splits = open_data(tmp_path / name, kind="text")
    [[calibration]], [[evaluation]] = sides(splits)
    assert (calibration + evaluation).split() == PROSE.split()
    assert 0.75 < len(calibration) / len(PROSE) < 0.82
    assert splits.calibration.description.startswith(f"the first 80 % of {name} (")
    assert splits.evaluation.description.startswith(f"the last 20 % of {name} (")


def test_one_object_that_holds_a_list_is_json_too(tmp_path):
    rows = [{"text": line} for line in PROSE.split("\n")]
    text(tmp_path / "a.json", json.dumps({"version": 1, "data": rows}, indent=1))
    [[calibration]], _ = sides(open_data(tmp_path / "a.json", kind="text"))
    assert calibration.startswith("\n\n".join(PROSE.split("\n")[:3]))


def test_a_line_of_json_may_hold_what_other_files_take_for_its_end(tmp_path):
    text(tmp_path / "a.jsonl", '{"text": "one\u2028two"}\n{"text": "three"}')
    assert "one\u2028" in open_data(tmp_path / "a.jsonl", kind="text").calibration.items[0]["text"]


def test_a_text_is_cut_at_the_end_of_a_paragraph_where_there_is_one(tmp_path):
    text(tmp_path / "a.txt", "\n\n".join([PROSE[:600], PROSE[600:1000], PROSE[1000:1400]]))
    [[calibration]], _ = sides(open_data(tmp_path / "a.txt", kind="text"))
    assert calibration == f"{PROSE[:600]}\n\n{PROSE[600:1000]}\n\n"


@given(st.text(alphabet="ab \n", min_size=1, max_size=60))
def test_the_two_sides_of_a_text_are_the_text(content):
    with suppress(DataError):  # too small
        first, last = (half.items[0]["text"] for half in Part("a", [{"text": content}], "characters").split())
        assert first + last == content
        assert first.strip()
        assert last.strip()


@pytest.mark.parametrize(
    ("names", "calibration", "evaluation"),
    [
        (("train.txt", "valid.txt", "test.txt"), "train.txt", "test.txt"),
        (("train.txt", "valid.txt"), "train.txt", "valid.txt"),
        (("valid.txt", "test.txt"), "valid.txt", "test.txt"),
        (("train.txt", "dev.txt", "README.md", "LICENSE.txt", ".hidden.txt"), "train.txt", "dev.txt"),
        (("wiki-train-00000-of-00001.txt", "wiki-eval.txt"), "wiki-train-00000-of-00001.txt", "wiki-eval.txt"),
        (("training/a.txt", "validation/b.txt"), "training/a.txt", "validation/b.txt"),
        (("data/train.txt", "data/test.txt"), "data/train.txt", "data/test.txt"),
    ],
)
def test_a_folder_calibrates_on_train_else_valid_and_scores_on_test_else_valid(
    tmp_path, names, calibration, evaluation
):
    for i, name in enumerate(names):
        text(tmp_path / "wiki" / name, f"{i} {name}")
    splits = open_data(tmp_path / "wiki", kind="text")
    assert [[calibration]] == [[x.split()[1]] for (x,) in sides(splits)[0]]
    assert [[evaluation]] == [[x.split()[1]] for (x,) in sides(splits)[1]]
    assert splits.evaluation.description.startswith(f"{Path('wiki', evaluation).parent.name}/{Path(evaluation).name} (")


def test_shards_of_one_file_are_one_part(tmp_path):
    for i in range(3):
        table(tmp_path / f"train-{i}-of-3.parquet", text=[f"a{i}"])
    table(tmp_path / "test.parquet", text=["b"])
    splits = open_data(tmp_path, kind="text")
    assert sides(splits) == ([("a0\n\na1\n\na2",)], [("b",)])
    assert "and 2 more" in splits.calibration.description


def test_files_of_one_kind_without_roles_are_split_together(tmp_path):
    text(tmp_path / "one.txt", PROSE[:1000])
    text(tmp_path / "two.txt", PROSE[1000:])
    assert "one.txt and 1 more" in open_data(tmp_path, kind="text").calibration.description


def test_the_home_folder_and_a_trailing_slash_are_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text(tmp_path / "wiki" / "train.txt")
    assert "of wiki/train.txt" in open_data("~/wiki/", kind="text").calibration.description


# *** labelled text ***


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("labels", [[0, 1, 2], ["no", "yes", "maybe"]])
def test_labelled_text_is_split_within_each_class(tmp_path, suffix, labels):
    rows = [(f"text {i}", labels[i // 10]) for i in range(30)]  # class by class
    file = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        text(file, "sentence,label\n" + "\n".join(f"{x},{y}" for x, y in rows))
    elif suffix == "jsonl":
        text(file, "\n".join(json.dumps({"sentence": x, "label": y}) for x, y in rows))
    else:
        table(file, sentence=[x for x, _ in rows], label=[y for _, y in rows])
    splits = open_data(file, kind="labelled-text")
    calibration, evaluation = sides(splits)
    assert sorted(calibration + evaluation) == sorted(rows)
    assert [sum(label == y for _, y in evaluation) for label in labels] == [2, 2, 2]
    assert "the last 20 % of each class" in splits.evaluation.description


def test_pairs_of_texts_are_found_by_their_names(tmp_path):
    table(tmp_path / "a.parquet", premise=["a", "b"] * 5, hypothesis=["c", "d"] * 5, label=[0, 1] * 5)
    record = open_data(tmp_path / "a.parquet", kind="labelled-text").calibration.items[1]
    assert record == {"text": "b", "text_pair": "d", "label": 1}


def test_a_test_file_that_hides_its_labels_is_passed_over(tmp_path):
    for name, label in (("train", [0, 1]), ("valid", [1, 0]), ("test", [-1, -1])):
        table(tmp_path / f"{name}.parquet", text=[name] * 6, label=label * 3)
    splits = open_data(tmp_path, kind="labelled-text")
    assert "valid.parquet" in splits.evaluation.description
    (tmp_path / "valid.parquet").unlink()
    assert "the last 20 % of each class" in open_data(tmp_path, kind="labelled-text").evaluation.description


def test_text_without_labels_calibrates_only(tmp_path):
    table(tmp_path / "a.parquet", text=["a", "b", "c"])
    splits = open_data(tmp_path / "a.parquet", kind="labelled-text")
    assert splits.evaluation is None
    assert splits.calibration.description == "a.parquet (3 texts)"


def test_a_row_without_its_label_is_refused_by_number(tmp_path):
    table(tmp_path / "a.parquet", text=["a", "b", "c"], label=[0, None, 1])
    error = refusal(tmp_path / "a.parquet", "labelled-text")
    assert error.what.startswith("row 2 of a.parquet has no label")
    assert error.found == "1 of 3 rows without a label"


def test_a_label_that_is_no_class_is_refused(tmp_path):
    table(tmp_path / "a.parquet", text=["a", "b"], label=[0.0, 0.5])
    assert "row 2 of a.parquet has a label that is not a class" in refusal(tmp_path / "a.parquet", "labelled-text").what


# *** images ***


def test_images_in_class_folders_are_split_within_each_class(tmp_path):
    for name in ("cat", "dog"):
        pictures(tmp_path / name)
    splits = open_data(tmp_path, kind="image")
    calibration, evaluation = sides(splits)
    assert [label for _, label in evaluation] == ["cat", "dog"]
    assert len(calibration) == 8
    assert splits.calibration.description == f"the first 80 % of each class of {tmp_path.name} (8 of 10 images)"


def test_image_folders_for_training_and_testing_are_told_from_classes(tmp_path):
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        pictures(tmp_path / name, 2)
    calibration, evaluation = sides(open_data(tmp_path, kind="image"))
    assert [label for _, label in calibration] == [label for _, label in evaluation] == ["cat"] * 2 + ["dog"] * 2


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "car"):
        pictures(tmp_path / name)
    assert {label for _, label in sides(open_data(tmp_path, kind="image"))[1]} == {"train", "car"}


def test_unlabelled_images_calibrate_only(tmp_path):
    splits = open_data(pictures(tmp_path / "loose"), kind="image")
    assert splits.evaluation is None
    assert splits.calibration.items[3]["image"].open().getpixel((0, 0)) == (3, 0, 0)


@pytest.mark.parametrize("nested", [False, True])
def test_encoded_images_in_a_table_stay_in_the_file_until_asked_for(tmp_path, nested):
    images = [png((i, 0, 0)) for i in range(10)]
    column = [{"bytes": x, "path": None} for x in images] if nested else images
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"img": column, "label": [0, 1] * 5}), file, row_group_size=3)
    splits = open_data(file, kind="image")
    assert [x.open().getpixel((0, 0))[0] for x in (r["image"] for r in splits.calibration.items)] == list(range(8))
    file.write_bytes(b"gone")
    with pytest.raises(DataError, match=r"a\.parquet is not a \.parquet file that can be read"):
        splits.calibration.items[0]["image"].open()


def test_paths_in_a_table_start_where_the_table_lies(tmp_path):
    pictures(tmp_path / "images")
    text(tmp_path / "list.csv", "file_name,label\n" + "\n".join(f"images/{i}.png,{i % 2}" for i in range(4)))
    calibration, _ = sides(open_data(tmp_path / "list.csv", kind="image"))
    assert [label for _, label in calibration] == [0, 1]


def test_a_picture_is_turned_upright(tmp_path):
    image, exif = Image.new("RGB", (4, 2)), Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    assert open_data(tmp_path, kind="image").calibration.items[0]["image"].open().size == (2, 4)


@pytest.mark.parametrize("content", [b"", b"not an image", png()[:40], png(size=64)[:-30]])
def test_a_corrupt_image_is_refused_by_name(tmp_path, content):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(content)
    record = open_data(tmp_path / "cat", kind="image").calibration.items[0]
    with pytest.raises(DataError, match=r"cat/0\.png cannot be read") as caught:
        record["image"].open()
    assert caught.value.found


def test_a_row_without_an_image_is_refused_by_number(tmp_path):
    record = open_data(table(tmp_path / "a.parquet", image=[png(), None]), kind="image").calibration.items[1]
    with pytest.raises(DataError, match=r"the image in row 2 of a\.parquet cannot be read\n  found: nothing"):
        record["image"].open()


# *** datasets ***


def test_a_saved_dataset_is_read(tmp_path):
    import datasets

    lines = PROSE.split("\n")
    datasets.Dataset.from_dict({"text": lines}).save_to_disk(tmp_path / "one")
    assert open_data(tmp_path / "one", kind="text").calibration.description.startswith("the first 80 % of one (")
    both = {"train": lines[:30], "validation_matched": lines[30:], "unsupervised": ["x"]}
    datasets.DatasetDict({k: datasets.Dataset.from_dict({"text": v}) for k, v in both.items()}).save_to_disk(
        tmp_path / "two"
    )
    splits = open_data(tmp_path / "two", kind="text")
    assert [r.description.split(" (")[0] for r in (splits.calibration, splits.evaluation)] == [
        "two, train",
        "two, validation_matched",
    ]


def test_a_saved_dataset_of_images_is_read_with_its_selection_of_rows(tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": png((i, 0, 0)), "path": None} for i in range(20)], "label": [0, 1] * 10}
    datasets.Dataset.from_dict(rows, features=features).select([*range(10, 20)]).save_to_disk(tmp_path / "d")
    calibration = open_data(tmp_path / "d", kind="image").calibration
    assert calibration.items[0]["image"].open().getpixel((0, 0)) == (10, 0, 0)
    assert calibration.items[1]["label"] == 1


def test_a_saved_dataset_with_parts_of_no_known_role_is_refused(tmp_path):
    import datasets

    part = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict({"one": part, "two": part}).save_to_disk(tmp_path / "d")
    error = refusal(tmp_path / "d")
    assert error.what == "d has no train or test split"
    assert error.found == "one, two"


def test_a_broken_saved_dataset_is_refused(tmp_path):
    text(tmp_path / "d" / "state.json", "{")
    assert "d is not a saved dataset that can be read" in refusal(tmp_path / "d").what


def test_a_hub_dataset_that_cannot_be_reached_is_refused_with_what_works_without_it():
    error = refusal("wikitext:wikitext-2-raw-v1")
    assert error.what == "no data called wikitext:wikitext-2-raw-v1"
    assert "the hub says" in error.found
    assert "train and test files" in error.hint


# *** refusals ***


@pytest.mark.parametrize("where", ["nowhere.txt", "./nowhere", "/no/such/folder", "a/b/c", "notes.parquet"])
def test_what_can_be_no_hub_id_is_not_asked_of_the_hub(where):
    assert refusal(where).what == f"no data at {where}"


@pytest.mark.parametrize("content", ["", " \n\t\n"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv"])
def test_an_empty_file_is_refused(tmp_path, name, content):
    assert refusal(text(tmp_path / name, content)).what == f"{name} is empty"


def test_a_table_without_rows_or_text_is_refused(tmp_path):
    assert "is empty" in refusal(text(tmp_path / "a.csv", "text,label\n")).what
    assert "is empty" in refusal(table(tmp_path / "a.parquet", text=["", "  ", None])).what


def test_a_text_of_one_word_is_too_small_to_split(tmp_path):
    assert "too small to both calibrate and score on" in refusal(text(tmp_path / "a.txt", "   word")).what


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.json"])
def test_what_is_not_utf_8_is_refused_with_the_byte(tmp_path, name):
    (tmp_path / name).write_bytes("text\nnaïve".encode("latin-1"))
    error = refusal(tmp_path / name)
    assert error.what == f"{name} is not UTF-8 text"
    assert error.found == "byte 0xef at position 7"


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(PROSE.encode("utf-8-sig"))
    assert open_data(tmp_path / "a.txt", kind="text").calibration.items[0]["text"].startswith("w")


@pytest.mark.parametrize("keep", [0, 3, 40, -10])
def test_a_corrupt_parquet_file_is_refused(tmp_path, keep):
    file = table(tmp_path / "a.parquet", text=["word"] * 100)
    file.write_bytes(file.read_bytes()[:keep])
    assert refusal(file).what == "a.parquet is not a .parquet file that can be read"


def test_a_ragged_table_is_refused(tmp_path):
    error = refusal(text(tmp_path / "a.csv", "text,label\na,1\nb,2,3\n"))
    assert "a.csv is not a .csv file that can be read" in error.what
    assert "Expected 2 columns, got 3" in error.found


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('{"text": "a"}\n{"text": ', "a.jsonl, line 2, is not JSON"),
        ('{"text": "a"}\n\n[1]', "a.jsonl, line 3, is not a JSON object"),
    ],
)
def test_a_broken_line_of_json_is_refused_by_number(tmp_path, content, what):
    assert refusal(text(tmp_path / "a.jsonl", content)).what == what


@pytest.mark.parametrize("content", ["[1, 2]", '"text"', '{"a": [1], "b": [2]}', "7"])
def test_json_that_is_no_list_of_objects_is_refused(tmp_path, content):
    assert refusal(text(tmp_path / "a.json", content)).what == "a.json is not a list of JSON objects"


def test_columns_that_do_not_say_which_is_the_text_are_refused_with_their_names(tmp_path):
    error = refusal(table(tmp_path / "a.parquet", first=["a"], second=["b"]))
    assert error.found == "columns: first, second"
    assert "a column named text" in error.hint
    assert "no column that is clearly the image" in refusal(tmp_path / "a.parquet", "image").what


def test_a_row_that_holds_no_text_is_refused_by_number(tmp_path):
    file = text(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": 7}')
    error = refusal(file)
    assert error.what == "row 2 of a.jsonl has no text"
    assert error.found == "a int in text"


@pytest.mark.parametrize("kind", ["labelled-text", "image"])
def test_plain_text_serves_no_task_with_labels(tmp_path, kind):
    assert "that can be used" in refusal(text(tmp_path / "a.txt"), kind).what


@pytest.mark.parametrize(
    "names",
    [
        ("a.txt", "b.jsonl"),
        ("train.txt", "train.jsonl", "test.txt"),
        ("one-train.txt", "one-test.txt", "two-train.txt", "two-test.txt"),
    ],
)
def test_a_folder_that_could_mean_two_things_is_refused_with_the_files(tmp_path, names):
    for name in names:
        text(tmp_path / name, '{"text": "a"}')
    error = refusal(tmp_path)
    assert "does not say which data is meant" in error.what
    assert names[0] in error.found


def test_images_both_loose_and_in_folders_are_refused(tmp_path):
    pictures(tmp_path / "d")
    pictures(tmp_path / "d" / "cat")
    assert "does not say which data is meant" in refusal(tmp_path / "d", "image").what


@pytest.mark.parametrize(("kind", "what"), [("text", "holds no text"), ("image", "holds no images")])
def test_a_folder_with_nothing_to_read_is_refused_with_what_it_holds(tmp_path, kind, what):
    assert refusal(tmp_path, kind).found == "an empty folder"
    (tmp_path / "model.bin").touch()
    error = refusal(tmp_path, kind)
    assert what in error.what
    assert error.found == "model.bin"


def test_shards_of_different_columns_are_refused(tmp_path):
    table(tmp_path / "train-0.parquet", text=["a"])
    table(tmp_path / "train-1.parquet", content=["a"])
    assert refusal(tmp_path).what == "train-0.parquet and train-1.parquet have different columns"

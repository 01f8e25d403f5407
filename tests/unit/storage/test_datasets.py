import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from app.errors import DatasetNotFound, InvalidInput, TooLarge, Unparseable, UnsupportedMedia
from app.storage.database import Database
from app.storage.datasets import DatasetStore, read_facts, table_path
from app.storage.tables import frame_from_inputs, frame_from_records, read_table

PENGUINS = Path(__file__).parents[3] / "examples" / "penguins.csv"
CSV = b"a,b\n1,x\n2,y\n"
LONG_AGO = time.time() - 3600


def tables(store: DatasetStore) -> set[str]:
    return {folder.name for folder in store.root.iterdir() if not folder.name.startswith(".")}


def nothing_left_over(store: DatasetStore) -> bool:
    return list((store.root / ".uploads").iterdir()) == []


def age(store: DatasetStore, digest: str) -> None:
    os.utime(store.path(digest).parent, (LONG_AGO, LONG_AGO))


def test_a_dataset_is_stored_and_described(store: DatasetStore) -> None:
    content = PENGUINS.read_bytes()
    dataset, created = store.put(
        "penguins", (content[at : at + 1000] for at in range(0, len(content), 1000)), "text/csv"
    )
    assert created
    assert (dataset.num_rows, dataset.num_bytes) == (344, len(content))
    assert store.get("penguins") == dataset
    assert store.table(dataset.digest).columns == dataset.columns == read_facts(store.root, dataset.digest).columns
    assert store.path(dataset.digest) == table_path(store.root, dataset.digest)
    assert read_table(store.path(dataset.digest), ["species"]).height == 344
    assert store.rows("penguins", 1) == [
        {
            "species": "Adelie",
            "island": "Torgersen",
            "bill_length_mm": 39.1,
            "bill_depth_mm": 18.7,
            "flipper_length_mm": 181,
            "body_mass_g": 3750,
            "sex": "male",
            "year": 2007,
        }
    ]
    assert nothing_left_over(store)


def test_replacing_keeps_the_old_table(store: DatasetStore) -> None:
    old, _ = store.put("t", [CSV])
    new, created = store.put("t", [CSV + b"3,z\n"])
    assert not created
    assert store.get("t").num_rows == 3
    assert store.table(old.digest).num_rows == 2
    assert tables(store) == {old.digest.removeprefix("sha256:"), new.digest.removeprefix("sha256:")}


def test_the_same_bytes_are_stored_once(store: DatasetStore) -> None:
    first, _ = store.put("t", [CSV])
    inode = store.path(first.digest).stat().st_ino
    second, created = store.put("u", [CSV])
    assert created
    assert second.digest == first.digest
    assert store.path(second.digest).stat().st_ino == inode


def test_what_cannot_be_read_leaves_the_dataset_and_no_file(store: DatasetStore) -> None:
    dataset, _ = store.put("t", [CSV])
    for content, content_type, error in [
        (b"a,b\n1\n", "", Unparseable),
        (b"a,a\n1,2\n", "", InvalidInput),
        (CSV, "application/vnd.apache.parquet", Unparseable),
        (CSV, "image/png", UnsupportedMedia),
        (b"PAR1" + bytes(100) + b"PAR1", "", Unparseable),
    ]:
        with pytest.raises(error):
            store.put("t", [content + b""], content_type)
    assert store.get("t") == dataset
    assert len(tables(store)) == 1
    assert nothing_left_over(store)


def test_a_body_that_is_too_large_is_cut_off_while_it_arrives(tmp_path: Path, database: Database) -> None:
    store = DatasetStore(tmp_path / "small", database, max_bytes=1000, max_columns=10)
    taken = []

    def endless() -> "list[bytes]":
        taken.append(1)
        assert len(taken) < 20
        return [b"x" * 100]

    with pytest.raises(TooLarge, match="larger than 1000 bytes"):
        store.put("t", (chunk for _ in iter(int, 1) for chunk in endless()))
    assert len(taken) == 11
    assert nothing_left_over(store)


def test_names_are_paged(store: DatasetStore) -> None:
    for name in ("c", "a", "b"):
        store.put(name, [CSV])
    first, cursor = store.list(2)
    assert ([dataset.name for dataset in first], cursor) == (["a", "b"], "b")
    second, cursor = store.list(2, cursor)
    assert ([dataset.name for dataset in second], cursor) == (["c"], None)
    assert store.list(3)[1] is None


def test_a_deleted_dataset_is_gone_and_its_bytes_are_not(store: DatasetStore) -> None:
    dataset, _ = store.put("t", [CSV])
    store.delete("t")
    assert store.path(dataset.digest).is_file()
    for call in (store.get, store.delete, lambda name: store.rows(name, 1)):
        with pytest.raises(DatasetNotFound, match="'t'"):
            call("t")


def test_a_misspelt_dataset_is_told_the_nearest_that_is_there(store: DatasetStore) -> None:
    store.put("penguins", [CSV])
    with pytest.raises(DatasetNotFound, match=r"^there is no dataset 'Penguin'; did you mean 'penguins'[?]$"):
        store.get("Penguin")
    with pytest.raises(DatasetNotFound, match=r"^there is no dataset 'cars'; PUT /datasets/cars makes one$"):
        store.get("cars")


# ---- tables without names


def test_inline_tables_are_stored_by_their_content(store: DatasetStore) -> None:
    frame = frame_from_inputs([[1.0], [2.0]], [10, 20])
    table = store.add_table(frame)
    assert store.add_table(frame) == table == store.table(table.digest)
    assert [column.name for column in table.columns] == ["x0", "y"]
    assert pl.read_parquet(store.path(table.digest)).equals(frame)
    assert store.add_table(frame.with_columns(y=pl.Series([10, 21]))).digest != table.digest
    assert nothing_left_over(store)


def test_inline_tables_are_typed_like_others(store: DatasetStore) -> None:
    table = store.add_table(frame_from_records([{"when": "2020-01-02", "code": "1"}, {"when": None, "code": "2"}]))
    assert [column.kind for column in table.columns] == ["datetime", "categorical"]


def test_inline_tables_are_as_wide_as_allowed(store: DatasetStore) -> None:
    with pytest.raises(TooLarge, match="101 columns"):
        store.add_table(pl.DataFrame({f"x{place}": [1] for place in range(101)}))


def test_a_digest_of_nothing(store: DatasetStore) -> None:
    with pytest.raises(DatasetNotFound, match="no stored table"):
        store.table(f"sha256:{'0' * 64}")


# ---- removal


def test_sweep_removes_what_nobody_needs(store: DatasetStore) -> None:
    named, _ = store.put("named", [CSV])
    used, unused, recent, asked = (store.add_table(pl.DataFrame({"x": [number]})).digest for number in range(4))
    for digest in (named.digest, used, unused, asked):
        age(store, digest)
    assert store.table(asked).num_rows == 1
    store.sweep({used}, time.time() - 60)
    assert tables(store) == {digest.removeprefix("sha256:") for digest in (named.digest, used, recent, asked)}
    store.delete("named")
    store.sweep(set(), time.time() - 60)
    assert tables(store) == {digest.removeprefix("sha256:") for digest in (recent, asked)}
    assert nothing_left_over(store)


def test_sweep_removes_what_a_crash_left_and_nothing_that_still_grows(store: DatasetStore) -> None:
    store.put("t", [CSV])
    crashed, growing = store.root / ".uploads" / "crashed", store.root / ".uploads" / "growing"
    for folder in (crashed, growing):
        folder.mkdir()
        (folder / "body").write_bytes(b"x")
        os.utime(folder / "body", (LONG_AGO, LONG_AGO))
        os.utime(folder, (LONG_AGO, LONG_AGO))
    os.utime(growing / "body")
    store.sweep(set(), time.time() - 60)
    assert not crashed.exists()
    assert growing.exists()


def test_a_table_used_while_it_is_swept_comes_back(store: DatasetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone adds the same table between the sweep's look and its grip."""
    frame = pl.DataFrame({"x": [1]})
    digest = store.add_table(frame).digest
    age(store, digest)
    rename = Path.rename

    def late(path: Path, target: Path) -> Path:
        if path == store.path(digest).parent:
            monkeypatch.undo()
            store.add_table(frame)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    store.sweep(set(), time.time() - 60)
    assert store.table(digest).num_rows == 1


# ---- together


def test_many_put_the_same_name_at_once(store: DatasetStore) -> None:
    contents = [CSV + b"%d,z\n" % (number % 4) for number in range(16)]
    barrier = threading.Barrier(8)

    def put(content: bytes) -> bool:
        barrier.wait(30)
        return store.put("t", [content])[1]

    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(put, contents))
    assert created.count(True) == 1
    assert store.get("t").num_rows == 3
    assert len(tables(store)) == 4
    assert nothing_left_over(store)


def test_readers_see_one_table_or_the_other_while_it_is_replaced(store: DatasetStore) -> None:
    ones, twos = b"a,b\n" + b"1,1\n" * 50, b"c,d\n" + b"2,2\n" * 70
    store.put("t", [ones])
    done = threading.Event()

    def replace() -> None:
        for number in range(30):
            store.put("t", [twos if number % 2 else ones])
        done.set()

    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(replace)
        while not done.is_set() and not replacing.done():
            dataset = store.get("t")
            rows = store.rows("t", 200)
            assert dataset.num_rows == (50 if dataset.columns[0].name == "a" else 70)
            assert rows in ([{"a": 1, "b": 1}] * 50, [{"c": 2, "d": 2}] * 70)
        replacing.result(30)


def test_a_full_disk_is_not_the_uploads_fault(store: DatasetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", full)
    with pytest.raises(OSError, match="No space left"):
        store.put("t", [CSV])
    monkeypatch.undo()
    assert nothing_left_over(store)
    assert store.put("t", [CSV])[1]
    shutil.rmtree(store.root)

"""Data behind the door: found, checked, refused, fetched, recorded."""

from __future__ import annotations

import csv
import gzip
import hashlib
import http.client
import io
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest

import flatirons as fi
from flatirons import envs
from flatirons.__main__ import main
from flatirons.envs import datasets, own_data
from flatirons.run import job as jobs
from flatirons.run import predicting, uncertainty
from flatirons.systems import mc_dropout
from flatirons.types import ArraySpec, Box, Discrete, FlatironsError, Spec

SAID = uncertainty.Uncertainty(np.array([0.0, 0.1, 0.9, 0.0]), None, None, None, np.zeros(1), None)
GIVEN = os.environ.get("FLATIRONS_DATA") or ""
needs_data = pytest.mark.skipif(not Path(GIVEN, "uci").is_dir(), reason="FLATIRONS_DATA names no folder with the data sets")


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No data, an empty cache and a source that cannot be reached."""
    monkeypatch.delenv("FLATIRONS_DATA", raising=False)
    monkeypatch.setenv("FLATIRONS_CACHE", str(tmp_path / "cache"))

    def unreachable(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(datasets.urllib.request, "urlopen", unreachable)
    return tmp_path


@needs_data
def test_the_tables_and_their_splits() -> None:
    for name, rows, features in (("boston", 506, 13), ("concrete", 1030, 8), ("energy", 768, 8), ("wine", 1599, 11), ("yacht", 308, 6)):
        task: Any = envs.make(f"data:uci-{name}")
        x, y, train, test = (task.arrays[key] for key in ("x", "y", "train", "test"))
        assert x.shape == (rows, features) and y.shape == (rows,) and task.spec.obs.shape == (features,)
        assert train.shape[0] == test.shape[0] == 20
        for learn, held_out in zip(train, test, strict=True):
            assert sorted([*learn, *held_out]) == list(range(rows))


@needs_data
def test_digits_and_characters() -> None:
    digits: Any = envs.make("data:mnist")
    assert digits.arrays["train_images"].shape[1:] == (28, 28)
    everything = np.concatenate([digits.arrays["train_labels"], digits.arrays["test_labels"]])
    assert set(everything.tolist()) == set(range(10))
    characters: Any = envs.make("data:omniglot")
    images, alphabet = characters.arrays["images"], characters.arrays["alphabet"]
    assert images.shape[1:] == (20, 28, 28) and len(images) == len(alphabet) == characters.spec.action.n
    assert set(characters.notes) == {"Balinese", "Early_Aramaic", "Greek", "Japanese_(katakana)", "Korean", "Latin", "Sanskrit", "Tagalog"}
    assert images.max() == 255 and 0.02 < (images / 255).mean() < 0.2


def test_shrinking_keeps_the_mean() -> None:
    picture = np.random.default_rng(0).random((105, 105))
    shrink = datasets._shrink(105, 28)
    np.testing.assert_allclose(shrink.sum(axis=1), 1.0)
    np.testing.assert_allclose((shrink @ picture @ shrink.T).mean(), picture.mean())


def test_no_file_and_no_network_says_where_to_put_it(nowhere: Path) -> None:
    with pytest.raises(FlatironsError, match=r"cannot be reached \(no network\); get that file and put it at .*cache/co2/co2.csv"):
        envs.make("data:co2")
    with pytest.raises(FlatironsError, match=r"put it at .*mine/co2/co2.csv or .*cache/co2/co2.csv"):
        envs.make("data:co2", data_dir=str(nowhere / "mine"))


def test_a_damaged_file_is_named_kept_aside_and_not_used(nowhere: Path) -> None:
    cached = nowhere / "cache" / "co2" / "co2.csv"
    cached.parent.mkdir(parents=True)
    cached.write_text("date,co2\n19580329,1.0\n")
    with pytest.raises(FlatironsError, match=r"co2.csv has another SHA-256 than expected: it was moved to .*co2.csv.damaged"):
        envs.make("data:co2")
    assert not cached.exists() and cached.with_name("co2.csv.damaged").exists()
    own = nowhere / "mine" / "co2" / "co2.csv"
    own.parent.mkdir(parents=True)
    own.write_text("not it")
    with pytest.raises(FlatironsError, match="left where it is and is not used"):
        envs.make("data:co2", data_dir=str(nowhere / "mine"))
    assert own.exists()


class Answer:
    """What a source sends: bytes, or an error in the middle of them."""

    def __init__(self, content: bytes | Exception) -> None:
        self.content = content

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self) -> bytes:
        if isinstance(self.content, Exception):
            raise self.content
        return self.content


GOOD = b"the right bytes"


@pytest.fixture
def listed(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One file of one data set is listed, and is `GOOD`."""
    files = {"file.txt": [hashlib.sha256(GOOD).hexdigest()]}
    monkeypatch.setattr(datasets, "_listed", lambda: {"some": {"source": "https://example.org/", "files": files}})
    return nowhere


def test_a_fetched_file_is_checked_before_it_is_used(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.urllib.request, "urlopen", lambda *_, **__: Answer(b"an error page"))
    with pytest.raises(FlatironsError, match=r"another SHA-256 than expected: it was kept as .*; try again, or get that file"):
        envs.make("data:co2")
    assert (nowhere / "cache" / "co2" / "co2.csv.damaged").read_bytes() == b"an error page"


def test_a_damaged_file_is_named_where_a_good_one_is_used(
    listed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, cached = listed / "mine" / "some" / "file.txt", listed / "cache" / "some" / "file.txt"
    for place, content in ((mine, b"junk"), (cached, GOOD)):
        place.parent.mkdir(parents=True)
        place.write_bytes(content)
    assert datasets.file("some", "file.txt", listed / "mine") == GOOD
    assert f"{mine} has another SHA-256 than expected: it was left where it is" in capsys.readouterr().err
    cached.write_bytes(b"junk")
    monkeypatch.setattr(datasets.urllib.request, "urlopen", lambda *_, **__: Answer(GOOD))
    assert datasets.file("some", "file.txt") == GOOD == cached.read_bytes()
    assert f"{cached} has another SHA-256 than expected: it was moved to {cached}.damaged" in capsys.readouterr().err
    assert cached.with_name("file.txt.damaged").read_bytes() == b"junk"


def test_a_download_that_breaks_off_and_a_cache_that_cannot_be_written(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (http.client.IncompleteRead(b"the"), ConnectionResetError()):
        monkeypatch.setattr(datasets.urllib.request, "urlopen", lambda *_, error=error, **__: Answer(error))
        with pytest.raises(FlatironsError, match=r"broke off .*; try again, or get that file and put it at") as caught:
            datasets.file("some", "file.txt")
        assert not isinstance(caught.value, datasets.Missing), "MNIST is not to do without a file that is to be had"
    monkeypatch.setattr(datasets.urllib.request, "urlopen", lambda *_, **__: Answer(GOOD))
    (listed / "taken").write_text("a file where the cache should be")
    monkeypatch.setenv("FLATIRONS_CACHE", str(listed / "taken"))
    with pytest.raises(FlatironsError, match=r"cannot be written .*: let FLATIRONS_CACHE name a folder that can be"):
        datasets.file("some", "file.txt")


@pytest.mark.parametrize("wrong", ["nowhere", "file"])
def test_a_file_put_where_the_error_says_is_found(wrong: str, listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where FLATIRONS_DATA is wrong: a folder that is not there, or no folder."""
    (listed / "file").write_text("")
    monkeypatch.setenv("FLATIRONS_DATA", str(listed / wrong))
    with pytest.raises(datasets.Missing) as caught:
        datasets.file("some", "file.txt")
    first, last = str(caught.value).partition("put it at ")[2].split(" or ")
    place = Path(first if wrong == "nowhere" else last)
    place.parent.mkdir(parents=True)
    place.write_bytes(GOOD)
    assert datasets.file("some", "file.txt") == GOOD


def test_mnist_does_without_training_digits_that_are_absent_and_not_with_damaged_ones(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test set of three digits, its files listed with their own hashes."""

    def idx(array: np.ndarray) -> bytes:
        sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
        return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())

    contents = {
        "t10k-images-idx3-ubyte.gz": idx(np.arange(12, dtype=np.uint8).reshape(3, 2, 2)),
        "t10k-labels-idx1-ubyte.gz": idx(np.array([7, 8, 9], np.uint8)),
        "train-images-idx3-ubyte.gz": idx(np.zeros((2, 2, 2), np.uint8)),
        "train-labels-idx1-ubyte.gz": idx(np.array([1, 2], np.uint8)),
    }
    hashes = {name: [hashlib.sha256(content).hexdigest()] for name, content in contents.items()}
    monkeypatch.setattr(datasets, "_listed", lambda: {"mnist": {"source": "https://example.org/", "files": hashes}})
    mine = nowhere / "mine" / "mnist"
    mine.mkdir(parents=True)
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        (mine / name).write_bytes(contents[name])
    arrays, (note,), _ = datasets.load("mnist", mine.parent)
    assert arrays["train_labels"].tolist() == [7, 8, 9]
    assert "train-labels-idx1-ubyte.gz" in note and f"put it at {mine / 'train-images-idx3-ubyte.gz'} or " in note
    (mine / "train-images-idx3-ubyte.gz").write_bytes(b"junk")
    with pytest.raises(FlatironsError, match=r"mine/mnist/train-images-idx3-ubyte.gz has another SHA-256") as caught:
        datasets.load("mnist", mine.parent)
    assert not isinstance(caught.value, datasets.Missing)
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
        (mine / name).write_bytes(contents[name])
    arrays, notes, _ = datasets.load("mnist", mine.parent)
    assert arrays["train_labels"].tolist() == [1, 2] and notes == ()


def test_what_cannot_be_asked_of_data() -> None:
    with pytest.raises(FlatironsError, match="did you mean mnist"):
        envs.make("data:mnits")
    with pytest.raises(FlatironsError, match="has no option 'sticky'"):
        envs.make("data:mnist", sticky=0.1)
    with pytest.raises(FlatironsError, match="data to learn from, in which nothing can act"):
        datasets.DataTask("data:x", 1, None, {}, "0").reset(None)  # type: ignore[arg-type]


@needs_data
def test_a_run_goes_on_with_the_same_files_only(tmp_path: Path) -> None:
    shutil.copytree(Path(GIVEN, "uci", "yacht"), tmp_path / "uci" / "yacht")
    task: Any = envs.make("data:uci-yacht", data_dir=str(tmp_path))
    run: Any = jobs.Job(None, None, None, "data:uci-yacht", {}, None, 0, 1, tmp_path, jobs.Options(), recorded={"data_sha256": task.sha256})
    jobs.demand_same_data(run, task)
    run.recorded["data_sha256"] = "0" * 64
    with pytest.raises(FlatironsError, match="are not those that"):
        jobs.demand_same_data(run, task)


def test_idx_files() -> None:
    raw = bytes([0, 0, 8, 2]) + (2).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes(range(6))
    np.testing.assert_array_equal(datasets._idx(gzip.compress(raw)), np.arange(6).reshape(2, 3))


# ------------------------------------------------------------------------------------------------------------ files of one's own


def table(path: Path, text: str) -> str:
    path.write_text(text)
    return f"data:{path}"


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    rows = "\n".join(f"{i};{2 * i};{10 * i}" for i in range(20))
    made = envs.make(table(tmp_path / "a.csv", f"rooms;price;area\n{rows}\n"), target="price", splits=3, test_share=0.2)
    assert isinstance(made, datasets.DataTask) and made.spec.obs.shape == (2,) and isinstance(made.spec.action, Box)
    np.testing.assert_array_equal(made.arrays["x"], [[i, 10 * i] for i in range(20)])
    np.testing.assert_array_equal(made.arrays["y"], 2.0 * np.arange(20))
    assert made.arrays["train"].shape == (3, 16) and made.arrays["test"].shape == (3, 4)
    for train, test in zip(made.arrays["train"], made.arrays["test"], strict=True):
        assert sorted([*train, *test]) == list(range(20))
    assert len({tuple(test) for test in made.arrays["test"]}) == 3
    without_names = envs.make(table(tmp_path / "b.csv", rows.replace(";", ",")), target="1")
    np.testing.assert_array_equal(without_names.arrays["y"], np.arange(20.0))
    # As the command line reads it.
    np.testing.assert_array_equal(envs.make(f"data:{tmp_path / 'b.csv'}", target=1).arrays["y"], np.arange(20.0))


def test_words_are_classes(tmp_path: Path) -> None:
    made = envs.make(table(tmp_path / "a.csv", "\n".join(f"{i},{'big' if i > 5 else 'small'}" for i in range(12))))
    assert made.spec.action == Discrete(2) and made.notes == ("2 classes: big, small",)
    np.testing.assert_array_equal(made.arrays["y"], [1] * 6 + [0] * 6)
    learned = mc_dropout.rows_of(mc_dropout.Config(), made)
    assert learned.y.dtype == np.int32 and learned.y.shape == (11,)
    mixed = table(tmp_path / "b.csv", "\n".join(f"{i},{'2a' if i > 5 else '2'}" for i in range(12)))
    assert envs.make(mixed, classes=True).notes == ("2 classes: 2, 2a",)
    with pytest.raises(FlatironsError, match="has '2a' in the column '2'"):
        envs.make(mixed)


def test_arrays_of_ones_own(tmp_path: Path) -> None:
    pictures, labels = np.arange(12 * 4, dtype=np.uint8).reshape(12, 2, 2), np.repeat([7, 3, 5], 4)
    np.savez(tmp_path / "a.npz", x=pictures, y=labels)
    made = envs.make(f"data:{tmp_path / 'a.npz'}", classes=True)
    assert made.spec.obs == ArraySpec((2, 2), "uint8", 0, 255) and made.spec.action == Discrete(3)
    np.testing.assert_array_equal(made.arrays["y"], np.repeat([2, 0, 1], 4))
    assert mc_dropout.rows_of(mc_dropout.Config(), made, "test").x.dtype == np.uint8
    np.savez(tmp_path / "b.npz", train_images=pictures, train_labels=labels % 3, test_images=pictures, test_labels=labels % 3)
    split = envs.make(f"data:{tmp_path / 'b.npz'}")
    assert mc_dropout.rows_of(mc_dropout.Config(), split).x.shape == (12, 2, 2) and split.spec.action == Discrete(3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n3,\n", "row 3 .* has nothing in the column 'b'"),
        ("a,b\n1,2\nred,4\n", "row 3 .* has 'red' in the column 'a'"),
        ("a,b\n1,2\n3,4,5\n", "row 3 .* has 3 columns, where the first has 2"),
        ("1\n2\n3\n", "has one column"),
        ("", "is empty"),
        ("a,b\n1,2\n3,4\n", "too few to learn from"),
        ("a,b\n1,nan\n3,4\n", "has 'nan' in the column 'b'"),
        ("a,b,a\n1,2,3\n3,4,5\n", "several columns called 'a'; give each a name of its own"),
    ],
)
def test_a_faulty_table_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(FlatironsError, match=said):
        envs.make(table(tmp_path / "a.csv", text))


def test_faulty_files_and_options_are_named(tmp_path: Path) -> None:
    good = table(tmp_path / "a.csv", "\n".join(f"{i},{i}" for i in range(9)))
    for options, said in (
        ({"target": "price"}, "no column 'price'; target is one of 1, 2"), ({"tarrget": "1"}, "no option 'tarrget'"),
        ({"test_share": 1.0}, "must lie between 0 and 1"), ({"splits": 0}, "be at least 1"),
    ):  # fmt: skip
        with pytest.raises(FlatironsError, match=said):
            envs.make(good, **options)
    with pytest.raises(FlatironsError, match="cannot be read"):
        envs.make(f"data:{tmp_path / 'none.csv'}")
    (tmp_path / "a.npz").write_text("no archive")
    with pytest.raises(FlatironsError, match="file of plain arrays"):
        envs.make(f"data:{tmp_path / 'a.npz'}")
    np.savez(tmp_path / "b.npz", x=np.zeros((4, 2)), y=np.zeros(3))
    with pytest.raises(FlatironsError, match="do not fit"):
        envs.make(f"data:{tmp_path / 'b.npz'}")


def test_a_run_finds_its_own_file_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path / "a.csv", "\n".join(f"{i},{i}" for i in range(40)))
    monkeypatch.chdir(tmp_path)
    fi.train("mc_dropout", "data:a.csv", out="run", total_steps=100, hidden=(4,), samples=8, quiet=True)
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert fi.resume("../run", total_steps=200, quiet=True).step == 200
    table(tmp_path / "a.csv", "\n".join(f"{i},{i + 1}" for i in range(40)))
    with pytest.raises(FlatironsError, match="are not those that"):
        fi.resume("../run", total_steps=300, quiet=True)


def test_inputs_are_found_by_the_names_of_their_columns(tmp_path: Path) -> None:
    def inputs(name: str, text: str, columns: tuple[str, ...] = ("size", "age")) -> list[list[float]]:
        (tmp_path / name).write_text(text)
        return own_data.inputs(str(tmp_path / name), columns).tolist()

    assert inputs("a.csv", "age;price;size\n1;9;2\n3;9;4\n") == [[2.0, 1.0], [4.0, 3.0]]
    assert inputs("a.csv", "5,6\n7,8\n") == [[5.0, 6.0], [7.0, 8.0]]
    # A table without names, whose second column was the target: with that column or without.
    assert inputs("a.csv", "1,2,3\n", ("1", "3")) == [[1.0, 3.0]] and inputs("a.csv", "1,3\n", ("1", "3")) == [[1.0, 3.0]]
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    assert own_data.inputs(str(tmp_path / "a.npy")).shape == (2, 3)
    np.savez(tmp_path / "a.npz", x=np.ones(4), y=np.ones(4))
    assert own_data.inputs(str(tmp_path / "a.npz")).shape == (4, 1)
    for text, said in (
        ("age\n1\n", "has no column 'size'; it has age"), ("size,age\n", "has no rows"),
        ("1,2,3\n", "no column 'size', 'age'; it has 1, 2, 3"),
        ("size,age\n1,red\n", "row 2 .* has 'red' in the column 'age'"),
    ):  # fmt: skip
        with pytest.raises(FlatironsError, match=said):
            inputs("b.csv", text)
    (tmp_path / "a.npy").write_text("no array")
    for name, said in (("a.npy", "not an .npy file"), ("a.txt", "cannot be read"), ("b.npz", "cannot be read")):
        with pytest.raises(FlatironsError, match=said):
            own_data.inputs(str(tmp_path / name))


def test_a_run_predicts_rows_that_it_has_never_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = rng.uniform(0.0, 4.0, (200, 2))
    table(tmp_path / "k.csv", "size,age,kind\n" + "\n".join(f"{a},{b},{'big' if a > 2 else 'small'}" for a, b in rows))
    run = fi.train("mc_dropout", "data:k.csv", out="run", total_steps=1_000, samples=50, quiet=True)
    table(tmp_path / "new.csv", "age,size\n1,3.8\n1,0.2\n1,2.0\n")
    capsys.readouterr()
    assert main(["predict", "run", "new.csv"]) == 0
    said = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(said[0]) == ["row", "predicted", "probability", "entropy", "information"]
    assert [row["predicted"] for row in said[:2]] == ["big", "small"]
    assert float(said[2]["entropy"]) > 3 * float(said[0]["entropy"]) and float(said[0]["probability"]) > 0.9
    # Rows in pieces, and one by one, are the same: one pass is one function.
    x = rng.uniform(0.0, 4.0, (7, 2))
    whole = run.predictions(x, 20)
    monkeypatch.setattr(predicting, "CHUNK", 3)
    for found in (run.predictions(x, 20), {name: np.concatenate([run.predictions(row[None], 20)[name] for row in x]) for name in whole}):
        for name, column in whole.items():
            np.testing.assert_allclose(found[name], column, rtol=1e-5, atol=1e-6)
    assert main(["predict", "run", "new.csv", "--out", "said.csv"]) == 0 and "3 rows: predicted" in capsys.readouterr().out
    assert (tmp_path / "said.csv").read_text().splitlines()[1].startswith("1,big,")
    for bad, why in (
        (["predict", "run", "new.csv", "--rate", "0.1"], "trained with a rate of its own"),
        (["predict", "run", "none.csv"], "cannot be read"),
        (["predict", "run", "new.csv", "--passes", "0"], "at least 1 stochastic pass"),
        (["predict", "nobody", "new.csv"], "does not exist"),
        (["predict", "run", "new.csv", "--out", "a", "--json"], "leave one of them out"),
    ):  # fmt: skip
        assert main(bad) == 2 and why in capsys.readouterr().err
    # A line that says which states there are is one column.
    frozen: Any = SimpleNamespace(spec=Spec(ArraySpec((), "int32", 0, 15), Discrete(4)))
    asked: list[Any] = []
    lake: Any = SimpleNamespace(system=SimpleNamespace(), uncertainty=lambda obs, n, **_: asked.append(obs) or SAID)
    assert predicting.predictions(lake, frozen, np.array([[3.0], [15.0]]), None, None, 0)["action"].tolist() == [2, 2]
    assert [int(obs) for obs in asked] == [3, 15]
    with pytest.raises(FlatironsError, match="n is 0"):
        predicting.predictions(lake, frozen, np.array([[3.0]]), 0, None, 0)
    # Other rows are other test rows.
    with open(tmp_path / "k.csv", "a") as file:
        file.write("\n1,1,small\n")
    assert main(["eval", "run"]) == 2 and "are not those that" in capsys.readouterr().err
    (tmp_path / "k.csv").unlink()
    assert main(["predict", "run", "new.csv"]) == 0 and capsys.readouterr().out.splitlines()[1].startswith("1,big,")


def test_a_prediction_of_numbers_has_the_noise_in_its_deviation(tmp_path: Path) -> None:
    made: Any = envs.make(table(tmp_path / "a.csv", "\n".join(f"{i},{3 * i}" for i in range(30))))
    config: Any = cast(Any, mc_dropout.Config)(tau=4.0, hidden=(8,))
    state = mc_dropout.init(config, made, jax.random.key(0))
    x = np.array([[1.0], [20.0]], np.float32)
    found: Any = mc_dropout.predictions(config, made, mc_dropout.actor(state), x, jax.random.key(1), 64)
    drawn = np.asarray(mc_dropout.draws(config, mc_dropout.actor(state), x, jax.random.key(1), 64))[..., 0]
    np.testing.assert_allclose(found.mean, drawn.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.model_deviation, drawn.std(axis=0), rtol=1e-4)
    np.testing.assert_allclose(np.square(found.deviation), np.square(found.model_deviation) + 0.25, rtol=1e-5)

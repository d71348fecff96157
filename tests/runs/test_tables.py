"""Tables: what is read and how, what is refused with what mends it, and an experiment on a user's own file."""

import gzip
import pathlib
import re

import jax
import numpy as np
import pandas as pd
import pytest

import bayes_brg as brg
from bayes_brg.cli import main
from bayes_brg.io.units import Units
from bayes_brg.model.bound import bind
from bayes_brg.runs.default_network import default_network, default_steps, rounding_step
from bayes_brg.runs.reading import kind_of
from bayes_brg.runs.table_experiment import TABLE_FILE

KEY = jax.random.key(0)
RNG = np.random.default_rng(1)


@pytest.fixture
def frame():
    return pd.DataFrame({"age": RNG.normal(50, 9, 40), "dose": RNG.normal(size=40), "constant": np.ones(40),
                         "outcome": RNG.normal(size=40), "group": RNG.choice(["b", "a", "c"], 40)})


def save(tmp_path, frame, name="table.csv"):
    frame.to_csv(tmp_path / name, index=False)
    return tmp_path / name


def test_csv_and_npz_hold_the_same_table(tmp_path, frame):
    numbers = frame.drop(columns="group")
    table = brg.load_table(save(tmp_path, numbers), "outcome")
    assert table.columns == ("age", "dose", "constant") and table.target == "outcome" and table.classes == ()
    np.testing.assert_allclose(table.x, numbers[["age", "dose", "constant"]])
    np.savez(tmp_path / "columns.npz", **{c: numbers[c].to_numpy() for c in numbers})
    np.savez(tmp_path / "xy.npz", x=table.x, y=table.y)
    for other in (brg.load_table(tmp_path / "columns.npz", "outcome"), brg.load_table(tmp_path / "xy.npz")):
        np.testing.assert_allclose(other.x, table.x)
        np.testing.assert_allclose(other.y, table.y)


def test_text_targets_are_classes_and_numbers_can_be(tmp_path, frame):
    table = brg.load_table(save(tmp_path, frame.drop(columns="outcome")), "group")
    assert table.classes == ("a", "b", "c")
    assert [table.classes[i] for i in table.y] == list(frame["group"])
    with pytest.raises(ValueError, match="holds text"):
        table.numeric()
    assert brg.Table(np.ones((6, 1)), np.array([3, 7, 7, 3, 3, 7])).labelled().classes == (3, 7)
    with pytest.raises(ValueError, match="does not look like classes"):
        brg.Table(np.ones((99, 1)), np.arange(99.0) + 0.5).labelled()


def test_a_split_is_standardised_by_its_training_rows(tmp_path, frame):
    table = brg.load_table(save(tmp_path, frame.drop(columns="group")), "outcome")
    data = table.split(KEY)
    assert data.x.shape == (30, 2) and data.x_test.shape == (10, 2) and data.y.shape == (30, 1)
    np.testing.assert_allclose(data.x.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(data.x.std(0), 1, atol=1e-6)
    np.testing.assert_allclose([data.y.mean(), data.y.std()], [0, 1], atol=1e-6)
    assert abs(data.x_test[:, 0].mean()) > 1e-3  # held-out rows take no part
    every = np.concatenate([data.x[:, 0], data.x_test[:, 0]])
    assert len(np.unique(every)) == 40
    small = table.split(KEY, num_train=5, num_test=7)
    assert small.x.shape == (5, 2) and small.x_test.shape == (7, 2)
    with pytest.raises(ValueError, match="leave 1 to learn from"):
        table.split(KEY, num_test=39)


@pytest.mark.parametrize("change, target, matches", [
    (lambda f: f, "outcom", ["did you mean 'outcome'"]),
    (lambda f: f, "", ["say which column"]),
    (lambda f: f[["outcome"]], "outcome", ["at least one input column"]),
    (lambda f: f.replace({"constant": {1.0: np.inf}}), "outcome", ["'constant' has no finite"]),
    (lambda f: f.assign(dose=np.inf, age=-np.inf), "goup", [
        "for 3 reasons: ", "did you mean 'group'", "'dose' has no finite .*empty where", "'age' has no finite"]),
    (lambda f: pd.concat([f] * 4).assign(name=[f"n{i}" for i in range(160)]), "name", ["160 kinds in 160 rows"]),
    (lambda f: f.assign(day="2020-01-01"), "day", ["holds dates; predict a length of time"]),
    (lambda f: f.assign(none=np.nan), "none", ["no value in any row; name another"]),
])
def test_all_that_is_wrong_with_a_table_is_told_at_once(tmp_path, frame, change, target, matches):
    path = save(tmp_path, change(frame))
    with pytest.raises(ValueError, match="cannot be read as a table") as caught:
        brg.load_table(path, target)
    for match in matches:
        assert re.search(match, str(caught.value)), caught.value


def test_bad_files_are_refused(tmp_path, frame):
    with pytest.raises(FileNotFoundError, match="no such file"):
        brg.load_table(tmp_path / "none.csv", "y")
    (tmp_path / "table.xlsx").write_text("x")
    with pytest.raises(ValueError, match="neither .csv nor .npz"):
        brg.load_table(tmp_path / "table.xlsx", "y")
    np.savez(tmp_path / "odd.npz", a=np.ones((3, 2)), b=np.ones(4))
    with pytest.raises(ValueError, match="it needs arrays x"):
        brg.load_table(tmp_path / "odd.npz", "a")
    for name, content in (("not.npz", b"text"), ("array.npz", b"\x93NUMPY")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="no archive of arrays; write it with numpy.savez"):
            brg.load_table(tmp_path / name)
    np.savez(tmp_path / "complex.npz", x=np.ones((3, 2)), y=np.ones(3) * 1j)
    with pytest.raises(ValueError, match="y holds complex numbers"):
        brg.load_table(tmp_path / "complex.npz")
    (tmp_path / "t.csv.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        brg.load_table(tmp_path / "t.csv.gz", "y")
    with pytest.raises(ValueError, match="have one name"):
        brg.load_table(pd.DataFrame(np.ones((3, 2)), columns=["a", "a"]), "a")


@pytest.mark.parametrize("text, match", [
    ("", "it is empty"),
    ("a,b,y\n", "a header but no rows"),
    ("a,b,y\n9,1,2,3\n9,2,3,5\n", "3 names .a, b, y. but its first row 4 values"),  # pandas would shift the columns
    ("a,b,y\n9,1,2\n9,2,3,5\n9,2\n", "3 names .a, b, y. but line 3 4 values .2 such lines"),
    (",a,y\n7,1,2\n1,2,3\n", "column 0 has no name"),
    ("a,,y, y\n1,2,3,4\n2,3,4,5\n", "for 2 reasons: .1. column 1 has no name.* .2. several columns have the name 'y'"),
    ("a,y\n\0,1\n", "it is no text"),
])
def test_files_of_other_programs_are_refused_with_a_remedy(tmp_path, text, match):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=match):
        brg.load_table(tmp_path / "t.csv", "y")


@pytest.mark.parametrize("text, note", [
    ("a,b,y\n1,2,3\n2.5,3,4\n", ""),
    ("a;b;y\n1;2;3\n2.5;3;4\n", "separated by semicolons"),
    ("a;b;y\n1;2;3\n2,5;3;4\n", "decimal comma"),
    ("a\tb\ty\n1\t2\t3\n2.5\t3\t4\n", "separated by tabs"),
    ("\ufeffa, b,y\r\n1,2,3\r\n\r\n2.5,3,4\r\n", ""),
    (",a,b,y\n0,1,2,3\n1,2.5,3,4\n", "counts the rows and is left out"),
    ('a,b,y\n$1.00,2,"3"\n2.50,3 %,"4"\n', ""),
])
def test_files_of_other_programs_hold_the_same_table(tmp_path, text, note):
    (tmp_path / "t.csv").write_text(text)
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write(text)
    for name in ("t.csv", "t.csv.gz"):
        table = brg.load_table(tmp_path / name, "y")
        assert table.columns == ("a", "b") and table.x.tolist() == [[1, 2], [2.5, 3]] and table.y.tolist() == [3, 4]
        assert note in " ".join(table.whole)


def test_names_in_another_alphabet_and_files_without_a_header(tmp_path):
    (tmp_path / "t.txt").write_bytes("größe;y\n1;2\n".encode("cp1252"))
    table = brg.load_table(tmp_path / "t.txt", "y")
    assert table.columns == ("größe",) and "Windows-1252" in table.whole[0]
    (tmp_path / "t.csv").write_text("0.5,1,2\n1.5,2,3\n")
    table = brg.load_table(tmp_path / "t.csv", "c2")
    assert table.columns == ("c0", "c1") and table.y.tolist() == [2, 3] and "no header" in table.whole[0]


@pytest.mark.parametrize("column, kind, values, note", [
    (["1,234", "17", "1,000,000.5"], "f", [1234, 17, 1000000.5], "'1,234' is the number 1234"),
    (["(5)", "€ 1'000", "7"], "f", [-5, 1000, 7], ""),
    (["1", "", "n/a"], "f", [1, np.nan, np.nan], ""),
    (["1", "-", "2"], "f", [1, np.nan, 2], ""),
    ([str(i) for i in range(30)] + ["abc"], "f", [*range(30), np.nan], "1 entries are no numbers ('abc')"),
    (["yes", "No", ""], "b", [True, False, None], ""),
    (["-", "b", ""], "O", ["-", "b", None], ""),
    (["2020-03-01", "?", "2021-01-02"], "M", ["2020-03-01", "NaT", "2021-01-02"], "year-month-day"),
    (["03/04/2020", "05/06/2020"], "M", ["2020-03-04", "2020-05-06"], "(day/month/year would fit too"),
    (["13/04/2020", "05/06/2020"], "M", ["2020-04-13", "2020-06-05"], "day/month/year"),
    (["1.2.2020 13:30", "2.2.2020 00:00"], "M", ["2020-02-01T13:30", "2020-02-02"], "and a time"),
    (["2020-03-01T10:00:00Z", "2020-03-02T11:30:00Z"], "M", ["2020-03-01T10:00", "2020-03-02T11:30"], ""),
])
def test_text_is_read_as_what_it_says(column, kind, values, note):
    found = kind_of(column)
    assert found.values.dtype.kind == kind and note in found.note
    if kind == "M":
        np.testing.assert_array_equal(found.values.to_numpy(), np.array(values, "datetime64[us]"))
    elif kind == "f":
        np.testing.assert_array_equal(found.values, values)
    else:
        assert [None if pd.isna(v) else v for v in found.values] == values


def test_a_frame_is_read_as_its_file_is(tmp_path, frame):
    frame["when"], frame["sure"] = pd.date_range("2020-01-01", periods=40, tz="Europe/Berlin"), frame["age"] > 50
    frame["level"] = frame["group"].astype("category")
    frame.loc[3, "group"] = None
    table = brg.load_table(frame, "outcome")
    kinds = dict(zip(table.columns, (table.frame[c].dtype.kind for c in table.columns), strict=True))
    assert kinds == {"age": "f", "dose": "f", "constant": "f", "group": "O", "when": "M", "sure": "b", "level": "O"}
    other = brg.load_table(save(tmp_path, frame.assign(when=frame["when"].dt.tz_convert("UTC").dt.tz_localize(None))),
                           "outcome")
    pd.testing.assert_frame_equal(table.frame, other.frame)


def test_regression_or_classes_is_decided_by_the_target(frame):
    frame["count"], frame["sure"] = np.arange(40) % 3, frame["age"] > 50
    tables = {t: brg.load_table(frame, t) for t in ("outcome", "count", "sure", "group")}
    assert {t: table.as_task().classes for t, table in tables.items()} == {
        "outcome": (), "count": (0, 1, 2), "sure": ("no", "yes"), "group": ("a", "b", "c")}
    assert tables["count"].as_task("regression").classes == ()
    with pytest.raises(ValueError, match="holds text"):
        tables["group"].as_task("regression")
    with pytest.raises(ValueError, match="does not look like classes"):
        brg.load_table(pd.concat([frame] * 3).assign(outcome=np.arange(120.0)), "outcome").as_task("classification")
    frame.loc[:4, "group"] = None
    found = brg.load_table(frame, "group")
    assert len(found.y) == 35 and "5 rows without a target are left out" in found.whole
    assert found.split(KEY).encoding["encoding"].iloc[-1].endswith("5 rows without a target are left out")


def test_a_column_can_say_which_rows_are_held_out(frame):
    frame["part"] = np.where(np.arange(40) % 4 == 1, "test", "train")
    table = brg.load_table(frame, "outcome", "part")
    data = table.split(KEY)
    assert "part" not in table.columns and "'part' says which rows are held out" in data.encoding["encoding"].iloc[-1]
    held = data.own.back(data.y_test).ravel()
    np.testing.assert_allclose(np.sort(held), np.sort(frame["outcome"][frame["part"] == "test"]), atol=1e-6)
    assert len(table.split(KEY, num_train=20).x) == 20
    with pytest.raises(ValueError, match="leave num_test out"):
        table.split(KEY, num_test=3)
    for column, words in (("group", "row 0 is '[abc]'"), ("constant", "marks 40 of 40 rows"), ("prt", "mean 'part'")):
        with pytest.raises(ValueError, match=words):
            brg.load_table(frame, "outcome", column)


def test_a_column_that_is_constant_in_training_says_nothing():
    x = np.stack([np.full(30, 0.1), np.arange(30.0)], 1)  # the standard deviation of so many 0.1 is not 0
    held = np.asarray(jax.random.permutation(KEY, 30))[:7]
    x[held[0], 0] = 5.0
    data = brg.Table(x, np.arange(30.0)).split(KEY)
    assert data.x.shape == (23, 1) and data.encoder.inputs == ["x1"]
    assert data.encoding.set_index("column")["encoding"]["x0"] == "constant in the training rows (0.1)"
    with pytest.raises(ValueError, match="target 'y' is 0.1 in all 23 training rows"):
        brg.Table(x, np.full(30, 0.1)).split(KEY)
    with pytest.raises(ValueError, match="no column of the table says anything"):
        brg.Table(x[:, :1], np.arange(30.0)).split(KEY)


SMALL = ["width=3", "num_warmup=100", "num_samples=10", "num_train=25"]


@pytest.mark.parametrize("arguments, message", [
    (["run", "models/coin.py", "--data", "FILE", "--target", "outcome"], "takes no --data"),
    (["run", "models/diabetes.py", "--target", "outcome"], "name its file, --data FILE"),
    (["run", "models/table.py"], "has no table of its own; name a file, --data FILE --target COLUMN"),
    (["run", "FILE"], "say which column is the target; its columns are age, dose"),
    (["run", "FILE", "--target", "outcom"], "did you mean 'outcome'"),
    (["run", "FILE", "--target", "outcome", "--data", "other.csv"], "name one of them"),
    (["run", "FILE", "--target", "outcome", "--set", "task=classification"], "does not look like classes"),
    (["run", "FILE", "--target", "outcome", "--set", "target_transform=log"], "has no logarithm there"),
])
def test_a_table_is_refused_in_one_line(arguments, message, tmp_path, frame, capsys, monkeypatch):
    path = save(tmp_path, pd.concat([frame] * 3).assign(outcome=np.linspace(-1, 1, 120)))
    models = pathlib.Path(brg.__file__).parents[1]
    arguments = [str(path) if a == "FILE" else str(models / a) if a.startswith("models/") else a for a in arguments]
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and not out


def test_the_file_that_tables_run_is_the_one_to_copy():
    assert (pathlib.Path(brg.__file__).parents[1] / "models" / "table.py").read_text() == TABLE_FILE.read_text()


def test_the_default_network_suits_the_target():
    numbers, two, many = default_network(), default_network(2), default_network(3)
    assert bind(numbers, np.ones((2, 3))).uncollapsible() == ""
    assert numbers.likelihood.name == "heteroscedastic" and numbers.out == 2
    assert {"noise", "relevance", "scale0", "scale1"} <= set(numbers.hyperpriors(3))
    assert (two.likelihood.name, two.out, many.likelihood.name, many.out) == ("bernoulli", 1, "categorical", 3)
    assert default_steps(3, num_samples=7) == (300, 7)
    assert default_network(noise=0.3).likelihood == brg.gaussian(0.3)
    table = brg.Table(np.ones((60, 1)), np.arange(60) % 4 * 0.5)
    assert rounding_step(table.y) == 0.5 and rounding_step(RNG.normal(size=60)) == 0
    assert rounding_step(np.array([0.0, 0.5, 1.2] * 20)) == 0  # no step has them all
    assert brg.table_network({"width": 3}, table).likelihood.rounding == pytest.approx(0.5 / table.y.std())
    assert brg.table_network({"target_transform": "rank"}, table).likelihood.rounding == 0


def messy(path):
    """A file as people have them, and its columns as they were meant."""
    rng = np.random.default_rng(3)
    n = 90
    a, city = rng.normal(size=n), rng.choice(["Ulm", "Bonn", "Köln"], n)
    size = rng.lognormal(9, 0.3, n).round()
    y = np.exp(6 + 0.5 * a + (city == "Ulm") + 0.1 * rng.normal(size=n))
    frame = pd.DataFrame({
        "day": pd.date_range("2021-03-01", periods=n).strftime("%d.%m.%Y"), "city": city,
        "size": [f"{v:,.0f}" for v in size], "a": np.where(rng.random(n) < 0.1, "n/a", a.round(4).astype(str)),
        "sure": rng.choice(["yes", "no"], n), "year": 2021, "a twice": size * 2, "price": y.round(3)})
    frame.to_csv(path, sep=";", index=False)
    return frame


@pytest.mark.slow
@pytest.mark.parametrize("transform", ["", "log"])
@pytest.mark.filterwarnings("ignore:.*standard errors rest on")
def test_one_command_takes_a_messy_file_to_a_report(transform, tmp_path, capsys):
    """Numbers of the run against NumPy's, from the file and the draws, in the file's own units."""
    frame, out = messy(tmp_path / "messy.csv"), tmp_path / "run"
    arguments = ["run", str(tmp_path / "messy.csv"), "--target", "price", "--out", str(out), "--traceback", "--set",
                 *SMALL, f"target_transform={transform}", f"peers={'no' if transform else 'yes'}"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "report: " in said and "log density" in said and "in units of price" in said
    run = brg.load_run(out)
    encoding = run.encoding.set_index("column")
    assert encoding["kind"].to_dict() == {
        "day": "dates", "city": "categories", "size": "numbers", "a": "numbers", "sure": "boolean", "year": "left out",
        "a twice": "left out", "price": "target, numbers", "(rows)": "rows"}
    for column, words in {"day": "day.month.year", "a": "missing: the median", "size": "is the number",
                          "year": "constant", "a twice": "says the same as size", "(rows)": "semicolons"}.items():
        assert words in encoding["encoding"][column], column
    assert run.data["x"].shape == (25, 2 + 1 + 3 + 1 + 2 + 1) and transform in encoding["encoding"]["price"]
    # which rows were held out, from what is stored
    units = Units.of(run.data.attrs)
    price = units.back(run.data["y_test"].values[:, 0])
    held = [int(np.abs(frame["price"] - p).argmin()) for p in price]
    np.testing.assert_allclose(price, frame["price"].to_numpy()[held], rtol=1e-4)
    assert len(set(held)) == len(held) == 22
    # scores by hand from φ = (mean, log sd) and the level of the noise
    phi, level = run.flow["phi"].sel(cutoff=0).values.astype(float), run.posterior.samples["noise"]
    noise = (np.exp(phi[..., 1]) * np.asarray(level, float)).reshape(-1, len(held))
    z, phi = units.forward(frame["price"].to_numpy()[held]), phi[..., 0].reshape(-1, len(held))
    density = np.log(np.mean(np.exp(-0.5 * ((z - phi) / noise) ** 2) / np.sqrt(2 * np.pi) / noise, axis=0))
    scale = units.scale * (frame["price"].to_numpy()[held] if transform else 1.0)
    scores = pd.read_csv(out / "scores.csv").set_index("method")
    assert scores["mean_log_predictive_density"]["sample"] == pytest.approx((density - np.log(scale)).mean(), rel=1e-3)
    if transform:
        train = frame["price"].to_numpy()[np.setdiff1d(np.arange(90), held)]
        assert np.log(train).min() - 1 < units.mean < np.log(train).max() + 1
        # the mean of a log-normal is above its median
        mean = np.exp(units.mean + units.scale * phi + 0.5 * (units.scale * noise) ** 2).mean(0)
        assert scores["rmse"]["sample"] == pytest.approx(np.sqrt(((mean - price) ** 2).mean()), rel=0.2)
    else:
        own = units.mean + units.scale * phi
        assert scores["rmse"]["sample"] == pytest.approx(np.sqrt(((own.mean(0) - price) ** 2).mean()), rel=1e-3)
        assert {"sample", "map", "ridge", "forest", "boosting", "gp"} == set(scores.index)
    kept = ~run.flow["diverged"].values.ravel()
    loss = (0.5 * ((z - phi) / noise) ** 2 + np.log(np.sqrt(2 * np.pi) * noise) + np.log(scale)).mean(1)[kept]
    assert run.summary["loss_median"][0] == pytest.approx(np.median(loss), rel=1e-3)
    median = units.back(phi[kept, 0]).mean()
    assert run.summary["phi_mean"][0] == pytest.approx(median, rel=1e-3)
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "could not be made" not in text and "Encoding" in text and "says the same as size" in text
    assert f"bayes-brg run {tmp_path / 'messy.csv'} --out" in text
    # the encoder of the run takes new rows
    new = brg.Encoder.load(out)
    with pytest.warns(UserWarning, match="levels that training has not seen .'Berlin'"):
        x = new.transform(frame.iloc[held[:2]].assign(city="Berlin"))
    kept = [i for i, name in enumerate(new.inputs) if not name.startswith("city")]
    np.testing.assert_allclose(x[:, kept], run.data["x_test"].values[:2, kept], atol=1e-4)


@pytest.mark.slow
def test_the_command_line_takes_a_table_in_place_of_another(tmp_path, frame, capsys):
    path, out = save(tmp_path, frame.drop(columns="group")), str(tmp_path / "run")
    arguments = ["run", "models/diabetes.py", "--data", str(path), "--target", "outcome", "--out", out, "--set", *SMALL,
                 "peers=no"]
    assert main(arguments) == 0
    assert "critical scale" in capsys.readouterr().out
    run = brg.load_run(out)
    assert run.data["x"].shape == (25, 2) and run.settings["target"] == "outcome"
    scores = pd.read_csv(tmp_path / "run" / "scores.csv").set_index("method")
    assert list(scores.index) == ["sample", "map"] and np.isfinite(scores.to_numpy()).all()
    assert (tmp_path / "run" / "figures" / "calibration.png").stat().st_size > 5000
    frame["outcome"] += 1.0
    save(tmp_path, frame.drop(columns="group"))
    assert main(arguments) == 2  # the file has changed: another run
    assert "data" in capsys.readouterr().err

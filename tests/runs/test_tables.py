"""Tables: what is read, what is refused, and an experiment on a user's own file."""

import jax
import numpy as np
import pandas as pd
import pytest

import bayes_brg as brg
from bayes_brg.cli import main

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
    assert data.x.shape == (30, 3) and data.x_test.shape == (10, 3) and data.y.shape == (30, 1)
    np.testing.assert_allclose(data.x.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(data.x.std(0), [1, 1, 0], atol=1e-6)
    np.testing.assert_allclose([data.y.mean(), data.y.std()], [0, 1], atol=1e-6)
    assert abs(data.x_test[:, 0].mean()) > 1e-3  # held-out rows take no part
    every = np.concatenate([data.x[:, 0], data.x_test[:, 0]])
    assert len(np.unique(every)) == 40
    small = table.split(KEY, num_train=5, num_test=7)
    assert small.x.shape == (5, 3) and small.x_test.shape == (7, 3)
    with pytest.raises(ValueError, match="leave 1 to learn from"):
        table.split(KEY, num_test=39)


def with_hole(frame):
    frame.loc[7, "dose"] = np.nan
    return frame


@pytest.mark.parametrize("change, target, match", [
    (lambda f: f, "outcom", "did you mean 'outcome'"),
    (lambda f: f, "", "say which column"),
    (lambda f: f, "outcome", "column 'group' of .* holds text .*get_dummies"),
    (lambda f: with_hole(f.drop(columns="group")), "outcome", "column 'dose' of .* has no value at row 7 .1 of 40"),
    (lambda f: f[["outcome"]], "outcome", "at least one input column"),
    (lambda f: f.drop(columns="group").replace({"constant": {1.0: np.inf}}), "outcome", "'constant' has no finite"),
])
def test_bad_tables_are_refused(tmp_path, frame, change, target, match):
    with pytest.raises(ValueError, match=match):
        brg.load_table(save(tmp_path, change(frame)), target)


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


@pytest.mark.parametrize("text, match", [
    ("", "it is empty"),
    ("a,b,y\n", "a header but no rows"),
    ("a;b;y\n1;2;3\n", "separated by semicolons; save it with commas"),
    ("a\tb\ty\n1\t2\t3\n", "separated by tabs"),
    ("a,b,y\n9,1,2,3\n9,2,3,5\n", "3 names .a, b, y. but its first row 4 values"),  # pandas would shift the columns
    (",a,y\n0,1,2\n1,2,3\n", "column 0 has no name"),
    ("a,y, y\n1,2,3\n2,3,4\n", "several columns have the name 'y'"),
    ("a,b,y\n1,2,3\n2,red,5\n", "column 'b' of .* holds text .row 1: 'red'"),
    ("größe,y\n1,2\n".encode("latin-1"), "not text in UTF-8"),
])
def test_files_of_other_programs_are_refused_with_a_remedy(tmp_path, text, match):
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=match):
        brg.load_table(tmp_path / "t.csv", "y")


def test_files_of_other_programs_that_can_be_read(tmp_path):
    (tmp_path / "T.CSV").write_bytes("\ufeffa, b,y\r\n1,2,1.0\r\n2,3,0.0\r\n\r\n4,5,1.0\r\n".encode())
    table = brg.load_table(tmp_path / "T.CSV", "y")
    assert table.columns == ("a", "b") and table.x.tolist() == [[1, 2], [2, 3], [4, 5]]
    assert table.labelled().y.tolist() == [1, 0, 1]  # classes written as 1.0 and 0.0
    np.savez(tmp_path / "column.npz", x=table.x, y=table.y[:, None])
    assert brg.load_table(tmp_path / "column.npz").y.tolist() == [1, 0, 1]


def test_a_column_that_is_constant_in_training_says_nothing():
    x = np.stack([np.full(30, 0.1), np.arange(30.0)], 1)  # the standard deviation of so many 0.1 is not 0
    held = np.asarray(jax.random.permutation(KEY, 30))[:7]
    x[held[0], 0] = 5.0
    data = brg.Table(x, np.arange(30.0)).split(KEY)
    assert not data.x[:, 0].any() and not data.x_test[:, 0].any()
    with pytest.raises(ValueError, match="target 'y' is 0.1 in all 23 training rows"):
        brg.Table(x, np.full(30, 0.1)).split(KEY)


SMALL = ["width=3", "num_warmup=10", "num_samples=40", "num_members=40", "num_epochs=10", "num_train=25"]


@pytest.mark.slow
def test_the_command_line_takes_a_table(tmp_path, frame, capsys):
    path, out = save(tmp_path, frame.drop(columns="group")), str(tmp_path / "run")
    arguments = ["run", "models/diabetes.py", "--data", str(path), "--target", "outcome", "--out", out, "--set", *SMALL]
    assert main(arguments) == 0
    assert "critical scale" in capsys.readouterr().out
    run = brg.load_run(out)
    assert run.data["x"].shape == (25, 3) and run.settings["target"] == "outcome"
    scores = pd.read_csv(tmp_path / "run" / "scores.csv").set_index("method")
    assert list(scores.index) == ["sample", "ensemble", "map"] and np.isfinite(scores.to_numpy()).all()
    assert (tmp_path / "run" / "figures" / "calibration.png").stat().st_size > 5000
    frame["outcome"] += 1.0
    save(tmp_path, frame.drop(columns="group"))
    assert main(arguments) == 2  # the file has changed: another run
    assert "data" in capsys.readouterr().err
    assert main(["run", "models/coin.py", "--data", str(path), "--target", "outcome", "--out", out + "2"]) == 2
    assert "takes no --data" in capsys.readouterr().err
    assert main(["run", "models/diabetes.py", "--target", "outcome", "--out", out + "4"]) == 2
    assert "name its file, --data FILE" in capsys.readouterr().err
    assert main(["run", "models/breast_cancer.py", "--data", str(path), "--target", "outcome", "--out", out + "3"]) == 2
    assert "has 40 classes; models/breast_cancer.py tells two apart" in capsys.readouterr().err

"""Encoders: what columns become, by training rows alone; what comes back; densities of transformed targets."""

import jax
import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

import bayes_brg as brg
from bayes_brg.io.units import Units
from bayes_brg.runs.columns import Categories, Dates
from bayes_brg.runs.encoding import fit_encoder

KEY = jax.random.key(0)


def made(n=200, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame({
        "number": rng.normal(5, 3, n), "gaps": np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n)),
        "heavy": rng.lognormal(0, 3, n), "signed": rng.standard_cauchy(n), "sure": rng.random(n) < 0.3,
        "two": rng.choice(["m", "f"], n),
        "kind": np.where(np.arange(n) % 25 == 10, np.arange(n), rng.choice(list("abc"), n)),
        "when": pd.date_range("2018-01-01", periods=n, freq="7D") + pd.to_timedelta(rng.integers(0, 7 * 24, n), "h"),
        "name": [f"row {i}" for i in range(n)], "same": 4.2, "again": 0.0, "y": rng.normal(size=n)})


@pytest.fixture(scope="module")
def frame():
    found = made()
    found["again"] = 7 - 2 * found["number"]
    return found


def test_each_column_becomes_what_the_encoding_says(frame):
    data = brg.load_table(frame, "y").split(KEY, num_test=60)
    table = data.encoding.set_index("column")
    assert table["kind"].to_dict() == {
        "number": "numbers", "gaps": "numbers", "heavy": "numbers", "signed": "numbers", "sure": "boolean",
        "two": "categories", "kind": "categories", "when": "dates", "name": "left out", "same": "left out",
        "again": "left out", "y": "target, numbers", "(rows)": "rows"}
    assert table["inputs"].to_dict() == {
        "number": 1, "gaps": 2, "heavy": 1, "signed": 1, "sure": 1, "two": 1, "kind": 4, "when": 7, "name": 0,
        "same": 0, "again": 0, "y": 0, "(rows)": 0}
    for name, words in {"heavy": "logarithm", "signed": "ranks", "name": "tells rows apart", "again": "same as number",
                        "two": "'f' as 0, 'm' as 1", "kind": "rare ones together", "when": "year, week, day"}.items():
        assert words in table["encoding"][name], name
    assert data.x.shape == (140, 18) == (140, len(data.encoder.inputs))
    np.testing.assert_allclose(data.x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(data.x.std(0), 1, atol=1e-4)


def test_columns_against_numpy(frame):
    rows = np.arange(150)
    encoder = fit_encoder(brg.load_table(frame, "y").frame.iloc[rows])
    with pytest.warns(UserWarning, match="levels that training has not seen .'160', '185'.; they count as other"):
        x = pd.DataFrame(encoder.transform(frame.iloc[150:]), columns=encoder.inputs)
    train, test = frame.iloc[rows], frame.iloc[150:]

    def standard(column):
        return lambda values: (values - column(train).mean()) / column(train).std(ddof=0)

    def of(column):
        return standard(column)(column(test)).to_numpy()

    middle = train["gaps"].median()
    found = {"number": of(lambda f: f["number"]), "gaps": of(lambda f: f["gaps"].fillna(middle)),
             "gaps is missing": of(lambda f: f["gaps"].isna().astype(float)), "heavy": of(lambda f: np.log(f["heavy"])),
             "two = m": of(lambda f: (f["two"] == "m") * 1.0), "kind = a": of(lambda f: (f["kind"] == "a") * 1.0),
             "kind: other": of(lambda f: (~f["kind"].isin(list("abc"))) * 1.0),
             "when (days)": of(lambda f: (f["when"] - train["when"].min()) / pd.Timedelta(days=1)),
             "when (sine of day)": of(lambda f: np.sin(2 * np.pi * f["when"].dt.hour / 24)),
             "when (cosine of week)": of(lambda f: np.cos(2 * np.pi * (
                 (f["when"] - pd.Timestamp("1970-01-01")) / pd.Timedelta(days=7))))}
    for name, values in found.items():
        np.testing.assert_allclose(x[name], values, atol=1e-6, err_msg=name)
    scores = stats.norm.ppf((stats.rankdata(train["signed"]) - 0.5) / 150)
    order = np.argsort(train["signed"].to_numpy())
    ranked = np.interp(test["signed"], train["signed"].to_numpy()[order], scores[order])
    assert np.abs(x["signed"] - ranked).max() < 0.1  # by 65 knots instead of all ranks


def test_held_out_rows_change_nothing_that_is_fitted(frame):
    """Whatever stands in the held-out rows, encoder, units and training data stay as they are."""
    table = brg.load_table(frame, "y")
    order = np.asarray(jax.random.permutation(KEY, 200))
    train, held = order[:140], order[140:]
    other = frame.copy()
    for name in ("number", "heavy", "signed", "again", "same", "gaps", "y"):
        other.loc[held, name] = 1e3 * (1 + np.arange(60))
    other.loc[held, "kind"], other.loc[held, "two"], other.loc[held, "name"] = "new", "x", "row 0"
    other.loc[held, "when"] = pd.Timestamp("1999-09-09 09:09")
    one, two = (t.take(train, held) for t in (table, brg.load_table(other, "y")))
    assert one.encoder.record() == two.encoder.record() and one.own == two.own
    np.testing.assert_array_equal(one.x, two.x)
    np.testing.assert_array_equal(one.y, two.y)
    assert not np.array_equal(one.x_test, two.x_test)
    assert "'new'" in two.encoding["encoding"].iloc[-1] and "'x'" in two.encoding["encoding"].iloc[-1]


def test_an_encoder_is_read_back_and_takes_new_rows(frame):
    encoder = fit_encoder(brg.load_table(frame, "y").frame)
    other = brg.Encoder.restore(encoder.record())
    assert other == encoder
    np.testing.assert_array_equal(other.transform(frame), encoder.transform(frame))
    text = frame.astype({"number": str}).assign(when=frame["when"].dt.strftime("%Y-%m-%d %H:%M"),
                                                sure=np.where(frame["sure"], "yes", "no"))
    np.testing.assert_allclose(encoder.transform(text), encoder.transform(frame))  # as a file would have them
    new = frame.iloc[:4].assign(kind=["new", "newer", "a", None], number=np.nan)
    with pytest.warns(UserWarning) as caught:
        x = pd.DataFrame(encoder.transform(new), columns=encoder.inputs)
    said = str(caught[0].message)
    for words in ("'number': 4 rows have no value", "'kind': 2 rows hold levels", "'new', 'newer'",
                  "'kind': 1 rows have no value"):
        assert words in said
    assert x["number"].round(6).nunique() == 1 and list(x["kind: other"] > 0) == [True, True, False, False]
    with pytest.raises(ValueError, match="the new rows lack 'two'"):
        encoder.transform(frame.drop(columns="two"))
    with pytest.raises(ValueError, match="'when' held dates in training, and now numbers"):
        encoder.transform(frame.assign(when=3.0))
    plain = fit_encoder(frame[["number", "signed"]], heavy="none")
    np.testing.assert_array_equal(plain.transform(frame[["number", "signed"]].to_numpy()), plain.transform(frame))
    with pytest.raises(ValueError, match="the table has 2 columns: number, signed"):
        plain.transform(np.ones((3, 3)))
    with pytest.raises(ValueError, match="heavy must be one of"):
        fit_encoder(frame, heavy="logs")


def test_digits_of_pixels_are_left_as_they_are_and_many_levels_are_pooled():
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"pixel": np.where(rng.random(300) < 0.9, 0.0, rng.integers(1, 17, 300)),
                          "many": [f"l{i}" for i in rng.integers(0, 60, 300)]})
    encoder = fit_encoder(frame)
    assert encoder.columns[0].transform_name == "" and len(encoder.columns[1].levels) <= 20
    assert sum(n.startswith("many") for n in encoder.inputs) == len(encoder.columns[1].levels) + 1


# -- targets --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("transform", ["", "log", "rank"])
def test_units_go_there_and_back_with_their_jacobian(transform):
    y = np.random.default_rng(2).lognormal(1, 0.8, 400)
    table = brg.Table(np.arange(400.0)[:, None], y, target="price")
    data = table.split(KEY, target_transform=transform)
    units = data.own
    z = np.concatenate([data.y, data.y_test]).ravel().astype(float)
    np.testing.assert_allclose(np.sort(units.back(z)), np.sort(y), rtol=1e-4)
    np.testing.assert_allclose([data.y.mean(), data.y.std()], [0, 1], atol=1e-5)
    assert Units.of(units.attrs()) == units and units.attrs()["units"] == "price"
    at = np.quantile(y, [0.001, 0.013, 0.3, 0.77, 0.998])
    step = 1e-6 * at
    slope = (units.forward(at + step) - units.forward(at - step)) / (2 * step)
    np.testing.assert_allclose(units.log_jacobian(at), np.log(slope), atol=1e-4)
    # a density of the model, in own units, still integrates to one
    grid = np.sort(np.concatenate([units.back(np.linspace(-6, 6, 20_001)), np.linspace(y.min(), y.max(), 20_001)]))
    grid = grid[grid > 0] if transform == "log" else grid
    density = np.exp(stats.norm.logpdf(units.forward(grid)) + units.log_jacobian(grid))
    assert integrate.trapezoid(density, grid) == pytest.approx(1, abs=2e-3)


def test_targets_that_cannot_be_transformed_are_refused():
    table = brg.Table(np.arange(40.0)[:, None], np.arange(40.0))
    with pytest.raises(ValueError, match="'y' is 0 at row 0 .1 such rows., and has no logarithm there"):
        table.split(KEY, target_transform="log")
    with pytest.raises(ValueError, match="target_transform must be one of .*did you mean 'log'"):
        table.split(KEY, target_transform="logs")
    with pytest.raises(ValueError, match="holds classes, which have no log transform"):
        brg.Table(np.arange(40.0)[:, None], np.arange(40) % 2).labelled().split(KEY, target_transform="log")


def test_so_many_rows_are_fitted_as_asked_and_all_are_encoded():
    x = np.arange(100.0)[:, None]
    data = brg.Table(x, x[:, 0]).split(KEY, max_rows=20)
    assert data.x.shape == (20, 1) and data.x_test.shape == (25, 1)
    assert "75 rows to learn from, 25 held out; models are fitted to 20 of them" in data.encoding["encoding"].iloc[-1]
    whole = brg.Table(x, x[:, 0]).split(KEY)
    assert whole.encoder == data.encoder and whole.own == data.own


def test_gaps_of_dates_and_of_levels():
    """A missing time is the median day and no wave; a missing level is none of the levels; each is marked, last."""
    notes = []
    dates = Dates("when", missing=1, start=0.0, fill=3.5, cycles=("week",))
    found = dates.transform(pd.Series(pd.to_datetime(["1970-01-02 18:00", None])), notes)
    turn = 2 * np.pi * 1.75 / 7
    np.testing.assert_allclose(found, [[1.75, np.sin(turn), np.cos(turn), 0], [3.5, 0, 0, 1]], atol=1e-12)
    levels = Categories("what", missing=2, levels=("a", "b"), pooled=("c", "d"))
    found = levels.transform(pd.Series(["b", None, "c", "a"], dtype=object), notes)
    np.testing.assert_array_equal(found, [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0]])
    assert not notes

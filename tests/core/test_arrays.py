"""The door for arrays: the same numbers whatever holds them, or a refusal that names the entry."""

import decimal
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pandas as pd
import pytest

from bayes_brg.core import arrays
from bayes_brg.core.arrays import check_array, check_floats, read_array
from bayes_brg.core.checks import check_data, check_inputs

BITS = np.array([[0, 1], [1, 1], [0, 0], [1, 0]])

SAME = {
    "int64": BITS, "uint64": BITS.astype(np.uint64), "int8": BITS.astype(np.int8), "bool": BITS.astype(bool),
    "half": BITS.astype(np.float16), "bfloat16": BITS.astype(ml_dtypes.bfloat16), "80 bits": BITS.astype(np.longdouble),
    "int4": BITS.astype(ml_dtypes.int4), "objects": BITS.astype(object),
    "objects of many kinds": np.array([[0, True], [1.0, np.float32(1)], [decimal.Decimal(0), 0], [np.int8(1), False]],
                                      dtype=object),
    "list": BITS.tolist(), "masked nowhere": np.ma.masked_array(BITS, False),
    "frame": pd.DataFrame(BITS),
    "frame of bools and floats": pd.DataFrame({"a": BITS[:, 0] > 0, "b": BITS[:, 1] * 1.0}),
    "nullable": pd.DataFrame(BITS).astype("Int64"), "nullable bools": pd.DataFrame(BITS > 0).astype("boolean"),
    "jax": jnp.asarray(BITS), "jax half": jnp.asarray(BITS, jnp.bfloat16), "jax short": jnp.asarray(BITS, jnp.uint8),
}


@pytest.mark.parametrize("kind", SAME)
def test_numbers_are_the_same_whatever_holds_them(kind):
    for read in (check_array, check_floats, check_inputs):
        found = read(SAME[kind], "x")
        assert found.dtype in (bool, np.int32, np.float32, np.float64)
        np.testing.assert_array_equal(np.asarray(found, float), BITS)
    assert check_floats(SAME[kind], "x").dtype == np.float64


def other(value):
    out = BITS.astype(object)
    out[1, 0] = value
    return out


MASKED = np.ma.masked_array(BITS, BITS > 0)
REFUSED = {
    "masked": (MASKED, ValueError, r"x\[0, 1\] is masked \(4 of 8"),
    "list of masked rows": (list(MASKED), ValueError, r"x\[0\]\[1\] is masked"),
    "list with a masked entry": ([0.0, np.ma.masked], ValueError, r"x\[1\] is masked"),
    "NaN": (np.where(BITS > 0, np.nan, 0.0), ValueError, r"x\[0, 1\] is nan \(4 non-finite of 8\)"),
    "JAX's NaN": (jnp.where(BITS > 0, jnp.nan, 0.0), ValueError, r"x\[0, 1\] is nan"),
    "None": (other(None), ValueError, r"x\[1, 0\] is None, a missing value"),
    "NA": (other(pd.NA), ValueError, r"x\[1, 0\] is <NA>, a missing value"),
    "infinite in float32": (np.where(BITS > 0, 1e39, 0.0), ValueError, r"x\[0, 1\] is 1e\+39, .* infinite in float32"),
    "Python's big integers": ([10**400, 1], ValueError, "x holds an integer beyond float64"),
    "ragged": ([[0.0, 1.0], [1.0]], ValueError, "x is a list whose rows differ in length"),
    "ragged objects": (np.array([np.zeros(2), np.zeros(3)], dtype=object), ValueError, r"x\[0\] has shape \(2,\)"),
    "text": (BITS.astype(str), TypeError, "x must hold real numbers, got dtype <U"),
    "bytes": (BITS.astype("S"), TypeError, "x must hold real numbers"),
    "object": (other("red"), TypeError, r"x\[1, 0\] = 'red'"),
    "complex": (BITS * 1j, TypeError, "complex128; pass the real and the imaginary part"),
    "JAX's complex": (jnp.asarray(BITS * 1j), TypeError, "complex64"),
    "times": (BITS.astype("datetime64[s]"), TypeError, "x must hold real numbers, got times"),
    "spans": (BITS.astype("timedelta64[s]"), TypeError, "got times"),
    "records": (np.zeros(3, [("a", float)]), TypeError, "a dict of their fields"),
    "key": (jax.random.split(jax.random.key(0), 3), TypeError, r"x must hold real numbers, got dtype key<"),
    "frame with text": (pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}), TypeError, r"x\['b'\].*convert text"),
    "frame with NA": (pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}), ValueError,
                      r"x\['a'\]\[1\] is (<NA>|nan)"),
    "frame with NaN": (pd.DataFrame({"a": [1.0, 2.0], "b": [0.0, np.nan]}), ValueError, r"x\['b'\]\[1\] is nan"),
    "frame with times": (pd.DataFrame({"t": pd.date_range("2020", periods=2)}), TypeError, r"x\['t'\].*times"),
    "function": (np.sin, TypeError, "x"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_number_is_refused_by_name(kind):
    value, error, words = REFUSED[kind]
    with pytest.raises(error, match=words):
        check_array(value, "x")
    if isinstance(value, np.ndarray):
        with pytest.raises(error, match=r"x\['leaf'\]"):
            check_inputs({"leaf": value})


@pytest.mark.parametrize("empty, words", [
    (np.zeros((0, 2)), "no data points"), (np.zeros((3, 0)), "no columns"), ([], "empty"), ({}, "empty"),
    (None, "empty"),
    (pd.DataFrame(index=range(3)), "no columns"), (3.0, "scalar"),
])
def test_empty_inputs_are_refused(empty, words):
    with pytest.raises(ValueError, match=words):
        check_inputs(empty)


def test_integers_beyond_int32_become_floats_before_jax_sees_them():
    big = np.array([3_000_000_000 + 10_000_000 * i for i in range(8)])
    for value in (big, big.astype(np.uint64), big.tolist(), big.astype(object), pd.Series(big, dtype="Int64")):
        found = check_array(value, "y")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(found), big.astype(np.float32))
    assert check_array(np.array([2**31 - 1, -(2**31)]), "y").dtype == np.int32
    np.testing.assert_allclose(check_array(np.array([2**64 - 1, 0], np.uint64), "y"), [2.0**64, 0])
    x, y = check_data(big[:, None], big)
    assert float(x.min()) > 0 and float(y.min()) > 0


def test_values_that_float32_cannot_tell_apart_are_refused_or_named():
    minutes = 1_700_000_000_000 + 60_000 * np.arange(5)  # ms; float32 steps by 131,072 there
    with pytest.raises(ValueError, match=r"t: the values of .* lie between 1700000000000 and 1700000240000.*offset"):
        check_array(minutes, "t")
    with pytest.raises(ValueError, match=r"column \[1\]"):
        check_array(np.stack([np.arange(5), minutes], axis=1), "t")
    with pytest.warns(UserWarning, match="subtract an offset"):
        check_array(minutes.astype(float), "t")
    with pytest.warns(UserWarning, match="float32 moves each"):
        check_array(1e-50 * np.arange(3.0), "t")  # all zero in float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_array(minutes - minutes[0], "t")
        check_array(np.full(5, 1_700_000_000_001), "t")  # a constant stays one
        check_array(np.array([0.1 + 0.2, 0.3]), "t")  # a spread of rounding errors is nobody's
    with jax.enable_x64(True):
        np.testing.assert_array_equal(check_array(minutes, "t"), minutes)


def test_what_jax_holds_already_is_not_copied_and_looked_at_once(monkeypatch):
    x = jnp.arange(6.0).reshape(3, 2)
    assert check_array(x, "x") is x and check_inputs(x) is x
    monkeypatch.setattr(arrays, "_check_finite", None)
    assert check_array(x, "x") is x
    key = id(x)
    del x
    assert key not in arrays._finite
    assert jax.jit(lambda a: check_array(a, "x") + 1)(jnp.zeros(2)).shape == (2,)


def test_non_finite_values_pass_where_they_are_allowed():
    assert np.isnan(np.asarray(check_array(np.array([np.nan, 1.0]), "samples", finite=False))).sum() == 1
    assert np.isinf(read_array([np.inf], "cutoffs", finite=False)).all()
    with pytest.raises(ValueError, match="infinite in float32"):
        check_array(np.array([np.nan, 1e39]), "samples", finite=False)

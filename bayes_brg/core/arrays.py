"""The one door for arrays: what a user holds becomes an array of the same numbers, or is refused by name.

`read_array` keeps the values on the host, `check_array` hands them to JAX in its precision, `check_floats` to NumPy
code in float64. Arrays that are JAX's already pass through.
"""

from __future__ import annotations

import decimal
import numbers
import warnings
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["check_array", "check_floats", "read_array"]

RESOLUTION = 1e-3  # of its spread, by which rounding may move a column

# JAX arrays seen to be finite. They do not change, so one look is enough: on an accelerator each costs a transfer.
_finite: dict[int, weakref.ref] = {}


class NotNumbers(TypeError, ValueError):
    """Raised for arrays of anything but real numbers."""


def _refuse(name: str, what: str, remedy: str) -> NotNumbers:
    return NotNumbers(f"{name} must hold real numbers, got {what}; {remedy}")


def place(index: Any) -> str:
    """An index as it is written after a name; "" for a scalar."""
    return "[" + ", ".join(str(int(i)) for i in index) + "]" if len(index) else ""


def _check_finite(array: np.ndarray, name: str) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        raise ValueError(f"{name}{place(bad[0])} is {array[tuple(bad[0])]} ({len(bad)} non-finite of {array.size}); "
                         "remove or impute such entries")


def _of_jax(array: jax.Array, name: str, finite: bool) -> jax.Array:
    if not jnp.issubdtype(array.dtype, jnp.number) and array.dtype != bool:
        raise _refuse(name, f"dtype {array.dtype}", "pass numbers")
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise _refuse(name, f"dtype {array.dtype}", "pass the real and the imaginary part as columns of their own")
    if array.dtype.itemsize < 4 and array.dtype != bool:  # half precision overflows, short integers wrap round
        array = array.astype(jnp.float32 if jnp.issubdtype(array.dtype, jnp.floating) else jnp.int32)
    if isinstance(array, jax.core.Tracer) or not finite or not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    seen = _finite.get(id(array))
    if seen is None or seen() is not array:
        local = array.is_fully_addressable and all(d.platform == "cpu" for d in array.devices())
        if local or not bool(jnp.isfinite(array).all()):
            _check_finite(np.asarray(array), name)
        key = id(array)
        _finite[key] = weakref.ref(array, lambda _: _finite.pop(key, None))
    return array


def _unmasked(value: Any, name: str) -> Any:
    """`value` if no entry of it, or of the arrays it lists, is masked."""
    if isinstance(value, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(value)
        if mask.any():
            bad = np.argwhere(mask)
            raise ValueError(f"{name} is a masked array: {name}{place(bad[0])} is masked ({len(bad)} of {mask.size} "
                             "entries); leave those data out of all arrays: keep the rows where its .mask is False")
        return value.data
    if isinstance(value, (list, tuple)):
        for i, v in enumerate(value):
            if isinstance(v, (list, tuple, np.ma.MaskedArray)):
                _unmasked(v, f"{name}[{i}]")
    return value


def _from_objects(array: np.ndarray, name: str) -> np.ndarray:
    """Objects that are numbers, as numbers."""
    for index in np.ndindex(array.shape):
        v = array[index]
        if isinstance(v, (numbers.Real, np.bool_, decimal.Decimal)):
            continue
        where = f"{name}{place(index)}"
        if v is None or type(v).__name__ in ("NAType", "NaTType"):
            raise ValueError(f"{where} is {v}, a missing value; remove or impute such entries")
        if np.ndim(v):
            raise ValueError(f"{where} has shape {np.shape(v)} in an array of objects, whose rows differ in length; "
                             "pass an array (n, dim)")
        raise _refuse(name, f"dtype object, with {where} = {v!r}", "convert text and objects to numbers first")
    kinds = {type(v) for v in array.flat}
    if all(issubclass(k, (bool, np.bool_)) for k in kinds):
        return array.astype(bool)
    if all(issubclass(k, numbers.Integral) for k in kinds) and all(abs(int(v)) < 2**63 for v in array.flat):
        return array.astype(np.int64)
    try:
        return array.astype(np.float64)
    except OverflowError as error:  # Python's integers have no end
        raise ValueError(f"{name} holds an integer beyond float64: {error}; rescale {name}") from None


def _from_frame(frame: Any, name: str, finite: bool) -> np.ndarray:
    """A DataFrame's columns side by side, each read under its own name."""
    columns = [read_array(frame.iloc[:, i], f"{name}[{c!r}]", finite=finite) for i, c in enumerate(frame.columns)]
    return np.stack(columns, axis=1) if columns else np.empty((len(frame), 0))


def read_array(value: Any, name: str, *, finite: bool = True) -> Any:
    """The numbers of `value`, or a refusal that says which entry cannot be taken, and what to do.

    Parameters
    ----------
    value : array_like
        NumPy or JAX array, list, Series, DataFrame (its columns side by side), xarray DataArray.
    name : str
        What messages call it.
    finite : bool
        Whether NaN and infinity are refused.

    Returns
    -------
    numpy.ndarray or jax.Array
        Booleans, integers, float32 or float64. JAX's own arrays, and what is traced, stay with JAX.

    Raises
    ------
    NotNumbers
        Text, times, complex numbers, records, objects that are not numbers; a TypeError and a ValueError.
    ValueError
        Masked, missing or non-finite entries, rows that differ in length.
    """
    if isinstance(value, jax.Array):
        return _of_jax(value, name, finite)
    if hasattr(value, "columns") and hasattr(value, "iloc"):
        return _from_frame(value, name, finite)
    try:
        array = np.asarray(_unmasked(value, name))
    except (ValueError, TypeError, RuntimeError) as error:
        if "masked" in str(error):
            raise
        if "inhomogeneous" in str(error):
            raise ValueError(f"{name} is a list whose rows differ in length; pass an array (n, dim)") from None
        raise TypeError(f"{name} is not an array: {error}") from None
    dtype = array.dtype
    if dtype.kind == "O":
        array = _from_objects(array, name)
    elif dtype.kind in "fV" and jnp.issubdtype(dtype, jnp.floating):
        if dtype not in (np.float32, np.float64):  # half precision, and the 80 bits that JAX does not have
            array = array.astype(np.float32 if dtype.itemsize < 4 else np.float64)
    elif dtype.kind == "V" and jnp.issubdtype(dtype, jnp.integer):  # int4 and its like
        array = array.astype(np.int32)
    elif dtype.kind in "mM":
        raise _refuse(name, f"times (dtype {dtype})",
                      "pass a number of seconds or days since a start: (t - t[0]) / np.timedelta64(1, 'D')")
    elif dtype.kind == "c":
        raise _refuse(name, f"dtype {dtype}", "pass the real and the imaginary part as columns of their own")
    elif dtype.kind == "V":
        raise _refuse(name, f"records (dtype {dtype})", "pass a dict of their fields")
    elif dtype.kind not in "fiub":
        raise _refuse(name, f"dtype {dtype}", "convert text or objects to numbers first")
    if finite:
        _check_finite(array, name)
    return array


def narrow(array: np.ndarray, name: str, axes: tuple[int, ...] = ()) -> np.ndarray:
    """Floats, or integers beyond JAX's, in JAX's float precision, if their values outlive it."""
    target = np.dtype(jnp.result_type(float))
    if array.dtype.kind == "f" and array.dtype.itemsize <= target.itemsize:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(target)
    wide = "or keep 64 bits: jax.config.update('jax_enable_x64', True)"
    if array.dtype.kind == "f":
        lost = np.isinf(cast) & np.isfinite(array)
        if lost.any():
            index = np.argwhere(lost)[0]
            raise ValueError(f"{name}{place(index)} is {array[tuple(index)]:g}, which is infinite in {target} "
                             f"({lost.sum()} such entries of {lost.size}); rescale {name}, {wide}")
    axes = tuple(a for a in axes if a < array.ndim)
    if not array.size or not axes:
        return cast
    low, high = (np.asarray(end(array, axis=axes), np.float64) for end in (np.min, np.max))
    size, spread = np.maximum(abs(low), abs(high)), high - low
    info = np.finfo(target)
    # Rounding moves a value by half a unit in its last place; a spread of rounding errors is nobody's data.
    moved = np.maximum(0.5 * info.eps * size, np.where(size > 0, info.tiny, 0.0))
    small = (moved > RESOLUTION * spread) & (spread > 1e-13 * size)
    if small.any():
        column = place(np.argwhere(small)[0]) if small.ndim else ""
        at = np.unravel_index(np.argmax(small), small.shape)
        what = (f"{name}: the values of {'column ' + column if column else 'the array'} lie between {low[at]:.17g} and "
                f"{high[at]:.17g}, and {target} moves each by up to {moved[at]:.2g}")
        if array.dtype.kind in "iu":
            raise ValueError(f"{what}; subtract an offset, rescale, {wide}")
        warnings.warn(f"{what}; subtract an offset or rescale, {wide}", stacklevel=4)
    return cast


def check_array(value: Any, name: str, *, finite: bool = True, axes: tuple[int, ...] = (0,)) -> jax.Array:
    """`value` as a JAX array in JAX's precision: one copy to the device, none where it is there already.

    Parameters
    ----------
    value, name, finite
        As for `read_array`.
    axes : tuple of int
        Axes along which values are compared (the datum), so that what they differ by can be seen to survive rounding.

    Returns
    -------
    jax.Array

    Raises
    ------
    TypeError, ValueError
        As `read_array`; also finite values that are infinite in float32, and integers that neither JAX's integers nor
        its floats can tell apart.
    """
    array = read_array(value, name, finite=finite)
    if isinstance(array, jax.Array):
        return array
    if array.dtype.kind in "iu":
        info = np.iinfo(jax.dtypes.canonicalize_dtype(np.int64))
        if not array.size or (array.min() >= info.min and array.max() <= info.max):
            return jnp.asarray(array.astype(info.dtype, copy=False))
    return jnp.asarray(array if array.dtype.kind == "b" else narrow(array, name, axes))


def check_floats(value: Any, name: str, *, finite: bool = True) -> np.ndarray:
    """`value` as a NumPy array of float64, for code on the host."""
    return np.asarray(read_array(value, name, finite=finite)).astype(np.float64, copy=False)

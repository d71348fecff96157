"""ArviZ on both sides: the only module that imports it. 0.23 speaks of InferenceData, 1.x of DataTree.

Posteriors become xarray Datasets here, and come back; `store` writes those Datasets to disk. Site names are
escaped, because xarray and NetCDF refuse "/" in a variable's name and flax sites hold it; the original name is kept
in the attribute ``site`` and restored.
"""

from __future__ import annotations

import importlib.metadata
import json
import urllib.parse
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from numpyro import handlers
from numpyro.infer.util import log_density

from ..core.checks import check_inputs
from ..field.correlators import block_cumulants
from ..field.cumulants import Cumulants
from ..flow.flow import Flow
from ..posterior import Posterior, predict

__all__ = ["ess", "from_arviz", "from_numpyro", "hdi", "loo", "mcse", "rhat", "summary", "to_arviz"]

_DIMS = ("chain", "draw", "cutoff", "point", "output")


def _arviz() -> tuple[Any, bool]:
    """ArviZ, and whether it is 1.x. Imported when first needed: it takes a second, and 0.23 warns at import."""
    modern = int(importlib.metadata.version("arviz").split(".")[0]) >= 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz, modern


def _container(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any] | None = None) -> Any:
    """InferenceData (ArviZ 0.23) or DataTree (1.x) of named groups."""
    az, modern = _arviz()
    if modern:
        tree = xr.DataTree.from_dict({f"/{name}": ds for name, ds in groups.items()})
        tree.attrs.update(attrs or {})
        return tree
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not defined in the InferenceData scheme", category=UserWarning)
        return az.InferenceData(attrs=dict(attrs or {}), **groups)


# -- names ----------------------------------------------------------------------------------------------------
def escape(name: str, reserved: Iterable[str] = _DIMS) -> str:
    """A site's name as xarray and NetCDF can hold it: "/" becomes "%2F", and no variable is named as a dimension."""
    if name in reserved:  # percent-encode its first letter
        return f"%{ord(name[0]):02X}{name[1:]}"
    return name.replace("%", "%25").replace("/", "%2F")


def unescape(name: str) -> str:
    """The site's name that `escape` took."""
    return urllib.parse.unquote(name)


# -- inputs that are not one array ----------------------------------------------------------------------------
def leaf_variables(name: str, value: Any, axis: str | None = None) -> dict[str, Any]:
    """The arrays of inputs as variables of a Dataset: ``x``, or ``x['a']``, ``x[0]`` for those of a dict or tuple.

    The first dimension is `axis`, common to all; the others are of each leaf's own.
    """
    variables = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        label, array = escape(name + jax.tree_util.keystr(path)), np.asarray(leaf)
        lead = () if axis is None else (axis,)
        variables[label] = ((*lead, *(f"{label}_dim_{i}" for i in range(array.ndim - len(lead)))), array)
    return variables


def tree_names(name: str, value: Any) -> Any:
    """Inputs with the names of their arrays in place of these, as JSON holds it; None for other containers."""
    if isinstance(value, dict):
        parts = {k: tree_names(f"{name}[{k!r}]", v) for k, v in value.items()}
        return {"dict": parts} if all(isinstance(k, str) for k in parts) and None not in parts.values() else None
    if type(value) in (list, tuple):
        items = [tree_names(f"{name}[{i}]", v) for i, v in enumerate(value)]
        return None if None in items else {type(value).__name__: items}
    return name if hasattr(value, "shape") else None


def tree_from(names: Any, dataset: xr.Dataset) -> Any:
    """The inputs that `leaf_variables` took apart, by what `tree_names` gave."""
    if isinstance(names, str):
        return dataset[escape(names)].values
    ((kind, parts),) = names.items()
    if kind == "dict":
        return {k: tree_from(v, dataset) for k, v in parts.items()}
    return {"list": list, "tuple": tuple}[kind](tree_from(v, dataset) for v in parts)


# -- posteriors as Datasets -----------------------------------------------------------------------------------
def posterior_datasets(posterior: Posterior, reserved: Iterable[str] = ()) -> dict[str, xr.Dataset]:
    """Groups ``posterior`` and ``sample_stats``: all of a `Posterior` but its history.

    Scalars of ``stats`` are in the attribute ``scalars`` of ``sample_stats``, as JSON.
    """
    lead = (posterior.num_chains, posterior.num_draws)
    coords = {"chain": np.arange(lead[0]), "draw": np.arange(lead[1])}
    reserved = (*_DIMS, *reserved)
    variables = {}
    for site, draws in posterior.samples.items():
        name = escape(site, reserved)
        dims = ("chain", "draw", *(f"{name}_dim_{i}" for i in range(np.ndim(draws) - 2)))
        variables[name] = xr.Variable(dims, np.asarray(draws), {"site": site})
    attrs = {"method": posterior.method, "trained": json.dumps(list(posterior.trained)),
             "inference_library": "bayes_brg"}
    arrays, scalars = {}, {}
    for key, value in posterior.stats.items():
        name, shape = escape(key), np.shape(value)
        if shape == ():
            scalars[key] = _plain(value, f"stats[{key!r}]")
            continue
        known: tuple[str, ...] = ()
        if shape[:2] == lead:
            known = ("chain", "draw")
        elif shape == lead[:1]:
            known = ("chain",)
        dims = (*known, *(f"{name}_dim_{i}" for i in range(len(shape) - len(known))))
        arrays[name] = xr.Variable(dims, np.asarray(value), {"stat": key})
    return {
        "posterior": xr.Dataset(variables, coords, attrs),
        "sample_stats": xr.Dataset(arrays, coords, {"scalars": json.dumps(scalars)}),
    }


def posterior_from_datasets(posterior: xr.Dataset, sample_stats: xr.Dataset | None = None) -> Posterior:
    """The `Posterior` that `posterior_datasets` took; foreign Datasets with dims chain and draw work as well."""
    samples = {}
    for name, variable in posterior.data_vars.items():
        if "output_of" in variable.attrs or "loss_of" in variable.attrs:  # measured on the draws, not sites
            continue
        if "chain" not in variable.dims or "draw" not in variable.dims:
            raise ValueError(f"posterior variable {name!r} has dims {variable.dims}; draws need 'chain' and 'draw'")
        site = variable.attrs.get("site") or unescape(str(name))
        samples[site] = variable.transpose("chain", "draw", ...).values
    if not samples:
        raise ValueError("the posterior group holds no site; its variables are "
                         f"{', '.join(map(str, posterior.data_vars)) or 'none'}")
    stats: dict[str, Any] = {}
    if sample_stats is not None:
        stats = json.loads(sample_stats.attrs.get("scalars", "{}"))
        for name, variable in sample_stats.data_vars.items():
            key = variable.attrs.get("stat") or unescape(str(name))
            order = [d for d in ("chain", "draw") if d in variable.dims]
            stats[key] = jnp.asarray(variable.transpose(*order, ...).values)
    trained = tuple(json.loads(posterior.attrs.get("trained", "[]")))
    return Posterior(samples, stats, posterior.attrs.get("method", "given"), trained)


def _plain(value: Any, name: str) -> Any:
    """A scalar as JSON holds it."""
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        value = np.asarray(value).item()
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise TypeError(f"{name} is {type(value).__name__}; stats hold arrays, numbers, booleans and text")
    return value


# -- to and from ArviZ ----------------------------------------------------------------------------------------
def flow_variables(phi: xr.DataArray, loss: xr.DataArray | None = None) -> dict[str, xr.DataArray]:
    """φ and loss along a flow with the sampling dimensions first, as ArviZ has them."""
    out = {"phi": phi.transpose("chain", "draw", "cutoff", "point", "output").assign_attrs(
        output_of="network", cutoff_units="per datum")}
    if loss is not None:
        out["loss"] = loss.transpose("chain", "draw", "cutoff").assign_attrs(
            loss_of="network", long_name="mean loss over points")
    return out


_CUMULANT_ENTRIES = 10_000


def cumulant_variables(k: Cumulants) -> xr.Dataset:
    """Cumulants of blocks of draws as ArviZ reads draws: ``draw`` is the block, within its chain.

    Parameters
    ----------
    k : Cumulants
        From `block_cumulants`.

    Returns
    -------
    xarray.Dataset
        ``mean`` (chain, draw, [cutoff,] point), ``k2`` (..., point, point2), ``k3`` and ``k4`` with further legs,
        in units of φ to their power.
    """
    lead = ("chain", "draw") if k.cutoff is None else ("cutoff", "chain", "draw")
    if np.ndim(k.mean) != len(lead) + 1:
        raise ValueError("these cumulants are not those of blocks of draws, which ArviZ takes for draws: "
                         "pass brg.block_cumulants(phi)")
    size = k.num_points
    names: list[Any] = list(range(size)) if k.labels is None else list(k.labels)
    if names and isinstance(names[0], tuple):  # (point, output): one text each, since netCDF holds no pairs
        names = [", ".join(map(str, name)) for name in names]
    legs = ("point", "point2", "point3", "point4")
    found = {n: np.asarray(a) for n, a in (("mean", k.mean), ("k2", k.k2), ("k3", k.k3), ("k4", k.k4))
             if a is not None}
    entries = max(int(np.prod(a.shape[len(lead):])) for a in found.values())
    if entries > _CUMULANT_ENTRIES:
        raise ValueError(f"the highest cumulant has {entries} entries at each cutoff, a table nobody reads; take fewer "
                         f"points than {size}, or a lower order")
    coords: dict[str, Any] = {leg: names for leg in legs[:max(1, len(found))]}
    coords |= {"chain": np.arange(np.shape(k.mean)[-3]), "draw": np.arange(np.shape(k.mean)[-2])}
    if k.cutoff is not None:
        coords["cutoff"] = np.asarray(k.cutoff)
    variables = {}
    for name, array in found.items():
        rank = array.ndim - len(lead)
        variables[name] = xr.DataArray(array, dims=(*lead, *legs[:rank])).transpose("chain", "draw", ...)
    return xr.Dataset(variables, coords, {"cumulants_of": "phi", "draws_per_block": k.num_samples or 0})


def to_arviz(obj: Any, model: Any = None, x: Any = None, y: Any = None, *, cumulants: int | None = None,
             batch_size: int | None = None, progress_bar: bool = True) -> Any:
    """A posterior or a flow as ArviZ reads it.

    Parameters
    ----------
    obj : Posterior, Flow, xarray.Dataset or Cumulants
        A Dataset is the flow of a stored run (``brg.load_run(path).flow``). Cumulants are those of blocks of draws,
        from ``brg.block_cumulants(phi)``: they become the group ``posterior``, a block a draw.
    model : callable, optional
        For a Posterior: the model whose output to include, together with `x`. A Flow knows its own.
    x : array (n, dim), optional
        Inputs at which to include the output φ. A Flow needs it. Those of a dict or tuple become the variables
        ``x['a']`` or ``x[0]`` of ``constant_data``, each of its own shape.
    y : array (n, ...), optional
        Targets: a Flow then includes its loss, and the group ``observed_data`` is made.
    cumulants : int, optional
        Include the cumulants of φ to this order, 1 to 4, in a group of that name.
    batch_size : int, optional
        Draws predicted at once.
    progress_bar : bool
        Show a bar on a terminal.

    Returns
    -------
    arviz.InferenceData (ArviZ 0.23) or xarray.DataTree (ArviZ 1.x)
        Of a Posterior: group ``posterior`` with every site (chain, draw, *site shape), escaped where a name holds
        "/" (the attribute ``site`` has the original), and ``phi`` (chain, draw, point, output) where model and x are
        given; group ``sample_stats``. Of a Flow: ``phi`` (chain, draw, cutoff, point, output) and, with y, ``loss``
        (chain, draw, cutoff), so that ``arviz.summary`` gives mean, sd, interval, ESS and R-hat of φ at each
        (cutoff, point). Λ is per datum. With `cumulants`, a group ``cumulants``: ``mean``, ``k2``, ``k3``, ``k4`` of
        blocks of consecutive draws, (chain, draw, [cutoff,] point, point2, ...), where ``draw`` is the block. So
        ``arviz.summary(idata, group="cumulants")`` gives each cumulant with a Monte-Carlo error that respects the
        autocorrelation of the draws (`block_cumulants` says how).

    Raises
    ------
    TypeError
        If `obj` is none of these.
    ValueError
        If a Flow comes without x, or only one of model and x is given, or cumulants are asked of an object without φ.
    """
    if isinstance(obj, Cumulants):
        return _container({"posterior": cumulant_variables(obj)}, {"inference_library": "bayes_brg"})
    groups = _groups(obj, model, x, y, batch_size, progress_bar)
    if cumulants is not None:
        if "phi" not in groups["posterior"] or "output_of" not in groups["posterior"]["phi"].attrs:
            raise ValueError("cumulants are those of the output phi: pass model and x too")
        groups["cumulants"] = cumulant_variables(block_cumulants(groups["posterior"]["phi"], cumulants))
    for group, name, value in (("constant_data", "x", x), ("observed_data", "y", y)):
        if value is not None:
            variables = leaf_variables(name, check_inputs(value, name), "point")
            groups[group] = xr.Dataset(variables, {"point": np.arange(len(next(iter(variables.values()))[1]))})
    return _container(groups, {"inference_library": "bayes_brg"})


def _groups(obj: Any, model: Any, x: Any, y: Any, batch_size: int | None, show: bool) -> dict[str, xr.Dataset]:
    """What `to_arviz` makes of the object itself."""
    if isinstance(obj, xr.Dataset):
        if not {"phi", "cutoff"} <= set(obj.variables):
            raise ValueError(f"the Dataset has no flow: it needs 'phi' and 'cutoff', it has {', '.join(obj.variables)}")
        return {"posterior": xr.Dataset(flow_variables(obj["phi"], obj.get("loss")))}
    if isinstance(obj, Posterior):
        if (model is None) != (x is None):
            raise ValueError("pass both model and x to include the output phi, or neither")
        groups = posterior_datasets(obj, reserved=() if model is None else ("phi",))
        if model is not None:
            phi = np.asarray(predict(model, obj, x, batch_size, progress_bar=show))
            groups["posterior"]["phi"] = xr.DataArray(
                phi, dims=("chain", "draw", "point", "output"), attrs={"output_of": "network"},
                coords={"point": np.arange(phi.shape[2]), "output": np.arange(phi.shape[3])})
        return groups
    if not isinstance(obj, Flow):
        raise TypeError(f"to_arviz takes a Posterior, a Flow or the Dataset of a stored flow, got {type(obj).__name__}")
    if x is None:
        raise ValueError("a flow has outputs only at inputs: pass x=")
    phi, loss = obj.predict(x, progress_bar=show), None if y is None else obj.loss(x, y, progress_bar=show)
    return {"posterior": xr.Dataset(flow_variables(phi, loss)),
            "sample_stats": posterior_datasets(obj.posterior)["sample_stats"]}


def from_arviz(idata: Any) -> Posterior:
    """Draws from ArviZ: the groups ``posterior`` and ``sample_stats`` become a `Posterior`.

    Parameters
    ----------
    idata : arviz.InferenceData, xarray.DataTree or xarray.Dataset
        From either ArviZ; every posterior variable has dims chain and draw. Deterministic variables that are not
        parameters of your model may stay: `predict` and the flow read the model's sites only.

    Returns
    -------
    Posterior
        Site names as `to_arviz` took them.

    Raises
    ------
    TypeError
        If `idata` is none of these.
    ValueError
        If it has no posterior group, or a variable lacks chain or draw.
    """
    groups = {}
    for name in ("posterior", "sample_stats"):
        group = _group(idata, name)
        if group is not None:
            groups[name] = group
    if "posterior" not in groups:
        raise ValueError("there is no group 'posterior' to take draws from")
    return posterior_from_datasets(groups["posterior"], groups.get("sample_stats"))


def _group(data: Any, name: str) -> xr.Dataset | None:
    if isinstance(data, xr.Dataset):
        return data if name == "posterior" else None
    if isinstance(data, xr.DataTree):
        return data[name].to_dataset() if name in data.children else None
    if type(data).__name__ == "InferenceData":
        return data[name] if name in data.groups() else None
    raise TypeError(f"expected InferenceData, a DataTree or a Dataset, got {type(data).__name__}")


def from_numpyro(mcmc: Any) -> Posterior:
    """Draws of a finished ``numpyro.infer.MCMC``.

    Parameters
    ----------
    mcmc : numpyro.infer.MCMC
        After ``run``.

    Returns
    -------
    Posterior
        Its latent sites (deterministic ones are dropped), its extra fields as stats, and ``stats["log_joint"]`` in
        native coordinates, in nats, where the sampler knows its model and data.

    Raises
    ------
    ValueError
        If it has not run.
    """
    state = getattr(mcmc, "last_state", None)
    if state is None:
        raise ValueError("this MCMC has no draws; call mcmc.run(key, x, y) first")
    latent = getattr(state, mcmc.sampler.sample_field)
    draws = mcmc.get_samples(group_by_chain=True)
    samples = {name: array for name, array in draws.items() if not isinstance(latent, Mapping) or name in latent}
    stats = dict(mcmc.get_extra_fields(group_by_chain=True))
    model = getattr(mcmc.sampler, "model", None)
    if model is not None:
        args, kwargs = getattr(mcmc, "_args", ()), getattr(mcmc, "_kwargs", {})
        seeded = handlers.seed(model, jax.random.key(0))

        def one(params):
            with handlers.block():
                return log_density(seeded, args, kwargs, params)[0]

        flat = {name: a.reshape(-1, *a.shape[2:]) for name, a in samples.items()}
        stats["log_joint"] = jax.jit(lambda p: jax.lax.map(one, p))(flat).reshape(
            next(iter(samples.values())).shape[:2])
    method = type(mcmc.sampler).__name__.lower()
    return Posterior(samples, stats, method)


# -- what ArviZ measures --------------------------------------------------------------------------------------
def _dataset(data: Any, name: str) -> xr.Dataset:
    if isinstance(data, xr.DataArray):
        data = data.to_dataset(name=data.name or "phi")
    group = _group(data, "posterior")
    if group is None:
        raise ValueError(f"{name} has no group 'posterior'")
    missing = {"chain", "draw"} - set(group.dims)
    if missing:
        raise ValueError(f"{name} needs dims 'chain' and 'draw', it has {tuple(group.dims)}: a bare array "
                         "does not say which axis is the chain")
    return group


def rhat(data: Any) -> xr.Dataset:
    """Rank-normalised split R-hat of every variable, over chain and draw.

    Parameters
    ----------
    data : xarray.Dataset, DataArray, InferenceData or DataTree
        With dims chain and draw. Two chains or more of four draws or more, or NaN.

    Returns
    -------
    xarray.Dataset
        The other dimensions stay.
    """
    return _per_variable(data, "rhat")


def ess(data: Any, method: str = "bulk") -> xr.Dataset:
    """Effective sample size of every variable, over chain and draw.

    Parameters
    ----------
    data : xarray.Dataset, DataArray, InferenceData or DataTree
        With dims chain and draw.
    method : str
        ``"bulk"``, ``"tail"`` (the 5 % and 95 % quantiles), ``"mean"``, ``"sd"`` or ``"median"``.

    Returns
    -------
    xarray.Dataset
        The other dimensions stay. Units: independent draws.
    """
    return _per_variable(data, "ess", method=method, **({"prob": (0.05, 0.95)} if method == "tail" else {}))


def mcse(data: Any, method: str = "mean") -> xr.Dataset:
    """Monte-Carlo standard error of every variable's posterior mean (or ``"sd"``, ``"median"``), over chain and draw.

    Parameters
    ----------
    data : xarray.Dataset, DataArray, InferenceData or DataTree
        With dims chain and draw.
    method : str

    Returns
    -------
    xarray.Dataset
        The other dimensions stay. Units of the variable.
    """
    return _per_variable(data, "mcse", method=method)


def loo(log_likelihood: Any) -> xr.Dataset:
    """Leave-one-out cross-validation by Pareto-smoothed importance sampling.

    Parameters
    ----------
    log_likelihood : array (chain, draw, point)
        Of each datum at each draw of the posterior that was trained on all of them, in nats.

    Returns
    -------
    xarray.Dataset
        ``elpd`` (point): log density of each datum given all others, in nats. ``pareto_k`` (point): above
        ``good_k`` (an attribute) a datum is too influential for its entry to be trusted. ``p_loo``: effective number
        of parameters.
    """
    az, _ = _arviz()
    values = np.asarray(log_likelihood)
    coords = {"chain": np.arange(values.shape[0]), "draw": np.arange(values.shape[1])}
    # ArviZ takes the relative efficiency from the posterior group; the sum stands for the parameters.
    groups = {
        "posterior": xr.Dataset({"total": (("chain", "draw"), values.sum(axis=2))}, coords),
        "log_likelihood": xr.Dataset({"y": (("chain", "draw", "point"), values)}, coords),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # high Pareto k are reported by number
        found = az.loo(_container(groups), pointwise=True)
    old = hasattr(found, "elpd_loo")  # 0.23 names it so, 1.x says elpd
    elpd, p = (found.loo_i, found.p_loo) if old else (found.elpd_i, found.p)
    return xr.Dataset({"elpd": ("point", np.ravel(elpd)), "pareto_k": ("point", np.ravel(found.pareto_k)),
                       "p_loo": float(p)}, attrs={"good_k": float(found.good_k)})


def _per_variable(data: Any, function: str, **options: Any) -> xr.Dataset:
    az, _ = _arviz()
    group = _dataset(data, function).transpose("chain", "draw", ...)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant variables divide by zero; their answer is NaN
        out = getattr(az, function)(group, **options)
    return out if isinstance(out, xr.Dataset) else out.to_dataset()


def hdi(data: Any, prob: float = 0.94) -> xr.Dataset:
    """Shortest interval that holds `prob` of the draws, for every variable.

    Parameters
    ----------
    data : xarray.Dataset, DataArray, InferenceData or DataTree
        With dims chain and draw.
    prob : float
        Between 0 and 1.

    Returns
    -------
    xarray.Dataset
        A last dimension ``bound`` with coordinates "lower" and "upper", whatever the ArviZ.
    """
    if not 0 < prob < 1:
        raise ValueError(f"prob must lie between 0 and 1, got {prob!r}")
    az, modern = _arviz()
    group = _dataset(data, "hdi").transpose("chain", "draw", ...)
    out = az.hdi(group, prob=prob) if modern else az.hdi(group, hdi_prob=prob)
    out = out if isinstance(out, xr.Dataset) else out.to_dataset()
    out = out.rename({"ci_bound" if modern else "hdi": "bound"})
    return out.assign_coords(bound=["lower", "upper"]).transpose(..., "bound")


def summary(data: Any, model: Any = None, x: Any = None, y: Any = None, *, prob: float = 0.94,
            var_names: Iterable[str] | None = None):
    """Mean, sd, interval, ESS and R-hat of every entry: one table, the same under either ArviZ.

    Parameters
    ----------
    data : Posterior, Flow, Cumulants, InferenceData, DataTree or Dataset
        A Posterior or Flow, or the Cumulants of `block_cumulants`, goes through `to_arviz` first.
    model, x, y : optional
        As in `to_arviz`.
    prob : float
        Probability of the highest-density interval.
    var_names : iterable of str, optional
        Variables to keep; by default ``phi`` (and ``loss``) where outputs were asked for, else all.

    Returns
    -------
    pandas.DataFrame
        One row an entry, such as ``phi[0.5, 3, 0]``; columns ``mean, sd, hdi_lower, hdi_upper, mcse_mean, ess_bulk,
        ess_tail, r_hat``.
    """
    if isinstance(data, (Posterior, Flow, Cumulants)):
        data = to_arviz(data, model, x, y)
    elif isinstance(data, xr.Dataset) and "cutoff" in data.dims:
        data = to_arviz(data)
    group = _dataset(data, "summary").transpose("chain", "draw", ...)
    measured = [str(v) for v in group.data_vars if {"output_of", "loss_of"} & set(group[v].attrs)]
    names = list(var_names) if var_names is not None else measured or [str(v) for v in group.data_vars]
    unknown = [n for n in names if n not in group]
    if unknown:
        raise ValueError(f"no variable {', '.join(unknown)}; there are {', '.join(map(str, group.data_vars))}")
    # Column by column, because the two ArviZ name, round and define them differently.
    group, interval = group[names], hdi(group[names], prob)
    columns = {
        "mean": group.mean(("chain", "draw")), "sd": group.std(("chain", "draw"), ddof=1),
        "hdi_lower": interval.sel(bound="lower"), "hdi_upper": interval.sel(bound="upper"),
        "mcse_mean": mcse(group),
        "ess_bulk": ess(group), "ess_tail": ess(group, "tail"), "r_hat": rhat(group),
    }
    rows: list[str] = []
    for name in names:
        dims = [d for d in group[name].dims if d not in ("chain", "draw")]
        labels = [group[name][d].values for d in dims]
        for index in np.ndindex(*map(len, labels)):
            entry = ", ".join(f"{label[i]:g}" if label.dtype.kind in "fiu" else str(label[i])
                              for label, i in zip(labels, index, strict=True))
            rows.append(f"{unescape(name)}[{entry}]" if dims else unescape(name))
    table = {column: np.concatenate([np.ravel(ds[name].transpose(*[d for d in group[name].dims if d in ds[name].dims]))
                                     for name in names]) for column, ds in columns.items()}
    return pd.DataFrame(table, index=rows)

"""Figures show the numbers they are given, with their errors, and leave matplotlib as it was."""

from functools import partial

import jax
import matplotlib
import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

import bayes_brg as brg
from bayes_brg import plots
from bayes_brg.core.jackknife import block_jackknife
from bayes_brg.flow.critical_scale import CriticalScale
from bayes_brg.plots.style import _power

CUTOFFS = np.array([0, 0.01, 0.1, 1, 10])


def draws(seed=0, offset=0.0):
    z = np.random.default_rng(seed).normal(size=(1, 4, 50))
    scale = np.array([1, 1, 1.5, 10, 100])[:, None, None]
    return xr.DataArray(offset + scale * z, dims=("cutoff", "chain", "draw"), coords={"cutoff": CUTOFFS})


@pytest.fixture(autouse=True)
def closed():
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before  # the style stays inside


def line(ax, label):
    handles, labels = ax.get_legend_handles_labels()
    container = next(h for h, text in zip(handles, labels, strict=True) if label in text)
    return container.lines[0].get_data()


def test_loss_shows_medians_zero_and_the_critical_scale():
    loss = draws() ** 2
    ax = plots.loss_along_flow({"a": loss, "b": 2 * loss}, critical_scale=(0.4, 0.2, 0.7))
    assert isinstance(ax, Axes) and ax.get_xscale() == ax.get_yscale() == "log"
    x, y = line(ax, "median, b")
    np.testing.assert_allclose(y, 2 * np.median(loss.values.reshape(5, -1), axis=1))
    np.testing.assert_allclose(x[1:], CUTOFFS[1:])
    low, high = ax.get_xlim()
    assert low < x[0] < CUTOFFS[1]  # Λ = 0 stands at the left edge, and its tick says 0
    ax.figure.canvas.draw()
    assert ax.get_xticklabels()[0].get_text() == "0" and ax.get_xticks()[0] == pytest.approx(x[0])
    assert any("0.4 [0.2, 0.7]" in text.get_text() for text in ax.get_legend().get_texts())
    assert "per datum" in ax.get_xlabel()


def test_edgeworth_marginals_show_the_density_and_the_draws():
    z = np.random.default_rng(1).gamma(4.0, size=(2, 500, 3, 1))  # as predict gives
    figure = plots.edgeworth_marginals(z)
    assert len(figure.axes) == 5  # two points, density and ratio each, and the plane
    x, y = next(drawn for drawn in figure.axes[0].lines if "all of" in drawn.get_label()).get_data()
    np.testing.assert_allclose(y, brg.edgeworth_pdf(x[:, None], brg.cumulants(z.reshape(1000, 3)).at(0)), rtol=1e-10)
    assert "1000 draws" in figure.axes[0].get_legend_handles_labels()[1]
    assert len(plots.edgeworth_marginals(z[0, :, :1, 0]).axes) == 2  # one point
    named = xr.DataArray(z[..., 0], dims=("cutoff", "draw", "point"))
    k = brg.cumulants(z[0, ..., 0])
    for call, message in (
        (lambda: plots.edgeworth_marginals(named), "2 cutoffs"),
        (lambda: plots.edgeworth_marginals(named[0], k.at([0, 1])), "3 points"),
        (lambda: plots.edgeworth_marginals(named[0], weights=np.ones(3)), "3 weights for 500 draws"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_given_axes_are_used():
    figure, (one, two) = plt.subplots(1, 2)
    assert plots.loss_along_flow(draws() ** 2, ax=one) is one
    assert plots.distribution(draws().isel(cutoff=0), ax=two) is two
    assert plots.moments_along_flow(draws(), axes=[one, two]) is figure
    field, (wide, panels) = np.random.default_rng(3).normal(size=(200, 2)), plt.subplots(1, 5)
    assert plots.edgeworth_marginals(field, axes=list(panels)) is wide
    assert all(ax.has_data() for ax in panels)
    with pytest.raises(ValueError, match="2 points need 5 axes, got 4"):
        plots.edgeworth_marginals(field, axes=list(panels[:4]))


def test_series_differ_without_colour():
    ax = plots.loss_along_flow({str(i): draws(i) ** 2 for i in range(4)})
    looks = {(h.lines[0].get_linestyle(), h.lines[0].get_marker()) for h in ax.containers}
    assert len(looks) == 4


def dashes(shown):
    return shown._unscaled_dash_pattern


def look(number):
    """Colour, dashes and marker that the number-th series has."""
    wanted = Line2D([], [], linestyle=plots.LINES[number])
    return plots.COLOURS[number], dashes(wanted), plots.MARKERS[number]


def test_each_series_has_its_own_line_in_order():
    """Six methods in every figure of lines: the look of each, and no two alike."""
    six = {f"m{i}": draws(i) ** 2 for i in range(6)}
    table = {m: xr.Dataset({"mass": (("cutoff", "point"), v.values.mean((1, 2))[:, None])}, {"cutoff": CUTOFFS})
             for m, v in six.items()}
    shown = {
        "loss": [c.lines[0] for c in plots.loss_along_flow(six).containers],
        "mean": [c.lines[0] for c in plots.moments_along_flow(six).axes[0].containers],
        "variance": [c.lines[0] for c in plots.moments_along_flow(six).axes[1].containers],
        "coupling": [c.lines[0] for c in plots.coupling_along_flow(table, "mass").containers],
        "stiff": [one for one in plots.stiff_fraction_along_flow(
            {m: v.mean(("chain", "draw")) for m, v in six.items()}).lines if one.get_label() in six],
    }
    for name, lines in shown.items():
        assert [(one.get_color(), dashes(one), one.get_marker()) for one in lines] == [
            look(i) for i in range(6)], name
    assert all(len({look(i)[part] for i in range(6)}) == 6 for part in range(3))
    ax = plots.distribution({m: v.isel(cutoff=0) for m, v in six.items()})
    curves = [one for one in ax.lines if len(one.get_xdata()) == 400]
    assert [dashes(one) for one in curves] == [look(i)[1] for i in range(6)]
    assert [str(p.get_linestyle()) for p in ax.patches] == [str(Patch(linestyle=one).get_linestyle())
                                                            for one in plots.LINES]


def bars(container):
    """Ends of the error bars, (point, 2)."""
    return np.array([segment[:, 1] for segment in container.lines[2][0].get_segments()])


def test_loss_has_its_errors_its_band_and_the_critical_interval():
    loss = draws() ** 2
    ax = plots.loss_along_flow(loss, critical_scale=(0.4, 0.2, 0.7))
    flat = loss.values.reshape(5, -1)
    median, error = np.median(flat, axis=1), 1.96 * block_jackknife(partial(np.median, axis=-1), flat)
    np.testing.assert_allclose(bars(ax.containers[0]), np.stack([median - np.minimum(error, 0.9 * median),
                                                                  median + error], axis=1))
    band = ax.collections[0].get_paths()[0].vertices
    for end in np.quantile(flat, (0.05, 0.95), axis=1):
        assert np.isin(end.round(9), band[:, 1].round(9)).all()
    span = ax.patches[0]
    assert [span.get_x(), span.get_x() + span.get_width()] == pytest.approx([0.2, 0.7])
    wide = np.where(np.arange(200) < 100, 1e-3, 10.0)[None] * np.ones((5, 1))  # half a median: the error reaches 0
    wide = xr.DataArray(wide.reshape(5, 4, 50), dims=loss.dims, coords=loss.coords)
    ends = bars(plots.loss_along_flow(wide).containers[0])
    assert (ends[:, 0] > 0).all()


def test_couplings_are_shown_with_their_errors():
    value, error = np.array([1.0, -2.0, 3.0, -4.0, 5.0]), np.arange(1, 6) / 10
    table = xr.Dataset({"mass": (("cutoff", "point"), np.stack([0 * value, value], axis=1)),
                        "mass_sem": (("cutoff", "point"), np.stack([error, error], axis=1))}, {"cutoff": CUTOFFS})
    ax = plots.coupling_along_flow({"a": table, "b": table}, "mass", point=1)
    np.testing.assert_allclose(ax.containers[0].lines[0].get_ydata(), value)
    np.testing.assert_allclose(bars(ax.containers[0]), np.stack([value - 1.96 * error, value + 1.96 * error], axis=1))
    assert [c.lines[0].get_markerfacecolor() for c in ax.containers] == [plots.COLOURS[0], "white"]


def test_closed_forms_do_not_take_the_true_value_s_colour():
    names = ("mean", "mean_sem", "covariance", "covariance_sem")
    law = xr.Dataset({n: ("cutoff", np.linspace(1, 2, 5)) for n in names}, {"cutoff": CUTOFFS})
    figure = plots.moments_along_flow(draws(), truth=2.0, closed_form={"one": law, "two": law})
    shown = [next(one for one in figure.axes[0].lines if one.get_label() == name).get_color()
             for name in ("one", "two", "true value 2")]
    assert shown == [plots.COLOURS[1], plots.COLOURS[3], plots.COLOURS[2]]


def test_distribution_has_its_gaussian_and_the_truth():
    phi = draws(offset=3.0).isel(cutoff=0)
    ax = plots.distribution({"main": phi, "other": phi + 1}, truth=2.5, title="T")
    text = " ".join(t.get_text() for t in ax.get_legend().get_texts())
    assert f"mean {phi.values.mean():.3f} ± 0.0" in text and "main (200 draws)" in text and "true value 2.5" in text
    curve = next(item for item in ax.lines if len(item.get_xdata()) == 400)
    x, y = curve.get_data()
    assert np.trapezoid(y, x) == pytest.approx(1, abs=0.02)
    assert x[y.argmax()] == pytest.approx(phi.values.mean(), abs=0.05)
    patch = ax.patches[0]
    values, edges, _ = patch.get_data()
    assert (values * np.diff(edges)).sum() == pytest.approx(1, abs=0.02)


def test_moments():
    phi = draws(offset=2.0)
    figure = plots.moments_along_flow({"a": phi}, truth=2.0, critical_scale=CriticalScale(0.3, 0.2, 0.5, 0.9, ""))
    left, right = figure.axes
    flat = phi.values.reshape(5, -1)
    np.testing.assert_allclose(line(left, "a (200")[1], flat.mean(1))
    np.testing.assert_allclose(line(right, "a (200")[1], flat.var(1, ddof=1))
    bars = left.containers[0].lines[2][0].get_segments()
    half = np.array([(bar[1, 1] - bar[0, 1]) / 2 for bar in bars])
    np.testing.assert_allclose(half, 1.96 * flat.std(1) / np.sqrt(200), rtol=0.5)
    assert right.get_yscale() == "log"


@pytest.mark.parametrize(("critical", "shown"), [
    ((0.5, 0.4, 0.6), [0, 0.1, 1, 10]), (None, [0, 0.01, 1, 10]), ((np.nan,) * 3, [0, 0.01, 1, 10]),
])
def test_distributions_on_either_side(critical, shown):
    figure = plots.flow_distributions(draws(), critical_scale=critical)
    titles = [ax.get_legend().get_title().get_text() for ax in figure.axes]
    assert isinstance(figure, Figure) and len(titles) == 4
    for title, scale in zip(titles, shown, strict=True):
        assert _power(scale) in title
        if critical and np.isfinite(critical[0]):
            assert ("below" in title) == (scale < 0.5)


def test_chosen_cutoffs():
    assert len(plots.flow_distributions(draws(), cutoffs=[0.1, 9]).axes) == 2


def test_left_out_members_are_stated():
    phi = draws()
    phi[:, 1, 3] = np.nan
    ax = plots.loss_along_flow(phi**2)
    assert any("199 draws, 1 left out" in t.get_text() for t in ax.get_legend().get_texts())


def test_spectrum_tells_sites_apart_and_counts_directions():
    net = brg.mlp((3, 3, 3), activation="tanh", bias_std=1.0)
    x = np.random.default_rng(0).normal(size=(4, 2))
    post = brg.prior(net, x, key=jax.random.key(0), num_samples=4)
    metric = brg.fisher(net, post, x, progress_bar=False)
    ax = plots.spectrum(metric)
    assert len({(one.get_color(), str(one._dash_pattern)) for one in ax.lines}) == len(metric.sites) == 8
    shown = next(one for one in ax.lines if "w2 (9)" in one.get_label())
    np.testing.assert_allclose(shown.get_ydata(), np.median(
        -np.sort(-np.asarray(metric.stiffness["w2"]).reshape(4, 9), axis=1), axis=0))
    for number, one in enumerate(ax.lines):
        line = number + number // 6  # a seventh site has the first one's colour and another's line
        assert (one.get_color(), dashes(one)) == (plots.COLOURS[number % 6], look(line % 6)[1])
    full = plots.spectrum(brg.fisher(net, post, x, "full", progress_bar=False))
    assert full.lines[0].get_label() == "eigenvalues (4 of 37)"  # four data, 37 parameters


def test_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="it lacks chain"):
        plots.loss_along_flow(draws().isel(chain=0, drop=True))
    with pytest.raises(ValueError, match=r"several entries along point; choose one, as in phi.isel\(point=0\)"):
        plots.moments_along_flow(draws().expand_dims(point=3))
    with pytest.raises(ValueError, match="no cutoff above 0"):
        plots.loss_along_flow(draws().isel(cutoff=[0]))
    with pytest.raises(ValueError, match=r"1 finite draws \(with finite squares\) of 3"):
        plots.distribution([np.nan, 1.0, np.inf])
    couplings = xr.Dataset({"mass": (("cutoff", "point"), np.full((5, 1), np.nan))}, {"cutoff": CUTOFFS})
    with pytest.raises(ValueError, match="'mass' of the couplings at point 0 is finite at no cutoff"):
        plots.coupling_along_flow(couplings, "mass")


@pytest.mark.filterwarnings("error")
def test_values_too_large_are_named_and_not_an_empty_plot():
    huge = draws()
    huge[2] = 1e200
    for call in (plots.loss_along_flow, plots.moments_along_flow, lambda p: plots.distribution(p.isel(cutoff=2))):
        with pytest.raises(ValueError, match=r"200 draws of .* 1e\+200 at Λ = 0.1|0 finite draws \(with finite sq"):
            call(huge)
    some = draws()
    some[3, 1, 7] = 1e200
    ax = plots.loss_along_flow(some**2)
    assert any("199 draws, 1 left out" in t.get_text() for t in ax.get_legend().get_texts())

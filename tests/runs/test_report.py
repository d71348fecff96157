"""The report of a run: one page that stands alone, with every section, every number and no stranger."""

import base64
import json
import pathlib
import re
import shutil
import subprocess
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
from scipy import stats

import bayes_brg as brg
from bayes_brg.cli import main
from bayes_brg.io import store
from bayes_brg.io.manifest import record_anew
from bayes_brg.runs import html
from bayes_brg.runs.measures import summarize
from bayes_brg.runs.report import SECTIONS

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
REDUCED = {
    "coin": ["num_samples=100"],
    "wide_relu": ["num_members=24", "width=32", "num_train=40", "num_test=30", "num_probe=50", "num_epochs=20"],
    "deep_relu": ["num_members=64", "num_epochs=100"],
    "finite_width": ["num_draws=20000", "num_members=1000"],
    "cosnet": ["num_members=200", "num_mesh=8"],
    "diabetes": ["width=8", "num_warmup=60", "num_samples=40"],
    "breast_cancer": ["width=4", "num_warmup=60", "num_samples=40", "num_members=24", "num_epochs=50"],
    "digits": ["width=8", "num_train=100", "num_warmup=60", "num_samples=20", "num_members=24", "num_epochs=50"],
    "phi4": ["num_members=400", "num_warmup=60", "num_draws=5000"],
}
VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """Elements, their attributes, and the text of each section; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.sections, self.section = [], [], {}, None
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"]
            self.sections[self.section] = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "section":
            self.section = None

    def handle_data(self, data):
        if self.section is not None:
            self.sections[self.section] += data


def run_of(name, folder):
    out = folder / name
    assert main(["run", str(MODELS / f"{name}.py"), "--out", str(out), "--quiet", "--set", *REDUCED[name]]) == 0
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def wide(folder):
    return run_of("wide_relu", folder)


@pytest.fixture(scope="module")
def coin(folder):
    return run_of("coin", folder)


def sections_of(run):
    """What a report of this run has: "The table" only where there is one."""
    return [s for s in SECTIONS if s != "table" or (run / "encoding.csv").exists()]


def check(path):
    """What holds of every report; the page."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert list(page.sections) == sections_of(path.parent)
    assert "could not be made" not in text and "nan" not in re.sub(r'base64,[^"]*', "", text).lower().split()
    assert not {tag for tag, _ in page.elements} & {"script", "iframe", "object", "embed", "audio", "video"}
    anchors = {a["id"] for _, a in page.elements if "id" in a}
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            if name in attributes:
                value = attributes[name]
                assert value.startswith("data:") or (tag == "a" and value[:1] == "#" and value[1:] in anchors), value
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\(|@import", re.sub(r'base64,[^"]*', "", text))
    pictures = [a for tag, a in page.elements if tag == "img"]
    assert pictures
    for attributes in pictures:
        kind, data = attributes["src"].split(",", 1)
        assert kind == "data:image/png;base64" and len(attributes["alt"]) > 20
        raw = path.parent / "picture.png"
        raw.write_bytes(base64.b64decode(data, validate=True))
        image = matplotlib.image.imread(raw)
        raw.unlink()
        assert image.shape[:2] == (int(attributes["height"]), int(attributes["width"]))
        assert image[..., :3].std() > 0.01  # something is drawn
    assert len({a["alt"] for a in pictures}) == len(pictures)
    return page


@pytest.mark.filterwarnings("ignore:.*standard errors rest", "ignore:.*members diverged")
def test_report_of_an_ensemble(wide, capsys):
    assert main(["report", str(wide)]) == 0
    assert capsys.readouterr().out.strip() == str(wide / "report.html")
    page, run = check(wide / "report.html"), brg.load_run(wide)
    said = page.sections
    for method, table in run.summaries.items():
        assert method in said["numbers"]
        for value in table.to_numpy().ravel():
            assert html.number(float(value)) in said["numbers"]
    for method in run.methods:
        attrs = run.flows[method].attrs
        assert method in said["convergence"] and method in said["methods"]
        assert f"{attrs['critical_scale']:.3g}" in said["methods"]
        assert f"{int(run.spectra[method]['num_directions'].sum())} directions" in said["spectrum"]
    assert "Independent draws. Independent; 2" in said["convergence"]  # which have no chains to converge
    assert "w3 (weight space)" in said["convergence"]
    for name, value in run.settings.items():
        assert name in said["what"] and html.number(value) in said["what"]
        assert f"{name}={str(value).lower()}" in said["reproduce"]
    assert run.manifest["source"]["sha256"] in said["reproduce"] and "wide_relu.py" in said["reproduce"]
    assert run.manifest["versions"]["jax"] in said["what"] and "30 × 2" in said["what"]
    for stage, entry in run.manifest["stages"].items():
        assert stage in said["timings"] and f"{entry['seconds']:.1f}" in said["timings"]
    assert "coverage of 90% intervals" in said["calibration"] and "CRPS" in said["calibration"]
    assert "quartic coupling" in said["field"]
    assert "Experiment(extras=...)" in said["extras"]  # asked for by a setting alone


def test_scores_of_stored_outputs_are_those_of_the_model(wide):
    run, experiment = brg.load_run(wide), brg.load_experiment(MODELS / "wide_relu.py")
    from bayes_brg.runs.report import _scored, _Seen
    stored = _scored(_Seen(run, None), "readout").dataset
    model = experiment.model(experiment.with_settings(run.settings))
    made = brg.diagnostics.scores(model, run.posteriors["readout"], run.data["x_test"].values,
                                  run.data["y_test"].values).dataset
    for name in ("mean_log_predictive_density", "mean_crps", "rmse"):
        assert float(stored[name]) == pytest.approx(float(made[name]), rel=1e-3)


def test_a_kept_spectrum_is_that_of_the_metric(wide):
    run, experiment = brg.load_run(wide), brg.load_experiment(MODELS / "wide_relu.py")
    metric, kept = experiment.flow_of(run).metric, run.spectra["ensemble"]
    (site,) = metric.stiffness
    assert list(kept["group"]) == [site] and kept.sizes["rank"] == 32  # all of them
    values = -np.sort(-np.asarray(metric.stiffness[site]).reshape(24, 32), axis=1)
    assert kept["stiffness"].sel(group=site, quantile=0.5).values == pytest.approx(
        np.median(values, axis=0), rel=1e-4)


SENTENCES = {  # section: (words where the numbers bear the claim out, words where they do not)
    "summary": (["The loss is flat up to Λ", "is Gaussian as far as", "true value: as expected"],
                ["The loss is not flat up to Λ", "is not Gaussian: excess kurtosis", "true value: not as expected"]),
    "loss": (["The loss is flat up to Λ", "grown by 0%"], ["The loss is not flat up to Λ", "grown by 57%"]),
    "distributions": (["is Gaussian as far as"], ["is not Gaussian"]),
    "calibration": (["as they should within their errors"], ["they are too narrow"]),
    "methods": (["less that by ensemble: as expected"], ["less that by ensemble: not as expected"]),
    "convergence": (["Independent draws."], ["Converged in function space: no"]),
}


def made_up(run, path, good):
    """A run whose numbers bear every claim of its report out, or contradict it."""
    shutil.copytree(run, path)
    rng, made = np.random.default_rng(2), brg.load_run(path)
    data, size = made.data, made.data["y_test"].shape[0]
    centre = float(data["truth"].values[0])
    for number, method in enumerate(made.methods):
        flow, file = made.flows[method].copy(deep=True), made.file("flow", method)
        ideal = stats.norm.ppf((rng.permutation(24) + 0.5) / 24).reshape(4, 6)
        at = flow.attrs["characteristic_point"]
        flow["phi"][:] = rng.normal(0, 0.1, flow["phi"].shape)
        flow["phi"].values[:, :, :, at, 0] = centre + (ideal if good else ideal**5 + 40 + 400 * number)
        curve = np.where(flow["cutoff"] >= 1, 10.0, 1.0) if good else np.where(
            flow["cutoff"] >= 1, 10.0, np.where(flow["cutoff"] >= 0.1, 1.57, 1.0))
        flow["loss"].values[:] = curve[:, None, None] * (1 + 0.01 * rng.random((4, 6)))
        if not good:
            flow["phi"].values[0, 0, 0, 1] = np.nan
        flow["diverged"].values[:] = False
        store.write_datasets(file, {None: flow, "spectrum": made.spectra[method]})
        summarize(flow).to_csv(made.file("summary", method, ".csv"), index=False)
    data["y_test"].values[:, 0] = (1 if good else 6) * stats.norm.ppf((rng.permutation(size) + 0.5) / size)
    store.write_datasets(path / "data.nc", {None: data})
    record_anew(path)
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_verdict_of_a_report_turns(wide, folder):
    pages = [Page(brg.report(made_up(wide, folder / f"made_up_{good}", good)).read_text(encoding="utf-8")).sections
             for good in (True, False)]
    for section, words in SENTENCES.items():
        for page, said, unsaid in zip(pages, words, words[::-1], strict=True):
            for phrase in said:
                assert phrase in page[section], (section, phrase, page[section][:3000])
            for phrase in unsaid:
                assert phrase not in page[section], (section, phrase)


@pytest.mark.slow
def test_what_is_missing_is_said_and_how_to_get_it(coin, folder):
    said = check(brg.report(coin, folder / "coin.html")).sections
    assert "Give the file that declares the experiment" in said["calibration"]
    assert "--experiment FILE" in said["calibration"]
    assert "Experiment(..., couplings=3)" in said["field"]
    assert "no figures or tables of its own" in said["extras"]
    full = check(brg.report(brg.load_run(coin), folder / "full.html", experiment=MODELS / "coin.py")).sections
    assert "Brier score" in full["calibration"] and "Not here" not in full["calibration"]


def test_unfinished_run(coin, folder):
    part = folder / "part"
    shutil.copytree(coin, part)
    for name in ("flow_nuts.nc", "summary.csv", "summary_nuts.csv"):
        (part / name).unlink()
    page = Page(brg.report(part).read_text(encoding="utf-8"))
    assert list(page.sections) == sections_of(part)
    assert "summary.csv" in page.sections["summary"] and "Not here" in page.sections["loss"]
    assert "num_samples" in page.sections["what"] and "num_samples=100" in page.sections["reproduce"]


def test_an_unfinished_run_does_not_blame_its_experiment(wide, folder):
    """What comes last is said to be missing for now, not to be left out by the experiment."""
    part = folder / "early"
    shutil.copytree(wide, part)
    for path in (*part.glob("*.csv"), *part.glob("couplings*"), *part.glob("flow*"), *part.glob("figures/*")):
        path.unlink()
    manifest = json.loads((part / "manifest.json").read_text())
    store.write_manifest(part, manifest | {"finished": False})
    said = Page(brg.report(part).read_text(encoding="utf-8")).sections
    for name in ("field", "extras"):
        assert "not finished: run it again" in said[name] and "Experiment(" not in said[name]


def test_what_cannot_be_reported(coin, folder, capsys):
    with pytest.raises(FileNotFoundError, match="no such run"):
        brg.report(folder / "none")
    with pytest.raises(ValueError, match="run of 'coin', not of 'wide_relu'; give the file"):
        brg.report(coin, experiment=MODELS / "wide_relu.py")
    with pytest.raises(ValueError, match="is a directory"):
        brg.report(coin, folder)
    assert main(["report", str(folder / "none")]) == 2
    assert capsys.readouterr().err.startswith("bayes-brg: error: no such run")


def test_text_is_escaped():
    body = html.table({"<b>": "a & b"}, 'say "<i>"') + html.code("x < 1") + html.note("<script>")
    page = Page(html.page("<t>", ["<u>"], [html.Section("s", "S", body)]))
    assert not {tag for tag, _ in page.elements} & {"b", "i", "script", "t", "u"}
    assert "a & b" in page.sections["s"]


FRAME = ('<!DOCTYPE html><html><body style="margin:0"><iframe src="{page}" style="border:0;width:{width}px;'
         'height:{height}px"></iframe></body></html>')


def opened(page, width, folder, height=3000):
    """What a browser asks of the network and says on its console for a page at a width, and a picture of it."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium")
    frame, log, shot = page.parent / "frame.html", folder / "net.json", folder / f"{page.stem}{width}.png"
    frame.write_text(FRAME.format(page=page.name, width=width, height=height))  # a window has a least width
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'user'}",
         "--enable-logging=stderr", "--hide-scrollbars", f"--log-net-log={log}", f"--window-size={width},{height}",
         f"--screenshot={shot}", frame.as_uri()], capture_output=True, text=True, timeout=120)
    # Requests of the browser's own have the initiator "not an origin".
    asked = re.findall(r'"initiator":"([^"]*)"[^\n]*"url":"([^"]*)"', log.read_text())
    urls = {url for who, url in asked if who != "not an origin" and not url.startswith(("file:", "data:"))}
    return urls, [line for line in done.stderr.splitlines() if "CONSOLE" in line], matplotlib.image.imread(shot)


@pytest.mark.slow
def test_a_request_and_an_error_would_be_seen(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://stranger.invalid/x.png"><script>throw new Error("no")</script>')
    urls, console, _ = opened(page, 400, tmp_path, 300)
    assert urls == {"http://stranger.invalid/x.png"} and console


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(REDUCED))
def test_reports_in_a_browser(name, tmp_path):
    """Console, network and pictures of each report, at the widths of a laptop and of a phone."""
    assert {p.stem for p in MODELS.glob("*.py")} - {"table"} == set(REDUCED)  # which test_tables.py runs
    out = run_of(name, tmp_path)
    check(brg.report(out, experiment=MODELS / f"{name}.py"))
    for width in (1280, 400):
        urls, console, image = opened(out / "report.html", width, tmp_path)
        assert not urls and not console
        assert image.shape[1] >= width and image[:, :width, :3].std() > 0.05

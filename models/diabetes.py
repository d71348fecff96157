"""Regression on a real table: disease progression of 442 patients from ten measurements (scikit-learn's diabetes).

All weights of a small network are sampled by the default method of `brg.sample`; a randomised-MAP ensemble, which is
cheaper and not exact here, runs beside it. Scores and calibration are those of held-out patients, at Λ = 0. A table of
your own takes the bundled one's place:

    bayes-brg run models/diabetes.py
    bayes-brg run models/diabetes.py --data file.csv --target column
"""

import bayes_brg as brg


def table():
    from sklearn.datasets import load_diabetes
    found = load_diabetes()
    return brg.Table(found.data, found.target, found.feature_names, "progression")


def model(settings, table):
    return brg.mlp((settings.width,), activation="tanh", bias_std=1.0, likelihood=brg.gaussian(settings.noise))


experiment = brg.table_experiment(
    "diabetes", table, model, classes=False, couplings=2,
    settings={"width": 50, "noise": 0.7, "num_warmup": 500, "num_samples": 500, "num_members": 100,
              "num_epochs": 1000, "seed": 0},
)

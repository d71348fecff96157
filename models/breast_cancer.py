"""Two classes from a real table: 569 tumours, benign or malignant, from thirty measurements (scikit-learn's).

All weights of a small network are sampled by the default method of `brg.sample`; an ensemble tied to its prior draws
runs beside it. Scores and calibration are those of held-out tumours, at Λ = 0. A table of your own takes the bundled
one's place:

    bayes-brg run models/breast_cancer.py
    bayes-brg run models/breast_cancer.py --data file.csv --target column
"""

import bayes_brg as brg


def table():
    from sklearn.datasets import load_breast_cancer
    found = load_breast_cancer()
    return brg.Table(found.data, found.target, tuple(found.feature_names), "diagnosis", tuple(found.target_names))


def model(settings, table):
    if len(table.classes) != 2:
        raise ValueError(f"target {table.target!r} has {len(table.classes)} classes; models/breast_cancer.py tells two "
                         "apart, models/digits.py any number")
    return brg.mlp((settings.width,), activation="tanh", bias_std=1.0, likelihood=brg.bernoulli())


experiment = brg.table_experiment(
    "breast_cancer", table, model, classes=True, couplings=2,
    settings={"width": 16, "num_warmup": 300, "num_samples": 300, "num_members": 100, "num_epochs": 500, "seed": 0},
)

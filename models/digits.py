"""Ten classes from a real table: 1,797 handwritten digits of 8 × 8 points (scikit-learn's).

All weights of a small network are sampled by the default method of `brg.sample`; an ensemble tied to its prior draws
runs beside it. The posterior predicts held-out digits better than its single most probable network does, and says how
sure it is: scores.csv and figures/calibration.png. A table of your own takes the bundled one's place:

    bayes-brg run models/digits.py
    bayes-brg run models/digits.py --data file.csv --target column
"""

import bayes_brg as brg


def table():
    from sklearn.datasets import load_digits
    found = load_digits()
    return brg.Table(found.data, found.target, tuple(found.feature_names), "digit", tuple(range(10)))


def model(settings, table):
    return brg.mlp((settings.width,), len(table.classes), activation="tanh", bias_std=1.0,
                   likelihood=brg.categorical())


experiment = brg.table_experiment(
    "digits", table, model, classes=True,
    settings={"width": 16, "num_train": 500, "num_warmup": 150, "num_samples": 100, "num_members": 40,
              "num_epochs": 500, "seed": 0},
)

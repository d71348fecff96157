"""Regression on a real table: disease progression of 442 patients from ten measurements (scikit-learn's diabetes).

`models/table.py` on the bundled table: all weights of a small network, its noise, scales and relevances by the default
method of `brg.sample`, and simple peers beside them. Scores and calibration are those of held-out patients, at Λ = 0. A
table of your own takes the bundled one's place:

    bayes-brg run models/diabetes.py
    bayes-brg run models/diabetes.py --data file.csv --target column
"""

import bayes_brg as brg


def table():
    from sklearn.datasets import load_diabetes
    found = load_diabetes()
    return brg.Table(found.data, found.target, found.feature_names, "progression")


experiment = brg.table_experiment("diabetes", table, classes=False, couplings=2)

"""Two classes from a real table: 569 tumours, benign or malignant, from thirty measurements (scikit-learn's).

`models/table.py` on the bundled table: all weights of a small network by the default method of `brg.sample`, an
ensemble tied to its prior draws, and simple peers beside them. Scores and calibration are those of held-out tumours, at
Λ = 0. A table of your own takes the bundled one's place:

    bayes-brg run models/breast_cancer.py
    bayes-brg run models/breast_cancer.py --data file.csv --target column
"""

import bayes_brg as brg


def table():
    from sklearn.datasets import load_breast_cancer
    found = load_breast_cancer()
    return brg.Table(found.data, found.target, tuple(found.feature_names), "diagnosis", tuple(found.target_names))


experiment = brg.table_experiment(
    "breast_cancer", table, classes=True, couplings=2,
    settings={"width": 16, "num_warmup": 300, "num_samples": 300, "num_members": 100, "num_epochs": 500},
)

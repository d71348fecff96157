"""Ten classes from a real table: 1,797 handwritten digits of 8 × 8 points (scikit-learn's).

`models/table.py` on the bundled table, with a narrow network of wide priors: all weights by the default method of
`brg.sample`, an ensemble tied to its prior draws, and simple peers beside them. scores.csv, verdicts.csv and
figures/calibration.png hold them against the single most probable network on held-out digits. Five hidden units can
tell ten digits apart in several ways, over which the posterior averages; with more units (``--set width=20``) there is
less to average over. Which of the two predicts better, verdicts.csv says.

A table of your own takes the bundled one's place:

    bayes-brg run models/digits.py
    bayes-brg run models/digits.py --data file.csv --target column
"""

import bayes_brg as brg


def table():
    from sklearn.datasets import load_digits
    found = load_digits()
    return brg.Table(found.data, found.target, tuple(found.feature_names), "digit", tuple(range(10)))


def model(settings, table):
    return brg.table_network(settings, table, weight_std=(3.0, 10.0))


experiment = brg.table_experiment(
    "digits", table, model, classes=True,
    settings={"width": 5, "num_warmup": 150, "num_samples": 100, "num_members": 40, "num_epochs": 500},
)

"""A table of your own: what `bayes-brg run table.csv --target column` runs. Copy it, and change what you like.

Columns are read as they come (numbers, yes and no, dates, text, with gaps), encoded by the training rows alone, and
fitted by the default network for tables, whose posterior `brg.sample` draws. encoding.csv says what became of each
column; scores.csv and verdicts.csv hold the held-out scores against the single most probable network and against simple
peers of scikit-learn, at Λ = 0, in the target's own units.

    bayes-brg run table.csv --target column
    bayes-brg run table.csv --target column --set target_transform=log max_rows=2000
    bayes-brg run models/table.py --data table.csv --target column
"""

import bayes_brg as brg


def model(settings, table):
    """The network that is fitted, for inputs of `table` as they are encoded; `table.classes` is () for numbers."""
    return brg.table_network(settings, table)  # or brg.mlp(...), or any NumPyro model


experiment = brg.table_experiment("table", model=model, couplings=1,
                                  settings={"width": 50, "noise": 0.0, "num_warmup": 0, "num_samples": 0})

"""Simple peers by scikit-learn, where it is installed: fitted to what a network is given, to be shown beside it.

Each gives a Gaussian around its prediction, with its own estimate of the noise, or probabilities of classes.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from .predictive import Predictive

__all__ = ["PEERS", "installed", "peer_seed"]

GP_ROWS = 1000  # that a Gaussian process is fitted to: its cost grows with their third power


def installed() -> bool:
    """Whether scikit-learn is there."""
    return importlib.util.find_spec("sklearn") is not None


def peer_seed(key: Any) -> int:
    """A seed of NumPy's from a JAX key."""
    return int(jax.random.randint(key, (), 0, 2**31 - 1))


def _probabilities(model: Any, x_test: np.ndarray, num_classes: int, count: int) -> Predictive:
    """Probabilities of all classes, those not seen in training too; none below ½/count, as one more datum would be."""
    probs = np.full((len(x_test), num_classes), 0.5 / count)
    probs[:, np.asarray(model.classes_, int)] += model.predict_proba(x_test)
    return Predictive(probs=probs / probs.sum(axis=1, keepdims=True))


def ridge(x, y, x_test, *, key, num_classes: int = 0) -> Predictive:
    """Linear in the inputs, its penalty by evidence; noise and the weights' uncertainty in the density (BayesianRidge).

    For classes logistic regression, its penalty by three-fold cross-validation.
    """
    from sklearn.linear_model import BayesianRidge, LogisticRegression
    from sklearn.model_selection import cross_val_score

    if num_classes:
        def model(c: float) -> Any:
            return LogisticRegression(C=c, max_iter=1000)

        grid = np.logspace(-3, 2, 6)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # classes with fewer rows than folds, optimisers at their limit
            merits = [np.nan_to_num(cross_val_score(model(c), x, y, cv=3, scoring="neg_log_loss").mean(), nan=-np.inf)
                      for c in grid]
            return _probabilities(model(grid[int(np.argmax(merits))]).fit(x, y), x_test, num_classes, len(y))
    loc, scale = BayesianRidge().fit(x, y).predict(x_test, return_std=True)
    return Predictive(loc=loc, scale=scale)


def forest(x, y, x_test, *, key, num_classes: int = 0, num_trees: int = 300) -> Predictive:
    """A random forest; noise: the root mean square of its out-of-bag residuals."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    kind = RandomForestClassifier if num_classes else RandomForestRegressor
    model = kind(num_trees, oob_score=not num_classes, random_state=peer_seed(key), min_samples_leaf=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a row that no tree left out
        model.fit(x, y)
    if num_classes:
        return _probabilities(model, x_test, num_classes, len(y))
    scale = np.sqrt(np.mean((model.oob_prediction_ - y) ** 2))
    return Predictive(loc=model.predict(x_test), scale=np.full(len(x_test), scale))


def boosting(x, y, x_test, *, key, num_classes: int = 0, max_trees: int = 500) -> Predictive:
    """Gradient-boosted trees, as many as a fifth of the rows, held out, asks for, `max_trees` at most; noise: the root
    mean square of the residuals there. The trees are then grown on all rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.model_selection import train_test_split

    seed = peer_seed(key)
    kind = HistGradientBoostingClassifier if num_classes else HistGradientBoostingRegressor
    part = train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y if num_classes and np.bincount(
        y).min() > 1 else None)
    # Threads that wait for each other over a few rows cost more than they bring.
    with threadpool_limits(1 if len(x) < 10_000 else None):
        return _boosted(kind, part, x, y, x_test, seed, num_classes, max_trees)


def _boosted(kind, part, x, y, x_test, seed, num_classes, max_trees) -> Predictive:
    x_fit, x_held, y_fit, y_held = part
    model = kind(max_iter=max_trees, learning_rate=0.05, early_stopping=False, random_state=seed).fit(x_fit, y_fit)
    stages = list((model.staged_predict_proba if num_classes else model.staged_predict)(x_held))
    if num_classes:
        at = np.searchsorted(model.classes_, y_held).clip(0, len(model.classes_) - 1)
        losses = [-np.log(np.maximum(p[np.arange(len(at)), at], 1e-12)).mean() for p in stages]
    else:
        losses = [np.mean((p - y_held) ** 2) for p in stages]
    best = int(np.argmin(losses))
    model = kind(max_iter=best + 1, learning_rate=0.05, early_stopping=False, random_state=seed).fit(x, y)
    if num_classes:
        return _probabilities(model, x_test, num_classes, len(y))
    return Predictive(loc=model.predict(x_test), scale=np.full(len(x_test), np.sqrt(losses[best])))


def gp(x, y, x_test, *, key, num_classes: int = 0, max_rows: int = GP_ROWS) -> Predictive:
    """A Gaussian process: squared-exponential kernel with a length for each input, and noise, by evidence.

    Fitted to at most `max_rows` rows, drawn at random. For classes one length, with Laplace's approximation.
    """
    from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    seed = peer_seed(key)
    if len(x) > max_rows:
        rows = np.random.default_rng(seed).permutation(len(x))[:max_rows]
        x, y = x[rows], y[rows]
    width = np.sqrt(x.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lengths at their bounds, optimisers at their limit
        if num_classes:
            model = GaussianProcessClassifier(ConstantKernel(1.0) * RBF(width, (1e-2, 1e4)), random_state=seed)
            return _probabilities(model.fit(x, y), x_test, num_classes, len(y))
        kernel = ConstantKernel(1.0) * RBF(np.full(x.shape[1], width), (1e-2, 1e4)) + WhiteKernel(0.1, (1e-6, 10.0))
        model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed).fit(x, y)
        loc, scale = model.predict(x_test, return_std=True)
    return Predictive(loc=loc, scale=np.maximum(scale, 1e-6))


PEERS: dict[str, Callable[..., Predictive]] = {"ridge": ridge, "forest": forest, "boosting": boosting, "gp": gp}
"""Each called as ``peer(x, y, x_test, key=, num_classes=)``."""

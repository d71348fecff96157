"""A deep ReLU network, all of whose weights learn, flowed to the prior.

Three hidden layers with fan-in scaled weights, as the theory of infinite width has them. Members are randomised-MAP
fits: each fits its own noisy targets and is tied to its own prior draw. The field at the characteristic input and two
test inputs is followed along the flow: its cumulants and the couplings of its action. At the end of the flow stands
the prior, whose κ4 is that of a network of finite width.

    bayes-brg run models/deep_relu.py
    bayes-brg run models/deep_relu.py --set num_members=400 width=64
"""

import jax
import jax.numpy as jnp

import bayes_brg as brg

CHARACTERISTIC = jnp.array([1.0, -0.5])


def target(x):
    return jnp.sin(2 * x[..., :1]) + 0.5 * x[..., 1:]


def model(settings):
    return brg.mlp((settings.width,) * 3, activation="relu", weight_std=2**0.5, bias_std=0.1,
                   likelihood=brg.gaussian(settings.noise))


def data(settings, key):
    train_key, test_key, noise_key = jax.random.split(key, 3)
    x = jax.random.normal(train_key, (settings.num_train, 2))
    x_test = jax.random.normal(test_key, (settings.num_test, 2))
    y = target(x) + settings.noise * jax.random.normal(noise_key, (settings.num_train, 1))
    return brg.Data(x, y, x_test, target(x_test), characteristic=CHARACTERISTIC, truth=target(CHARACTERISTIC))


def probe(settings, key):
    return jax.random.normal(key, (settings.num_probe, 2))


def ensemble(model, x, y, key, settings):
    return brg.ensemble(model, x, y, key=key, num_members=settings.num_members, train="all", objective="randomized_map",
                        optimizer="adam", learning_rate=settings.learning_rate, num_epochs=settings.num_epochs)


experiment = brg.Experiment(
    name="deep_relu",
    model=model,
    data=data,
    probe=probe,
    infer={"ensemble": ensemble},
    metric={"kind": "diagonal", "at": "draw"},
    flow={"refill": "prior", "regulator": "sharp"},
    settings={"num_members": 1000, "width": 32, "num_train": 50, "num_test": 50, "num_probe": 100, "noise": 0.1,
              "learning_rate": 0.01, "num_epochs": 500, "seed": 0},
    couplings=3,
)

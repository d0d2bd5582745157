"""How long each preset trains each network."""

from __future__ import annotations

from .case import Plan

# The rates that the paper's authors tuned, over all of their methods, are 4.5e-4 to 1.35e-3 for the fully
# connected network and 4.3e-4 to 2.1e-3 for the ConvNet, in trainings that are longer than that of `desk`.
FC_RATES = (4.5e-4, 9e-4, 1.8e-3)
CNN_RATES = (5e-4, 1.2e-3, 2.4e-3)
SHORT_FC_RATES = (9e-4, 1.8e-3, 3.6e-3)
BATCH = 150

PLANS: dict[str, dict[str, Plan]] = {
    "ci": {
        "fc": Plan(BATCH, steps=20, seconds=0.03, rates=(9e-4,), seeds=1, points=2, evaluated=300, rounds=3),
    },
    "desk": {
        "fc": Plan(BATCH, 150, 1.25, SHORT_FC_RATES, seeds=4, points=5, evaluated=1000, rounds=30),
        "cnn": Plan(BATCH, 16, 3.0, (1.2e-3,), seeds=2, points=2, evaluated=300, rounds=3),
    },
    "paper": {
        "fc": Plan(BATCH, 20_000, 150.0, FC_RATES, seeds=5, points=40, evaluated=10_000, rounds=200),
        "cnn": Plan(BATCH, 20_000, 4000.0, CNN_RATES, seeds=5, points=40, evaluated=10_000, rounds=50),
    },
}

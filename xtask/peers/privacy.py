"""Prints what Opacus and Google's dp-accounting say of a list of histories: the golden values of lora-fed's accountants.

    python xtask/peers/privacy.py > crates/lora-fed/tests/data/opacus.json

Needs opacus 1.6.0 and dp-accounting 0.6.0. `rdp` and `order` are Opacus' epsilon and its best order; `pld` is
dp-accounting's pessimistic epsilon, the least of several grids finer than its default (on the
finest its rounding errors add up to more than is gained): within some millionths of the exact one.
"""

import json
import random
import sys

from dp_accounting.pld import privacy_loss_distribution
from opacus.accountants.analysis import rdp

# Opacus' own.
ORDERS = [1 + x / 10.0 for x in range(1, 100)] + list(range(12, 64))

TABLE = [
    (1.0, 0.01, 1000, 1e-5),
    (1.1, 256 / 60000, 14063, 1e-5),
    (0.5, 0.01, 500, 1e-5),
    (0.8, 0.02, 1000, 1e-5),
    (1.0, 0.1, 100, 1e-5),
    (2.0, 0.1, 1000, 1e-5),
    (4.0, 0.25, 2000, 1e-6),
    (1.5, 0.004, 10000, 1e-6),
    (1.0, 0.25, 10, 1e-5),
    (0.7, 0.001, 5000, 1e-7),
    (1.5, 0.04, 2250, 1e-5),
]


def random_rows(count):
    """Histories of all sizes, those whose epsilon is of some use."""
    draw = random.Random(20261126)
    while count:
        sigma = float(f"{0.5 * 12 ** draw.random():.3g}")
        q = float(f"{0.001 * 600 ** draw.random():.3g}")
        steps = int(3000 ** draw.random())
        delta = float(f"1e-{draw.randint(3, 9)}")
        if 0.05 < opacus(sigma, q, steps, delta)[0] < 40:
            count -= 1
            yield sigma, q, steps, delta


def opacus(sigma, q, steps, delta):
    curve = rdp.compute_rdp(q=q, noise_multiplier=sigma, steps=steps, orders=ORDERS)
    epsilon, order = rdp.get_privacy_spent(orders=ORDERS, rdp=curve, delta=delta)
    return float(epsilon), float(order)


def google(sigma, q, steps, delta, largest, finest):
    def on_grid(spacing):
        step = privacy_loss_distribution.from_gaussian_mechanism(
            sigma, value_discretization_interval=spacing, sampling_prob=q
        )
        return float(step.self_compose(steps).get_epsilon_for_delta(delta))

    return min(on_grid(largest / parts) for parts in (1, 4, finest))


def main():
    rows = []
    for sigma, q, steps, delta in [*TABLE, *random_rows(60)]:
        epsilon, order = opacus(sigma, q, steps, delta)
        pld = google(sigma, q, steps, delta, 2e-5 * max(1.0, epsilon / 3), 20 if epsilon < 0.5 else 4)
        rows.append({"sigma": sigma, "q": q, "steps": steps, "delta": delta, "rdp": epsilon, "order": order, "pld": pld})
        print(rows[-1], file=sys.stderr)
    print('{"made by": "python xtask/peers/privacy.py, opacus 1.6.0, dp-accounting 0.6.0", "rows": [')
    print(",\n".join(json.dumps(row) for row in rows))
    print("]}")


if __name__ == "__main__":
    main()

"""Writes what Flower's FedAvg makes of three clients' adapters: crates/lora-fed/tests/data/fedavg.safetensors.

    pip install flwr==1.41.0 safetensors
    python xtask/peers/fedavg.py crates/lora-fed/tests/data/fedavg.safetensors

Tensors `K/NAME` are client K's, f32, `mean/NAME` Flower's; the numbers of examples are in the file's metadata.
"""

import json
import sys

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from safetensors.numpy import save_file

SHAPES = {
    "l.lora_A.weight": (4, 24),
    "l.lora_B.weight": (16, 4),
    "m.lora_A.weight": (4, 7),
    "m.lora_B.weight": (5, 4),
    "m.lora_magnitude_vector": (5,),
}
EXAMPLES = [942, 188, 1931]


def main() -> None:
    random = np.random.default_rng(11)
    clients = [{name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()} for _ in EXAMPLES]
    records = [
        RecordDict({
            "arrays": ArrayRecord({name: Array(value) for name, value in client.items()}),
            "metrics": MetricRecord({"num-examples": n}),
        })
        for client, n in zip(clients, EXAMPLES)
    ]
    mean = aggregate_arrayrecords(records, "num-examples")
    tensors = {f"{k}/{name}": value for k, client in enumerate(clients) for name, value in client.items()}
    tensors |= {f"mean/{name}": array.numpy() for name, array in mean.items()}
    save_file(tensors, sys.argv[1], metadata={"examples": json.dumps(EXAMPLES)})


if __name__ == "__main__":
    main()

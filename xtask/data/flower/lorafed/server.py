"""Flower's own FedAvg, from an adapter's file to another."""

import json
import struct
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


def read(path):
    raw = Path(path).read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    head = json.loads(raw[8 : 8 + size])
    arrays = {}
    for name, entry in sorted(head.items()):
        if name != "__metadata__":
            assert entry["dtype"] == "F32", entry
            begin, end = entry["data_offsets"]
            numbers = np.frombuffer(raw[8 + size + begin : 8 + size + end], "<f4")
            arrays[name] = numbers.reshape(entry["shape"])
    return arrays


@app.main()
def main(grid, context):
    config = context.run_config
    start = ArrayRecord({name: Array(array) for name, array in read(config["start"]).items()})
    n = config["nodes"]
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=n, min_available_nodes=n)
    result = strategy.start(grid=grid, initial_arrays=start, num_rounds=config["num-server-rounds"], timeout=600)
    out = Path(config["out"])
    part = out.with_suffix(".part.npz")
    np.savez(part, **{name: array.numpy() for name, array in result.arrays.items()})
    part.rename(out)

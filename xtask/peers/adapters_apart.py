"""The largest difference between two adapters' numbers: adapters_apart.py A B, each .npz or .safetensors"""

import sys
from pathlib import Path

import numpy as np


def read(path):
    if path.endswith(".npz"):
        return dict(np.load(path))
    import json
    import struct

    raw = Path(path).read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    head = {name: e for name, e in json.loads(raw[8 : 8 + size]).items() if name != "__metadata__"}
    body = raw[8 + size :]
    each = lambda e: np.frombuffer(body[slice(*e["data_offsets"])], "<f4").reshape(e["shape"])
    return {name: each(e) for name, e in head.items()}


one, two = read(sys.argv[1]), read(sys.argv[2])
assert one.keys() == two.keys(), sorted(set(one) ^ set(two))[:5]
print(max(float(np.abs(one[name] - two[name]).max()) for name in one))

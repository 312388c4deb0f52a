"""How far apart two adapters are: adapters_apart.py A B START, each .npz or .safetensors

Prints the largest difference of a number, and the norm of all differences over that of B's way from START.
"""

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


one, two, start = map(read, sys.argv[1:4])
assert one.keys() == two.keys(), sorted(set(one) ^ set(two))[:5]
largest = max(float(np.abs(one[name] - two[name]).max()) for name in one)
norm = lambda a, b: sum(float(np.square(a[name].astype("f8") - b[name]).sum()) for name in a) ** 0.5
print(largest, norm(one, two) / max(norm(two, start), 1e-300) if start.keys() == two.keys() and all(start[n].shape == two[n].shape for n in two) else 0)

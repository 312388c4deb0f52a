import json
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()

@app.main()
def main(grid, context):
    start = ArrayRecord({"w": Array(np.array([0.5, -1.0, 2.0], np.float32)), "large": Array(np.zeros((3, 1 << 20), np.float32))})
    n = context.run_config["nodes"]
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=1.0, min_train_nodes=n, min_evaluate_nodes=n, min_available_nodes=n)
    result = strategy.start(grid=grid, initial_arrays=start, num_rounds=context.run_config["num-server-rounds"], timeout=180)
    out = Path(context.run_config["out"])
    out.with_suffix(".part").write_text(json.dumps(result.arrays["w"].numpy().astype(float).tolist()))
    out.with_suffix(".part").rename(out)

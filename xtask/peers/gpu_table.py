"""Prints lines `VARIANT WHO JSON` of a step's figures as a table: `gpu_table.py FILE BATCHxTOKENS`."""

import json
import sys
from pathlib import Path


def main() -> None:
    rows: dict[str, dict[str, dict]] = {}
    for line in Path(sys.argv[1]).read_text().splitlines():
        variant, who, step = (line.split(" ", 2) + ["", ""])[:3]
        rows.setdefault(variant, {})[who] = json.loads(step) if step.startswith("{") else {}
    peers = sorted({who for row in rows.values() for who in row} - {"ours"})
    heads = ["row", "tok/s", "GB", "of limit", "first loss s"]
    heads += [head for peer in peers for head in (f"{peer} tok/s", "ratio", f"{peer} GB", f"{peer} first loss s")]
    print("|" + "|".join(f" {head} " for head in heads) + "|\n" + "|---" * len(heads) + "|")
    for variant, row in rows.items():
        ours = row.get("ours", {})

        def cell(step: dict, key: str, scale: float = 1, digits: int = 0) -> str:
            return f"{step[key] * scale:.{digits}f}" if key in step else "-"

        cells = [f"{variant}-bf16-{sys.argv[2]}", cell(ours, "tok_s"), cell(ours, "peak_mb", 1e-3, 1)]
        cells += [cell(ours, "limit_fraction", digits=2), cell(ours, "first_loss_s", digits=1)]
        for peer in peers:
            step = row.get(peer, {})
            ratio = f"{ours['tok_s'] / step['tok_s']:.2f}" if "tok_s" in ours and "tok_s" in step else "-"
            cells += [cell(step, "tok_s"), ratio, cell(step, "peak_mb", 1e-3, 1), cell(step, "first_loss_s", digits=1)]
        print("|" + "|".join(f" {c} " for c in cells) + "|")


if __name__ == "__main__":
    main()

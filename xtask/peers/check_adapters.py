"""Reads adapter folders with PEFT and writes the logits they give: proof that PEFT reads what we write.

    python xtask/peers/check_adapters.py --model HF_FOLDER --ids FILE --out FILE ADAPTER_FOLDER...

FILE after --ids is a safetensors file with `input_ids` i64 [B, T]; the output holds one tensor f32 [B, T, V] for each
adapter, named as its folder. Everything is computed in f32. Where PEFT would only warn, this fails: keys that are
missing or left over, shapes that differ, a lora_B that stayed zero.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

from golden import logits_of
from hf import load_model
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel


def load_strictly(base: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with the adapter in `folder`, which must fill each of its tensors and have no other."""
    config = LoraConfig.from_pretrained(str(folder))
    model = get_peft_model(base, config).float()
    wanted = {key: tuple(t.shape) for key, t in get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    weights = load_file(folder / "adapter_model.safetensors")
    found = {key: tuple(t.shape) for key, t in weights.items()}
    if wanted != found:
        differ = sorted(set(wanted.items()) ^ set(found.items()))
        sys.exit(f"{folder}: {len(differ)} tensors are missing, left over or misshapen, first {differ[:4]}")
    report = set_peft_model_state_dict(model, dict(weights))
    missing = [key for key in report.missing_keys if "lora_" in key]
    if missing or report.unexpected_keys:
        sys.exit(f"{folder}: PEFT reports missing {missing[:4]}, unexpected {report.unexpected_keys[:4]}")
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    for key, tensor in weights.items():
        if not loaded[key].float().equal(tensor.float()):
            sys.exit(f"{folder}: PEFT did not take up {key}")
        if "lora_B" in key and not tensor.any():
            sys.exit(f"{folder}: {key} is all zero")
    return model.float().eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--ids", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("adapters", type=Path, nargs="+")
    args = parser.parse_args()
    names = [folder.resolve().name for folder in args.adapters]
    if len(set(names)) < len(names):
        sys.exit(f"two adapter folders have one name: {names}")
    ids = load_file(args.ids)["input_ids"]
    logits = {}
    for name, folder in zip(names, args.adapters):
        logits[name] = logits_of(load_strictly(load_model(args.model), folder), ids)
        print("read", folder, flush=True)
    save_file(logits, args.out)


if __name__ == "__main__":
    main()

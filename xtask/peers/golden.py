"""What a golden of an adapter is: the numbers PEFT gets from it. Imported by `tests/goldens/make.py` and `parity.py`.

    logits             f32 [B, T, V]   in evaluation mode
    loss               f32 [1]         mean cross-entropy over labels, shifted as transformers does
    labels             i64 [B, T]      input_ids with the first 6 positions of each row set to -100
    grad.<key>         f32             of the loss by each adapter tensor; <key> as in adapter_model.safetensors
    merged.<weight>    f32 [out, in]   W' after PEFT's safe merge
    curve              f32 [20]        loss before each of 20 AdamW steps on the same batch
    curve_clip         f32 [20]        the same with the norm clipped to 0.5 and 4 warm-up steps (the first has rate 0)
    curve_clip_norm    f32 [20]        gradient norms before clipping, along curve_clip
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

Tensors = dict[str, torch.Tensor]
STEPS, WARMUP, CLIP = 20, 4, 0.5


def peft_key(parameter: str) -> str:
    """A parameter's name in adapter_model.safetensors."""
    return parameter.replace("_vector.default.weight", "_vector").replace(".default.", ".")


def save_adapter(base: PreTrainedModel, config: LoraConfig, folder: Path, b_std: float, dtype: torch.dtype) -> None:
    """Writes the folder of a new adapter that looks trained: B is random, DoRA's magnitudes are off by 5 %."""
    name = config.base_model_name_or_path
    torch.manual_seed(0)
    model = get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = name
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(std=b_std)
            elif "magnitude" in parameter_name:
                parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
            if "lora_" in parameter_name:
                parameter.data = parameter.data.to(dtype)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()


def labels_of(ids: torch.Tensor) -> torch.Tensor:
    """Labels that supervise all but the first 6 positions of each row."""
    labels = ids.clone()
    labels[:, :6] = -100
    return labels


def logits_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.float().contiguous()


def trainable(model: PeftModel) -> Tensors:
    return {peft_key(name): p for name, p in model.named_parameters() if p.requires_grad}


def train(model: PeftModel, ids: torch.Tensor, rate: float, clip: bool) -> tuple[list[float], list[float]]:
    """Losses and (with `clip`) gradient norms of the steps."""
    parameters = list(trainable(model.train()).values())
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    # Building a schedule sets its first rate at once, so the plain curve must not have one.
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS) if clip else None
    losses, norms = [], []
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=labels_of(ids)).loss
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        if clip:
            norms.append(torch.nn.utils.clip_grad_norm_(parameters, CLIP).item())
        optimizer.step()
        if schedule:
            schedule.step()
    assert losses[-1] < losses[0] - 0.1, "the adapter did not learn"
    return losses, norms


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(base, folder, is_trainable=True)


def exact_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """transformers' loss with its sums in f64: over 49152 words torch's f32 cross-entropy moves gradients by 3e-4."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].double().flatten(0, 1), labels[:, 1:].flatten())


def adapter_golden(
    base: Callable[[], PreTrainedModel], folder: Path, ids: torch.Tensor, rate: float, merged: list[str], clip: bool
) -> Tensors:
    """The golden of the adapter in `folder`; `base` gives a fresh model, `merged` names the weights to keep."""
    model = load_adapter(base(), folder)
    golden = {"logits": logits_of(model, ids), "labels": labels_of(ids)}
    loss = exact_loss(model.train()(input_ids=ids).logits, labels_of(ids))
    loss.backward()
    golden["loss"] = loss.detach().float().reshape(1)
    golden |= {f"grad.{key}": p.grad.clone() for key, p in trainable(model).items()}
    model.zero_grad()
    golden["curve"] = torch.tensor(train(model, ids, rate, clip=False)[0])
    if clip:
        losses, norms = train(load_adapter(base(), folder), ids, rate, clip=True)
        golden |= {"curve_clip": torch.tensor(losses), "curve_clip_norm": torch.tensor(norms)}
    return golden | merged_weights(load_adapter(base(), folder), merged)


def merged_weights(model: PeftModel, names: list[str]) -> Tensors:
    weights = model.merge_and_unload(safe_merge=True).state_dict()
    return {f"merged.{name}": weights[name].clone() for name in names}

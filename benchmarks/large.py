"""The real-size world models with random weights: imagined frames a second, memory, share of the arithmetic limit.

The speed needs a GPU. Without one, the operations of a call are counted all the same. WVL_LARGE=tiny runs tiny networks
on the processor in place of the real ones: it shows that the benchmark works, its figures mean nothing.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from wvl_ros.world_model.rollout import first_kinematics

STEPS = (2, 4, 5, 10, 50)
BATCHES = (1, 4)
PUBLISHED = "Ctrl-World: about 5 s on an H100 for 1 s of robot time (50 steps, guidance)"
# Dense bfloat16 operations a second, by the makers' data sheets.
LIMITS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
_TINY: dict[str, dict[str, Any]] = {
    "svd": {
        "unet_config": {
            "block_out_channels": [32, 32],
            "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
            "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
            "num_attention_heads": [1, 1],
            "layers_per_block": 1,
        },
        "vae_config": {"block_out_channels": [32] * 4, "layers_per_block": 1},
    },
    "cosmos": {
        "transformer_config": {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2},
        "vae_config": {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    },
}


def run() -> dict[str, Any]:
    """Both models: operations of a call, and on a GPU its speed and memory for each number of steps and batch."""
    tiny = os.environ.get("WVL_LARGE") == "tiny"
    figures: dict[str, Any] = {}
    if not torch.cuda.is_available() and not tiny:
        figures["speed"] = "not measured: there is no GPU on this machine"
    for name in ("svd", "cosmos"):
        figures |= counted(name)
        if tiny:
            figures |= measured(name, "cpu", _TINY[name] | {"image_height": 64, "image_width": 64}, (2,), (1,))
        elif torch.cuda.is_available():
            figures |= measured(name, "cuda", {}, STEPS, BATCHES)
    return figures


def counted(name: str) -> dict[str, Any]:
    """Size and operations at full size, on the meta device: shapes without values, so no memory and no GPU."""
    with torch.device("meta"):
        model = _build(name, {}).to("meta")
        passes = _operations(lambda: _one_pass(model, name))
        codec = _operations(lambda: _codec(model, name))
    seconds = model.frames_per_call * int(model.config["actions_per_frame"]) / 15
    figures: dict[str, Any] = {
        f"{name}: parameters": sum(parameter.numel() for parameter in model.parameters()),
        f"{name}: a call": f"{model.frames_per_call} frames x 3 cameras, {seconds:.2f} s of robot time",
        f"{name}: TFLOP a denoising step, and for codec and heads": f"{passes / 1e12:.2f}, {codec / 1e12:.2f}",
    }
    for steps in STEPS:
        least = (steps * passes + codec) / LIMITS["H100"]
        figures[f"{name}: {steps} steps, least seconds on an H100 for 1 s of robot time"] = round(least / seconds, 3)
    return figures


def measured(
    name: str, device: str, config: dict[str, Any], steps: tuple[int, ...], batches: tuple[int, ...]
) -> dict[str, Any]:
    """Wall time, memory and share of the arithmetic limit of whole calls: history, denoising, heads, codec."""
    kind = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else kind)
    try:
        with torch.device(device):
            model = _build(name, config).to(device).eval()
    finally:
        torch.set_default_dtype(kind)
    height, width = int(model.config["image_height"]), int(model.config["image_width"])
    seconds = model.frames_per_call * int(model.config["actions_per_frame"]) / 15
    limit = next(
        (rate for card, rate in LIMITS.items() if device == "cuda" and card in torch.cuda.get_device_name()), 0.0
    )
    figures: dict[str, Any] = {}
    for batch in batches:
        pose = torch.tensor([[0.5, 0.0, 0.4, 3.1, 0.0, 0.0]]).repeat(batch, 1)
        now = first_kinematics(pose, torch.zeros(batch, 1), torch.cat([pose, torch.zeros(batch, 1)], 1))
        path = now[:, None].repeat(1, model.frames_per_call, 1)
        noise = torch.randn(batch, *model.noise_shape)
        with torch.inference_mode():
            memory = model.remember(torch.zeros(batch, 3, height, width, 3, dtype=torch.uint8), now, [""] * batch)
            for count in steps:
                call = functools.partial(model.imagine, memory, now, path, noise, count)
                facts = _timed(call, device, batch * model.frames_per_call * 3, batch * seconds, limit)
                figures[f"{name}, {height}x{width}, batch {batch}, {count} steps"] = facts
    return figures | ({"to compare": PUBLISHED} if device == "cuda" else {})


def _timed(call: Callable[[], Any], device: str, frames: int, robot_seconds: float, limit: float) -> str:
    operations, repeats = _operations(call), 3  # the first call warms up
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait(device)
    wall = (time.perf_counter() - began) / repeats
    facts = [
        f"{frames / wall:.1f} frames/s ({wall:.3f} s a call)",
        f"{wall / robot_seconds:.2f} s for 1 s of robot time",
    ]
    if device == "cuda":
        facts.append(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    facts.append(f"{operations / wall / limit:.0%} of the limit" if limit else "limit not known")
    return ", ".join(facts)


def _build(name: str, config: dict[str, Any]) -> Any:
    from wvl_ros.world_model.large import new_large

    if name == "cosmos":
        return new_large({"_class_name": "CosmosWorldModel"} | config)
    return new_large({"_class_name": "SVDWorldModel", "text": False} | config)  # text is embedded once a rollout


def _one_pass(model: Any, name: str) -> None:
    """One pass of the network of one rollout."""
    if name == "svd":
        total = len(model.config["history"]) + model.config["num_frames"]
        height, width = model.latent_size
        model(torch.zeros(1, total, 8, height, width), torch.zeros(()), torch.zeros(1, total, 1024))
    else:
        noise = torch.zeros(1, *model.noise_shape)
        given = noise[:, :, : model.given_latents]
        actions = torch.zeros(1, model.frames_per_call, 7)
        model(noise, torch.ones(1), given, actions, torch.zeros(1, 10), torch.zeros(1, 1, 1024))


def _codec(model: Any, name: str) -> None:
    """What a call does beside the passes, and how the heads read the last one."""
    height, width = model.config["image_height"], model.config["image_width"]
    if name == "svd":
        latents = torch.zeros(1, model.frames_per_call, *model.noise_shape[1:])
        model.decode(latents)
    else:
        given = 1 + int(model.config["history_frames"])
        model.encode(torch.zeros(1, given, 3, height, width, 3, dtype=torch.uint8))
        latents = torch.zeros(1, *model.noise_shape)
        model.decode(latents)
    model.judge(latents, torch.zeros(1, model.frames_per_call, 10))


def _operations(work: Callable[[], Any]) -> float:
    """Floating-point operations of matrix products, convolutions and attention."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()

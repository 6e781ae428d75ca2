"""`wvl import world-model`: a folder that `wvl` reads, from the weights that others published."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from wvl_ros.errors import ConfigError

LAYOUTS = {
    "ctrl-world": "Ctrl-World's .pt, with --clip for its tokenizer",
    "svd": "the folder of Stable Video Diffusion (unet, vae), with --clip",
    "cosmos": "Cosmos-Predict2's .pt, action-conditioned or video-to-world, with --vae",
    "cosmos-diffusers": "the folder of Cosmos-Predict2 in diffusers' layout (transformer, vae)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    what = "; ".join(f"{name}: {text}" for name, text in LAYOUTS.items())
    parser.add_argument("layout", choices=list(LAYOUTS), help=what)
    parser.add_argument("weights", type=Path, help="the published file or folder")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--clip", type=Path, help="the folder of CLIP ViT-B/32 (transformers' layout)")
    parser.add_argument("--vae", type=Path, help="the folder 'vae' of Cosmos-Predict2 (diffusers' layout)")
    parser.add_argument("--averaged", action="store_true", help="the running average (net_ema.) of a Cosmos .pt")
    parser.add_argument("--config", type=Path, help="a YAML file whose table `model` changes the model's settings")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Imports; returns the folder and what became of the published names."""
    from wvl_ros.world_model.large import save_large

    if args.out.exists() and any(args.out.iterdir()):
        raise ConfigError(f"'{args.out}' exists already and is not empty; choose another folder with --out.")
    model, account = _read(args, _settings(args.config))
    save_large(model, args.out)
    return {
        "folder": str(args.out),
        "model": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loaded": account.loaded,
        "left_out": account.left_out,
        "fresh": account.fresh,
        "summary": account.sentence(),
    }


def show(result: dict[str, Any]) -> None:
    """Prints what was imported."""
    print(f"{result['folder']}: {result['model']}, {result['parameters'] / 1e9:.3f} billion parameters")
    print(f"{result['summary']}.")


def _read(args: argparse.Namespace, config: dict[str, Any]) -> tuple[Any, Any]:
    if args.layout in ("ctrl-world", "svd"):
        from wvl_ros.world_model.svd import layout as svd

        clip = _needed(args.clip, "--clip", args.layout) if config.get("text", True) else None
        if args.layout == "svd":
            return svd.from_svd(args.weights, _needed(args.clip, "--clip", args.layout), **config)
        model, account = svd.from_ctrl_world(args.weights, **config)
        if clip is not None:
            model.tokenizer = svd.load_tokenizer(clip)
        return model, account
    from wvl_ros.world_model.cosmos import layout as cosmos

    if args.layout == "cosmos-diffusers":
        return cosmos.from_diffusers(args.weights, **config)
    vae = _needed(args.vae, "--vae", args.layout)
    return cosmos.from_published(args.weights, vae, averaged=args.averaged, **config)


def _needed(path: Path | None, option: str, layout: str) -> Path:
    if path is None:
        raise ConfigError(f"The layout '{layout}' needs {option}: {LAYOUTS[layout]}.")
    return path


def _settings(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    import yaml

    try:
        tables = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"The configuration '{path}' cannot be read: {error}") from error
    settings = dict(tables.get("model") or {}) if isinstance(tables, dict) else {}
    settings.pop("size", None)
    return settings

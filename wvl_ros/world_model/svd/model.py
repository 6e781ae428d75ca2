"""`SVDWorldModel`: six history frames, the present one and a pose for each -> four new frames, state and reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from wvl_ros.errors import ConfigError
from wvl_ros.world_model import poses
from wvl_ros.world_model.chunks import Arm, Call, Memory
from wvl_ros.world_model.heads import FeatureTap, FrameHeads, FrameOutput
from wvl_ros.world_model.kinematics import Kinematics
from wvl_ros.world_model.svd import edm
from wvl_ros.world_model.svd.unet import FrameTokens, use_one_token_attention
from wvl_ros.world_model.tracking import Tracking
from wvl_ros.world_model.views import STACKED_VIEWS, stack, to_pixels, to_uint8, unstack

VAE = {  # as published with Stable Video Diffusion
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 768,
    "scaling_factor": 0.18215,
}
TEXT = {"projection_dim": 512}  # CLIP ViT-B/32
NOISE_SHARE = 0.0  # `noise_aug_strength` of the added time ids: 0 in Ctrl-World's training


class ActionEncoder(nn.Module):
    """A pose (..., 7) in -1..1 -> the token (..., dim) that its frame attends to. Names as in Ctrl-World's weights."""

    def __init__(self, dim: int = 1024) -> None:
        super().__init__()
        self.action_encode = nn.Sequential(
            nn.Linear(7, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )

    def forward(self, pose: Tensor) -> Tensor:
        """(..., dim)."""
        return self.action_encode(pose)


class SVDWorldModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Stable Video Diffusion as a world model, in Ctrl-World's arrangement, with state and reward (1.69 B parameters).

    Three views (exterior 1, exterior 2, wrist) are encoded one by one and their latents stacked on the height. History
    and present frames come with the measured pose, new ones with the commanded pose; the first frame drawn is the
    present again. State and reward are ours: heads on the U-Net's last features, see `FrameHeads`.

    Args:
        unet_config, vae_config, text_config: settings of the three parts, other than the published ones.
        text: whether the instruction's CLIP embedding is added to the poses' tokens.
        image_height, image_width: pixels of a view. num_frames: drawn in a call, the present one among them.
        history: which of the frames at the ends of past calls are seen: 0 is the rollout's first, -1 the present.
        actions_per_frame: control steps (1/15 s) from frame to frame.
        pose_low, pose_high: the poses that become -1 and 1.
        guidance: of the last frame, rising from 1 at the present one; 1 is off (Ctrl-World: 2, at twice the cost).
        fps, motion_bucket_id: what the U-Net is told, as in training. action_dropout: share trained without poses.
        sampling_steps: denoising steps a call, unless told otherwise. rig, cameras: see `WorldModel`.
        max_linear, max_rotation, lowest_tcp: see `Tracking`.
        success_threshold, success_frames: success is a reward probability above the threshold for so many frames.

    Raises:
        ConfigError: sizes that do not fit together.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        unet_config: Mapping[str, Any] | None = None,
        vae_config: Mapping[str, Any] | None = None,
        text_config: Mapping[str, Any] | None = None,
        text: bool = True,
        image_height: int = 192,
        image_width: int = 320,
        num_frames: int = 5,
        history: Sequence[int] = (0, 0, -12, -9, -6, -3),
        actions_per_frame: int = 3,
        pose_low: Sequence[float] = poses.DROID_LOW,
        pose_high: Sequence[float] = poses.DROID_HIGH,
        guidance: float = 1.0,
        fps: int = 7,
        motion_bucket_id: int = 127,
        action_dropout: float = 0.05,
        sampling_steps: int = 5,
        rig: str = "",
        cameras: Sequence[Mapping[str, Any] | None] = (None, None, None),
        max_linear: float = 0.075,
        max_rotation: float = 0.15,
        lowest_tcp: float | None = None,
        success_threshold: float = 0.9,
        success_frames: int = 2,
    ) -> None:
        super().__init__()
        if num_frames < 2 or actions_per_frame < 1 or any(i > 0 for i in history):
            raise ConfigError("num_frames must be at least 2, actions_per_frame at least 1, history indices 0 or less.")
        self.unet = UNetSpatioTemporalConditionModel(**(unet_config or {}))
        self.vae = AutoencoderKLTemporalDecoder(**(VAE | dict(vae_config or {})))
        self.text_encoder = (
            CLIPTextModelWithProjection(CLIPTextConfig(**(TEXT | dict(text_config or {})))) if text else None
        )
        width = self.unet.config.cross_attention_dim
        if self.text_encoder is not None and 2 * self.text_encoder.config.projection_dim != width:
            raise ConfigError(f"The text embedding, doubled, must be as wide as the U-Net's context ({width}).")
        self.action_encoder = ActionEncoder(width)
        channels = self.unet.config.block_out_channels[0]
        self.heads = FrameHeads(channels, self.unet.config.out_channels, views=STACKED_VIEWS)
        self.tracking = Tracking(max_linear, max_rotation, lowest_tcp)
        self._arm = Arm(self.tracking)
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.latent_size = (STACKED_VIEWS * image_height // factor, image_width // factor)
        if image_height % factor or image_width % factor:
            raise ConfigError(f"Images of {image_width}x{image_height} pixels are no multiple of the codec's {factor}.")
        self.tokenizer: Any = None  # CLIP's, set by whoever loads the model
        use_one_token_attention(self.unet)
        self._tap = FeatureTap(self.unet.conv_out)
        for frozen in (self.vae, self.text_encoder):
            if frozen is not None:
                frozen.requires_grad_(False)

    @property
    def frames_per_call(self) -> int:
        """New frames a call: all that are drawn but the present one."""
        return int(self.config["num_frames"]) - 1

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(F, 4, 3 h, w)."""
        return (int(self.config["num_frames"]), int(self.unet.config.out_channels), *self.latent_size)

    @property
    def memory_length(self) -> int:
        """Frames at the ends of calls that are kept, the present one among them."""
        return max(1, *(-i for i in self.config["history"]))

    def move(self, kinematics: Tensor, actions: Tensor, calibrated: Tensor) -> tuple[Kinematics, Tensor]:
        """See `WorldModel.move`; on the processor and in float32, wherever the rest is."""
        return self._arm.move(kinematics, actions, calibrated)

    def encode(self, views: Tensor) -> Tensor:
        """Latents (N, 4, 3 h, w), scaled, of views uint8 (N, 3, H, W, 3)."""
        pixels = to_pixels(views, self.vae)
        latents = self.vae.encode(pixels.flatten(0, 1)).latent_dist.mode() * self.vae.config.scaling_factor
        return stack(latents.unflatten(0, (-1, STACKED_VIEWS)))

    def decode(self, latents: Tensor) -> Tensor:
        """Views uint8 (B, F, 3, H, W, 3) of scaled latents (B, F, 4, 3 h, w)."""
        frames = latents.shape[1]
        views = unstack(latents).to(self.vae.dtype) / self.vae.config.scaling_factor  # (B, F, 3, 4, h, w)
        flat = views.transpose(1, 2).flatten(0, 2)  # every view is a video of its own
        pixels = self.vae.decode(flat, num_frames=frames).sample
        return to_uint8(pixels.unflatten(0, (-1, STACKED_VIEWS, frames)).transpose(1, 2))

    def embed(self, instructions: Sequence[str]) -> Tensor:
        """What is added to every frame's token: (B, 1024), zeros for a model without text.

        Raises:
            ConfigError: the model wants text but has no tokenizer.
        """
        if self.text_encoder is None:
            width = int(self.unet.config.cross_attention_dim)
            return torch.zeros(len(instructions), width, device=self.device, dtype=self.dtype)
        if self.tokenizer is None:
            raise ConfigError("The svd world model needs CLIP's tokenizer: put its files into the folder 'tokenizer'.")
        words = self.tokenizer(list(instructions), padding="max_length", truncation=True, return_tensors="pt")
        embedding = self.text_encoder(**words.to(self.device)).text_embeds
        return embedding.repeat(1, 2)

    def tokens(self, path: Tensor, text: Tensor) -> Tensor:
        """(B, T, 1024) of poses (B, T, 7) and `embed`'s (B, 1024)."""
        path = path.float()
        low, high = (path.new_tensor(self.config[name]) for name in ("pose_low", "pose_high"))
        pose = poses.normalise(path, low, high)
        return self.action_encoder(pose.to(self.unet.dtype)) + text[:, None]

    def forward(self, latents: Tensor, noise: Tensor, tokens: Tensor) -> Tensor:
        """The U-Net alone: (B, T, 8, H, W), `edm`'s noise input (B,), tokens (B, T, 1024) -> (B, T, 4, H, W)."""
        facts = [float(self.config["fps"]), float(self.config["motion_bucket_id"]), NOISE_SHARE]
        ids = torch.tensor([facts], device=latents.device).expand(len(latents), -1)
        dtype = self.unet.dtype
        out = self.unet(latents.to(dtype), noise, FrameTokens(tokens.to(dtype)), added_time_ids=ids.to(dtype))
        return out.sample.float()

    def judge(self, latents: Tensor, foreseen: Tensor) -> FrameOutput:
        """State and reward of the new frames after a pass: denoised latents (B, F, 4, H, W), states (B, F, 10)."""
        count = foreseen.shape[1]
        features = self._tap.take().unflatten(0, (len(latents), -1))[:, -count:]
        return self.heads(features, latents[:, -count:], foreseen)

    def remember(self, views: Tensor, kinematics: Tensor, instructions: Sequence[str]) -> Memory:
        """See `ChunkModel.remember`."""
        self._arm = Arm(self.tracking)
        first = self.encode(views)
        pose = poses.measured_pose(kinematics.to(self.device))
        return {
            "first": first,
            "first_pose": pose,
            "past": first[:, None].repeat(1, self.memory_length, 1, 1, 1),
            "past_poses": pose[:, None].repeat(1, self.memory_length, 1),
            "text": self.embed(instructions),
        }

    def imagine(self, memory: Memory, now: Tensor, path: Tensor, noise: Tensor, steps: int) -> Call:
        """See `ChunkModel.imagine`."""
        path, noise = path.to(self.device), noise.to(self.device)
        index = [int(i) for i in self.config["history"]]
        history = torch.stack([memory["past"][:, i] if i else memory["first"] for i in index], 1)
        seen = [memory["past_poses"][:, i] if i else memory["first_pose"] for i in index]
        told = torch.stack([*seen, poses.measured_pose(now.to(self.device))], 1)
        tokens = self.tokens(torch.cat([told, poses.commanded_pose(path)], 1), memory["text"])
        latents = self._denoise(history, memory["past"][:, -1], tokens, noise, steps)
        new = latents[:, 1:]
        reward, state = self.judge(new, poses.state_of(path))
        past = torch.cat([memory["past"][:, 1:], new[:, -1:].to(memory["past"].dtype)], 1)
        past_poses = torch.cat([memory["past_poses"][:, 1:], poses.measured_pose(path[:, -1:])], 1)
        return Call(self.decode(new), reward, state, memory | {"past": past, "past_poses": past_poses})

    def _denoise(self, history: Tensor, present: Tensor, tokens: Tensor, noise: Tensor, steps: int) -> Tensor:
        """Latents (b, F, 4, H, W), from noise of that shape."""
        sampler = edm.scheduler()
        sampler.set_timesteps(steps, device=noise.device)
        frames, total = noise.shape[1], tokens.shape[1]
        beside = (present / self.vae.config.scaling_factor)[:, None].expand(-1, total, -1, -1, -1)
        guidance = float(self.config["guidance"])
        strength = torch.linspace(1.0, guidance, frames, device=noise.device).view(1, -1, 1, 1, 1)
        x = noise.float() * sampler.init_noise_sigma
        for t in sampler.timesteps:
            given = torch.cat([history.float(), sampler.scale_model_input(x, t)], 1)
            given = torch.cat([given, beside.float()], 2)
            told = self(given, t, tokens)[:, -frames:]
            if guidance > 1:
                features = self._tap.take()
                untold = self(given, t, torch.zeros_like(tokens))[:, -frames:]
                self._tap.put(features)
                told = untold + strength * (told - untold)
            x = sampler.step(told, t, x, return_dict=False)[0]
        return x

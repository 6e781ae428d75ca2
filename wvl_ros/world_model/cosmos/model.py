"""`CosmosWorldModel`: first and last frames and twelve commanded poses -> twelve frames, state and reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models import AutoencoderKLWan
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from wvl_ros.errors import ConfigError
from wvl_ros.world_model import poses
from wvl_ros.world_model.chunks import Arm, Call, Memory
from wvl_ros.world_model.cosmos import flow
from wvl_ros.world_model.cosmos.transformer import ActionCosmosTransformer
from wvl_ros.world_model.heads import FeatureTap, FrameHeads, FrameOutput
from wvl_ros.world_model.kinematics import STATE_DIM, Kinematics
from wvl_ros.world_model.tracking import Tracking
from wvl_ros.world_model.views import STACKED_VIEWS, stack, to_pixels, to_uint8, unstack

IN_TIME = 4  # frames that one latent frame stands for, but the first, which stands for one
TEXT_TOKENS = 512


class CosmosWorldModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Cosmos-Predict2's video-to-world network as a world model (2B: 2.15 B parameters with its codec).

    Three views (exterior 1, exterior 2, wrist) are encoded one by one and their latents stacked on the height, as in
    Ctrl-World: one picture of 576x320 pixels to the network, whose positions reach up to 1920. Given are the rollout's
    first frame and, with `history_frames` 4, the last four, which fill one more latent frame; then come the new frames,
    four to a latent frame. Actions are commanded poses in the published form, see `poses.relative`. The present state
    (our embedder, zero when fresh), next state and reward (`FrameHeads`, four of each a latent frame) are ours.

    Args:
        transformer_config, vae_config: settings of the classes, other than the published ones.
        image_height, image_width: pixels of a view. history_frames: 4, or 0 as in the published weights.
        actions_per_frame: control steps (1/15 s) from frame to frame. sampling_steps: denoising steps a call.
        text_dropout: share trained without text.
        rig, cameras, max_linear, max_rotation, lowest_tcp, success_threshold, success_frames: as in `SVDWorldModel`.

    Raises:
        ConfigError: sizes that do not fit together.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        transformer_config: Mapping[str, Any] | None = None,
        vae_config: Mapping[str, Any] | None = None,
        image_height: int = 192,
        image_width: int = 320,
        history_frames: int = 4,
        actions_per_frame: int = 1,
        text_dropout: float = 0.2,
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
        self.transformer = ActionCosmosTransformer(**(transformer_config or {}))
        self.vae = AutoencoderKLWan(**(vae_config or {}))
        self.vae.requires_grad_(False)
        if history_frames not in (0, IN_TIME):
            raise ConfigError(f"history_frames is 0 or {IN_TIME} (one latent frame), not {history_frames}.")
        if self.frames_per_call % IN_TIME or actions_per_frame < 1:
            raise ConfigError(f"num_actions must be a multiple of {IN_TIME}, and actions_per_frame at least 1.")
        factor = 2 ** len(self.vae.config.dim_mult[1:])
        self.latent_size = (STACKED_VIEWS * image_height // factor, image_width // factor)
        if image_height % (2 * factor) or image_width % (2 * factor):
            raise ConfigError(f"Images of {image_width}x{image_height} pixels are no multiple of {2 * factor}.")
        width = self.transformer.config.num_attention_heads * self.transformer.config.attention_head_dim
        self.state_embedder = nn.Sequential(nn.Linear(STATE_DIM, width), nn.SiLU(), nn.Linear(width, width))
        self.heads = FrameHeads(width, self.vae.config.z_dim, views=STACKED_VIEWS, frames_per_latent=IN_TIME)
        self.tracking = Tracking(max_linear, max_rotation, lowest_tcp)
        self._arm = Arm(self.tracking)
        self._tap = FeatureTap(self.transformer.proj_out)
        self.reset_embedder()

    def reset_embedder(self) -> None:
        """A fresh state embedder adds nothing."""
        last = self.state_embedder[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    @property
    def frames_per_call(self) -> int:
        """New frames a call: one for each action."""
        return int(self.transformer.config.num_actions)

    @property
    def given_latents(self) -> int:
        """Latent frames that are given: the first frame's, and that of the last four."""
        return 1 + int(self.config["history_frames"]) // IN_TIME

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(16, T, 3 h, w), the given frames among the T."""
        frames = self.given_latents + self.frames_per_call // IN_TIME
        return (int(self.vae.config.z_dim), frames, *self.latent_size)

    def move(self, kinematics: Tensor, actions: Tensor, calibrated: Tensor) -> tuple[Kinematics, Tensor]:
        """See `WorldModel.move`; on the processor and in float32, wherever the rest is."""
        return self._arm.move(kinematics, actions, calibrated)

    def encode(self, views: Tensor) -> Tensor:
        """Latents (B, 16, 1 + T / 4, 3 h, w), of unit size, of videos uint8 (B, 1 + T, 3, H, W, 3)."""
        pixels = to_pixels(views, self.vae)  # (B, 1 + T, 3, rgb, H, W)
        flat = pixels.permute(0, 2, 3, 1, 4, 5).flatten(0, 1)
        latents = self.vae.encode(flat).latent_dist.mode().float()
        mean, deviation = self._statistics(latents)
        latents = ((latents - mean) / deviation).unflatten(0, (-1, STACKED_VIEWS))
        return stack(latents.permute(0, 3, 1, 2, 4, 5)).transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Videos uint8 (B, 1 + T, 3, H, W, 3) of latents (B, 16, 1 + T / 4, 3 h, w)."""
        views = unstack(latents.float().transpose(1, 2))  # (B, L, 3, 16, h, w)
        flat = views.permute(0, 2, 3, 1, 4, 5).flatten(0, 1)
        mean, deviation = self._statistics(flat)
        pixels = self.vae.decode((flat * deviation + mean).to(self.vae.dtype)).sample
        return to_uint8(pixels.unflatten(0, (-1, STACKED_VIEWS)).permute(0, 3, 1, 2, 4, 5))

    def embed(self, instructions: Sequence[str]) -> Tensor:
        """Text embeddings (B, 1, 1024): zeros, as the action-conditioned weights were trained with.

        Upstream gives 512 zeros. No projection of the cross-attention has a bias, so the answer is zero for any number
        of them: one is enough. Embeddings of T5-11B (B, 512, 1024) can be put into a rollout's memory as `text`.
        """
        width = int(self.transformer.config.text_embed_dim)
        return torch.zeros(len(instructions), 1, width, device=self.device, dtype=self.transformer.dtype)

    def forward(
        self, latents: Tensor, sigma: Tensor, given: Tensor, actions: Tensor, state: Tensor, text: Tensor
    ) -> Tensor:
        """The denoised latents, with the given frames in their places.

        Args:
            latents: (B, 16, T, H, W) at noise level `sigma` (B,). given: (B, 16, G, H, W), the first G frames, clean.
            actions: (B, num_actions, 7), see `poses.relative`. state: (B, 10), the present one. text: (B, L, 1024).
        """
        frames = latents.shape[2]
        count, dtype = given.shape[2], self.transformer.dtype
        s = flow.scaling(sigma.float().view(-1, 1, 1, 1, 1))
        x = torch.cat([given.float(), (latents * s.into)[:, :, count:]], 2)
        mask = torch.zeros_like(x[:, :1])
        mask[:, :, :count] = 1
        t = s.t.view(-1, 1).repeat(1, frames)
        t[:, :count] = flow.scaling(t.new_tensor(flow.SIGMA_GIVEN)).t
        more = self.state_embedder(state.to(self.transformer.dtype))
        out = self.transformer(x.to(dtype), t.to(dtype), text.to(dtype), actions, mask, more)
        clean = s.skip * latents + s.out * out.float()
        return torch.cat([given.float(), clean[:, :, count:]], 2)

    def judge(self, latents: Tensor, foreseen: Tensor) -> FrameOutput:
        """State and reward of the new frames after a pass: denoised latents (B, 16, T, H, W), states (B, F, 10)."""
        new = foreseen.shape[1] // IN_TIME
        features = self._tap.take()  # (B, T, N, D)
        _, down, across = self.transformer.config.patch_size
        height, width = latents.shape[-2] // down, latents.shape[-1] // across
        features = features[:, -new:].unflatten(2, (height, width)).permute(0, 1, 4, 2, 3)
        return self.heads(features, latents[:, :, -new:].transpose(1, 2), foreseen)

    def remember(self, views: Tensor, kinematics: Tensor, instructions: Sequence[str]) -> Memory:
        """See `ChunkModel.remember`."""
        self._arm = Arm(self.tracking)
        recent = views[:, None].repeat(1, max(1, int(self.config["history_frames"])), 1, 1, 1, 1)
        return {"first": views, "recent": recent, "text": self.embed(instructions)}

    def imagine(self, memory: Memory, now: Tensor, path: Tensor, noise: Tensor, steps: int) -> Call:
        """See `ChunkModel.imagine`."""
        now, path, noise = now.to(self.device), path.to(self.device), noise.to(self.device)
        seen = [memory["first"][:, None]] if self.given_latents > 1 else []
        given = self.encode(torch.cat([*seen, memory["recent"]], 1))
        told = torch.cat([poses.measured_pose(now)[:, None], poses.commanded_pose(path)], 1)
        actions, state = poses.relative(told), poses.state_of(now)
        sampler = flow.scheduler(steps, noise.device)
        x = noise.float() * flow.SIGMA_MAX
        for i, t in enumerate(sampler.timesteps):
            sigma = sampler.sigmas[i].to(x)
            clean = self(x, sigma.expand(len(x)), given, actions, state, memory["text"])
            x = sampler.step((x - clean) / sigma, t, x, return_dict=False)[0]
        reward, state = self.judge(clean, poses.state_of(path))
        views = self.decode(clean)[:, -self.frames_per_call :]
        recent = views[:, -memory["recent"].shape[1] :].to(memory["recent"].device)
        return Call(views, reward, state, memory | {"recent": recent})

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = (
            torch.tensor(values, device=like.device, dtype=torch.float32).view(1, -1, 1, 1, 1)
            for values in (self.vae.config.latents_mean, self.vae.config.latents_std)
        )
        return mean, deviation

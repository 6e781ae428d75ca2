"""A token for each frame, without a copy of diffusers' network: the same numbers where both can do it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers.models import UNetSpatioTemporalConditionModel

from wvl_ros.world_model.svd import edm
from wvl_ros.world_model.svd.model import SVDWorldModel
from wvl_ros.world_model.svd.unet import FrameTokens


@torch.no_grad()
def test_equal_tokens_for_all_frames_are_diffusers_own_pass(make_svd: Callable[..., SVDWorldModel]) -> None:
    model = make_svd()
    plain = UNetSpatioTemporalConditionModel(**model.config["unet_config"]).eval()
    plain.load_state_dict(model.unet.state_dict())
    x, token, ids = torch.randn(2, 5, 8, 12, 8), torch.randn(2, 1, 32), torch.tensor([[7.0, 127.0, 0.0]] * 2)
    expected = plain(x, torch.tensor(0.3), token, added_time_ids=ids).sample
    drawn = model.unet(x, torch.tensor(0.3), FrameTokens(token.repeat(1, 5, 1)), added_time_ids=ids).sample
    assert torch.allclose(drawn, expected, atol=1e-5)
    with pytest.raises(ValueError, match="4 frames have a token"):
        model.unet(x, torch.tensor(0.3), FrameTokens(token.repeat(1, 4, 1)), added_time_ids=ids)


@torch.no_grad()
def test_a_frame_follows_its_own_pose(make_svd: Callable[..., SVDWorldModel]) -> None:
    model = make_svd()
    x, tokens = torch.randn(1, 5, 8, 12, 8), torch.randn(1, 5, 32)
    other = tokens.clone()
    other[:, 3] += 1
    change = (model(x, torch.tensor(0.3), tokens) - model(x, torch.tensor(0.3), other)).abs().mean((0, 2, 3, 4))
    assert change[3] == change.max()
    assert change[3] > 0


def test_the_loss_undoes_noise_as_the_sampler_does() -> None:
    sampler = edm.scheduler()
    sampler.set_timesteps(4)
    noisy, out = torch.randn(1, 2, 4, 6, 4), torch.randn(1, 2, 4, 6, 4)
    for t, sigma in zip(sampler.timesteps, sampler.sigmas, strict=False):
        s = edm.scaling(sigma)
        assert torch.allclose(sampler.scale_model_input(noisy, t), noisy * s.into, rtol=1e-4)
        sampler._step_index = None
        clean = sampler.step(out, t, noisy).pred_original_sample
        assert torch.allclose(clean, s.skip * noisy + s.out * out, rtol=1e-4, atol=1e-6)
        assert torch.allclose(t.float(), s.noise.float(), atol=1e-4)

"""Our pass of the transformer and diffusers' own: the same numbers, with actions as upstream adds them."""

from __future__ import annotations

from types import SimpleNamespace

import diffusers.models.transformers.transformer_cosmos as theirs
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from wvl_ros.world_model.cosmos.transformer import ActionCosmosTransformer

SETTINGS = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "text_embed_dim": 8,
    "adaln_lora_dim": 4,
}


class _ActionTime(theirs.CosmosEmbedding):
    """Adds the embedded actions where upstream's network adds them."""

    def __init__(self, width: int, wave: Tensor, lora: Tensor) -> None:
        super().__init__(width, width)
        self.added = wave, lora

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        sinus = self.time_proj(timestep).type_as(hidden_states)
        wave, lora = (x.repeat_interleave(len(sinus) // len(x), 0) for x in self.added)
        return self.t_embedder(sinus) + lora, self.norm(sinus + wave)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(2, 16, 3, 6, 4, generator=generator),
        "timestep": torch.rand(2, 3, generator=generator),
        "encoder_hidden_states": torch.randn(2, 5, 8, generator=generator),
        "condition_mask": (torch.arange(3) < 1).float().view(1, 1, 3, 1, 1).expand(2, 1, 3, 6, 4),
    }


@torch.no_grad()
def test_the_pass_is_diffusers_own(inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    ours = ActionCosmosTransformer(**SETTINGS).eval()
    action = torch.randn(2, 12, 7)
    plain = theirs.CosmosTransformer3DModel(
        in_channels=17, rope_scale=(1, 3, 3), extra_pos_embed_type=None, **SETTINGS
    ).eval()
    wave, lora = ours.action_embedder_B_D(action.flatten(1)), ours.action_embedder_B_3D(action.flatten(1))
    plain.time_embed = _ActionTime(32, wave, lora)
    missing, unexpected = plain.load_state_dict(ours.state_dict(), strict=False)
    assert not missing
    assert {name.split(".")[0] for name in unexpected} == {"action_embedder_B_D", "action_embedder_B_3D"}
    # diffusers resizes the padding mask by torchvision, which this project does without.
    nearest = SimpleNamespace(NEAREST="nearest")
    resize = SimpleNamespace(
        resize=lambda x, size, interpolation: functional.interpolate(x, tuple(size), mode=interpolation)
    )
    monkeypatch.setattr(
        theirs, "transforms", SimpleNamespace(functional=resize, InterpolationMode=nearest), raising=False
    )
    expected = plain(
        inputs["hidden_states"],
        inputs["timestep"].view(2, 1, 3, 1, 1),
        inputs["encoder_hidden_states"],
        condition_mask=inputs["condition_mask"],
        padding_mask=torch.zeros(1, 1, 48, 32),
        return_dict=False,
    )[0]
    drawn = ours(**inputs, action=action)
    assert torch.allclose(drawn, expected, atol=1e-5)
    assert not torch.allclose(ours(**inputs, action=action + 1), drawn, atol=1e-3)


@torch.no_grad()
def test_one_zero_of_text_is_as_good_as_many(inputs: dict[str, Tensor]) -> None:
    model = ActionCosmosTransformer(**SETTINGS).eval()
    drawn = [model(**(inputs | {"encoder_hidden_states": torch.zeros(2, count, 8)})) for count in (1, 512)]
    assert torch.allclose(drawn[0], drawn[1], atol=1e-6)

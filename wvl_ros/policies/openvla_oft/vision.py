"""The two vision transformers of OpenVLA side by side: DINOv2 with registers, and SigLIP."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, SiglipVisionConfig, SiglipVisionModel

from wvl_ros.policies.openvla_oft.config import PATCH, OpenVLAConfig

# ImageNet's mean and standard deviation for DINOv2, and 0.5 for SigLIP.
NORMALISATION = (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


class FusedVision(nn.Module):
    """Patches of an image as both transformers see them, after the last block but one and without the final norm.

    So OpenVLA takes them: the last blocks, the final norms and SigLIP's pooling are published, and change nothing.
    """

    means: Tensor
    deviations: Tensor

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        size, dino, siglip = config.image_size, config.dino, config.siglip
        self.leading = 1 + dino.registers  # tokens that are no patches
        self.featurizer = Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(
                hidden_size=dino.width,
                num_hidden_layers=dino.layers,
                num_attention_heads=dino.heads,
                mlp_ratio=dino.inner // dino.width,
                num_register_tokens=dino.registers,
                image_size=size,
                patch_size=PATCH,
            )
        )
        self.fused_featurizer = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=siglip.width,
                num_hidden_layers=siglip.layers,
                num_attention_heads=siglip.heads,
                intermediate_size=siglip.inner,
                image_size=size,
                patch_size=PATCH,
                hidden_act="gelu",  # timm's; transformers would take its approximation by tanh
            )
        )
        self.register_buffer("means", torch.zeros(2, 3, 1, 1), persistent=False)
        self.register_buffer("deviations", torch.ones(2, 3, 1, 1), persistent=False)
        self.set_normalisation(NORMALISATION)

    def set_normalisation(self, values: object) -> None:
        """Of the colours 0..1: for each transformer the mean, then the standard deviation; (2, 2, 3)."""
        table = torch.tensor(values, dtype=torch.float32)[..., None, None]
        self.means.copy_(table[:, 0])
        self.deviations.copy_(table[:, 1])

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, patches, widths of both) of images uint8 (N, 3, S, S)."""
        colours = images.float() / 255
        first, second = ((colours - mean) / scale for mean, scale in zip(self.means, self.deviations, strict=True))
        dino = self.featurizer(pixel_values=first, output_hidden_states=True).hidden_states[-2]
        siglip = self.fused_featurizer(pixel_values=second, output_hidden_states=True).hidden_states[-2]
        return torch.cat([dino[:, self.leading :], siglip], -1)

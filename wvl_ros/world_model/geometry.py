"""What calibrated cameras tell: where the gripper must appear, where the table is, and how the wrist view moves with
the arm.

Optional: a camera without calibration gives maps of zeros and its images unwarped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wvl_ros.errors import ConfigError
from wvl_ros.world_model import posture
from wvl_ros.world_model.kinematics import TCP_OFFSET, Kinematics

MAPS_PER_VIEW, REACH_PER_VIEW = 4, 4
HALF_OPENING = 0.04  # m, of the Franka hand's fingers
_PALM = 0.06  # m behind the TCP
_TABLE_CENTER = (0.5, 0.0)
_MIDDLE = 0.02  # m above the table: the middle of a usual object
_AWAY, _ABOVE = 0.04, 0.02  # m from the TCP, along the table and upwards, in which touching is decided
_MARKER_WIDTH = 0.8  # grid cells
_NEAREST = 0.05  # m in front of the camera; nearer points are drawn at this depth
_SHORTEST = 0.01  # of the image: a part of the arm that looks shorter is seen end on
_GROWTH = 1.25  # a part of the arm grows or shrinks at most so much between two frames


class CameraGeometry(nn.Module):
    """Maps and warps of three cameras: two fixed ones, then the one on the wrist.

    Args:
        cameras: three calibrations or None each, in the order of the views: `position` (3,) m, `rotation` (3, 3) with
            MuJoCo's camera axes as columns (x right, y up, looks along -z), `fovy_deg`, `parent` 'base' or 'flange'.
        grid: patches along a side. size: pixels along a side.

    Raises:
        ConfigError: a calibration that lacks a field, or a fixed camera on the flange and the like.
    """

    def __init__(self, cameras: list[Mapping[str, Any] | None], grid: int, size: int) -> None:
        super().__init__()
        self.grid, self.size = grid, size
        self.known = [camera is not None for camera in cameras]
        self.focal: list[float] = []
        for view, camera in enumerate(cameras):
            parent = "flange" if view == 2 else "base"
            if camera is None:
                position, rotation, focal = torch.zeros(3), torch.eye(3), 1.0
            else:
                try:
                    position = torch.tensor(camera["position"], dtype=torch.float32)
                    rotation = torch.tensor(camera["rotation"], dtype=torch.float32)
                    focal = 0.5 / math.tan(math.radians(float(camera["fovy_deg"])) / 2)  # in image heights
                except (KeyError, TypeError, ValueError) as error:
                    raise ConfigError(f"The calibration of camera {view} cannot be used: {error}.") from error
                if camera.get("parent") != parent:
                    raise ConfigError(f"Camera {view} must be fixed to the {parent}, not to '{camera.get('parent')}'.")
            self.focal.append(focal)
            self.register_buffer(f"position_{view}", position, persistent=False)
            self.register_buffer(f"rotation_{view}", rotation, persistent=False)
        for n in {grid, size}:
            axis = (torch.arange(n) + 0.5) / n - 0.5
            y, x = torch.meshgrid(axis, axis, indexing="ij")
            rays = torch.stack([x / self.focal[2], -y / self.focal[2], -torch.ones_like(x)], -1)
            self.register_buffer(f"rays_{n}", rays.reshape(-1, 3), persistent=False)
            self.register_buffer(f"pixels_{n}", torch.stack([x, y], -1).reshape(-1, 2), persistent=False)
        for view in (0, 1):
            self.register_buffer(f"spots_{view}", self._spots(view, grid), persistent=False)

    def maps(self, k: Kinematics) -> Tensor:
        """(B, 3, 4, G, G): markers of palm, two fingertips and floor shadow in the fixed views, table coordinates in
        the wrist's.
        """
        batch = len(k.position)
        points = _gripper_points(k)
        maps = [self._markers(view, points) if self.known[view] else self._blank(points) for view in (0, 1)]
        if self.known[2]:
            table = (self._table(k, self.grid) - points.new_tensor(_TABLE_CENTER)) * 3
            table = table.clamp(-2, 2).view(batch, self.grid, self.grid, 2).permute(0, 3, 1, 2)
            maps.append(torch.cat([table, table.abs()], 1))
        else:
            maps.append(self._blank(points))
        return torch.stack(maps, 1)

    def reach(self, k: Kinematics) -> Tensor:
        """(B, 3, 4, G, G): how what stands at each place lies to the gripper, so that touching it can be told locally.

        Along the fingers' opening and across it, cut smoothly at `_AWAY`; nearness; and nearness times how far the
        fingertips are above the middle of a usual object.
        """
        state = k.state()
        tcp, x, z = state[:, :3], state[:, 3:6], state[:, 6:9]
        opening = F.normalize(torch.cross(z, x, dim=1)[:, :2], dim=1)
        across = torch.stack([-opening[:, 1], opening[:, 0]], 1)
        height = torch.tanh((tcp[:, 2:] - _MIDDLE) / _ABOVE)[:, None]
        maps = []
        for view in range(3):
            if not self.known[view]:
                maps.append(tcp.new_zeros(len(tcp), REACH_PER_VIEW, self.grid, self.grid))
                continue
            spots = self._table(k, self.grid, _MIDDLE) if view == 2 else self.get_buffer(f"spots_{view}")
            gap = torch.stack([((spots - tcp[:, None, :2]) * way[:, None]).sum(2) for way in (opening, across)], 2)
            gap = gap / _AWAY
            near = torch.exp(-0.5 * gap.square().sum(2, keepdim=True))
            each = torch.cat([torch.tanh(gap), near, near * height], 2)
            maps.append(each.transpose(1, 2).unflatten(2, (self.grid, self.grid)))
        return torch.stack(maps, 1)

    def silhouettes(self, starts: Tensor, ends: Tensor) -> Tensor:
        """The arm's segments (B, 6, 3) m, see `Posture.segments`, drawn as maps (B, 3, 3, S/2, S/2), -1..1.

        A value is how far inside a segment's outline a place is, in units of a thirtieth of the image, cut at 1.
        """
        half = self.size // 2
        batch = len(starts)
        places = F.avg_pool2d(self.still(1).permute(0, 3, 1, 2), 2).flatten(2)[0].T / 2  # (half^2, 2), image heights
        result = starts.new_full((batch, 3, posture.MAPS, half, half), -1.0)
        radii = starts.new_tensor(posture.RADII)
        for view in (0, 1):
            if not self.known[view]:
                continue
            a, b = self.project(view, starts), self.project(view, ends)
            middle = ((starts + ends) / 2 - self.get_buffer(f"position_{view}")) @ self.get_buffer(f"rotation_{view}")
            radius = radii * self.focal[view] / (-middle[..., 2]).clamp(min=_NEAREST)
            way = b - a
            along = (places[None] @ way.transpose(1, 2) - (a * way).sum(2)[:, None]) / (way * way).sum(2).clamp(
                min=1e-8
            )[:, None]
            along = along.clamp(0, 1)[..., None]
            gap = (places[None, :, None] - a[:, None] - along * way[:, None]).square().sum(3).sqrt()
            inside = ((radius[:, None] - gap) * 30).clamp(-1, 1)  # (B, half^2, 6)
            for number in range(posture.MAPS):
                chosen = [i for i, of in enumerate(posture.MAP_OF) if of == number]
                result[:, view, number] = inside[..., chosen].amax(2).view(batch, half, half)
        return result

    def still(self, batch: int) -> Tensor:
        """(B, S, S, 2): where each pixel is, -1..1 (x right, y down), as `grid_sample` counts."""
        return (2 * self.get_buffer(f"pixels_{self.size}")).view(1, self.size, self.size, 2).expand(batch, -1, -1, -1)

    def places_of_arm(self, view: int, now: Tensor, then: Tensor) -> Tensor:
        """Where a fixed view finds its pixels in the last frame, if each belonged to the nearest part of the arm.

        Args:
            now, then: (B, J, 3) m of the base, points along the arm; the parts lie between one and the next.

        Returns:
            Places (B, S, S, 2) in the units of `still`.
        """
        batch = len(now)
        if not self.known[view]:
            return self.still(batch)
        was, is_ = self.project(view, now), self.project(view, then)
        way_was, way = was[:, 1:] - was[:, :-1], is_[:, 1:] - is_[:, :-1]  # (B, parts, 2)
        length = (way * way).sum(2)
        square = length.clamp(min=_SHORTEST**2)
        # A part moves, turns and grows in the picture: multiplication by a complex number; end on, it only moves.
        real = ((way * way_was).sum(2) + square - length) / square
        imaginary = (way[..., 0] * way_was[..., 1] - way[..., 1] * way_was[..., 0]) / square
        size = (real * real + imaginary * imaginary).sqrt().clamp(min=1e-6)
        limit = size.clamp(1 / _GROWTH, _GROWTH) / size
        real, imaginary = real * limit, imaginary * limit
        x, y = (
            self.get_buffer(f"pixels_{self.size}")[:, i, None] - is_[:, None, :-1, i] for i in (0, 1)
        )  # (B, S^2, parts)
        along = ((x * way[:, None, :, 0] + y * way[:, None, :, 1]) / square[:, None]).clamp(0, 1)
        gap = (x - along * way[:, None, :, 0]).square() + (y - along * way[:, None, :, 1]).square()
        nearest = gap.argmin(2, keepdim=True)
        x, y = (part.gather(2, nearest)[..., 0] for part in (x, y))
        origin, real, imaginary = (
            part.gather(1, nearest[..., 0].unsqueeze(2).expand(-1, -1, part.shape[2]))
            for part in (was[:, :-1], real[..., None], imaginary[..., None])
        )
        real, imaginary = real[..., 0], imaginary[..., 0]
        turned = torch.stack([x * real - y * imaginary, x * imaginary + y * real], 2)
        return (2 * (origin + turned)).clamp(-3, 3).view(batch, self.size, self.size, 2)

    def places(self, taken: Kinematics, seen: Kinematics, height: float = 0.0) -> tuple[Tensor, Tensor]:
        """Where the wrist view at `seen` finds its pixels in the one at `taken`, if all lay `height` m above the table.

        Returns:
            Places (B, S, S, 2) in the units of `still`, and whether they are inside that image, (B, S, S) bool.
        """
        batch = len(seen.position)
        if not self.known[2]:
            still = self.still(batch)
            return still, torch.ones(still.shape[:3], dtype=torch.bool, device=still.device)
        table = F.pad(self._table(seen, self.size, height), (0, 1), value=height)
        place, inside = self.places_of(2, table, taken)
        size = (self.size, self.size)
        return place.unflatten(1, size), inside.unflatten(1, size)

    def places_in(self, view: int, seen: Kinematics) -> tuple[Tensor, Tensor]:
        """Where the wrist view at `seen` finds its pixels in a fixed view, if all lay on the table; as `places`."""
        batch = len(seen.position)
        if not (self.known[2] and self.known[view]):
            still = self.still(batch)
            return still, torch.zeros(still.shape[:3], dtype=torch.bool, device=still.device)
        place = 2 * self.project(view, F.pad(self._table(seen, self.size), (0, 1))).clamp(-1.5, 1.5)
        place = place.view(batch, self.size, self.size, 2)
        return place, place.abs().amax(3) <= 1.0

    def places_of(self, view: int, points: Tensor, k: Kinematics) -> tuple[Tensor, Tensor]:
        """Where a view shows points (B, N, 3) of the base, the wrist's at `k`; (B, N, 2) in the units of `still`, and
        whether that is inside the image, (B, N) bool. Nowhere in one that is not calibrated.
        """
        if not self.known[view]:
            return torch.zeros_like(points[..., :2]), torch.zeros_like(points[..., 0], dtype=torch.bool)
        if view < 2:
            place = 2 * self.project(view, points)
        else:
            position, rotation = self._wrist(k)
            local = (points - position[:, None]) @ rotation
            depth = -local[..., 2:]
            place = torch.cat([local[..., :1], -local[..., 1:2]], -1) * self.focal[2] / depth.clamp(min=0.02) * 2
            place = torch.where(depth > 0.02, place, torch.full_like(place, 3.0))
        place = place.clamp(-3, 3)
        return place, place.abs().amax(2) <= 1.0

    def rays(self, view: int, k: Kinematics) -> tuple[Tensor, Tensor]:
        """Of a calibrated view, the wrist's at `k`: where its camera is, (B, 3) m, and where its pixels look,
        (B, S^2, 3).
        """
        if view == 2:
            position, rotation = self._wrist(k)
            return position, self.get_buffer(f"rays_{self.size}") @ rotation.transpose(1, 2)
        batch = len(k.position)
        x, y = self.get_buffer(f"pixels_{self.size}").T / self.focal[view]
        ways = torch.stack([x, -y, -torch.ones_like(x)], 1) @ self.get_buffer(f"rotation_{view}").T
        return self.get_buffer(f"position_{view}").expand(batch, -1), ways.expand(batch, -1, -1)

    def project(self, view: int, points: Tensor) -> Tensor:
        """Pixels (B, N, 2) from the centre, in image heights (x right, y down), of points (B, N, 3) of the base in a
        fixed view.
        """
        local = (points - self.get_buffer(f"position_{view}")) @ self.get_buffer(f"rotation_{view}")
        place = torch.cat([local[..., :1], -local[..., 1:2]], -1)
        return place * self.focal[view] / (-local[..., 2:]).clamp(min=_NEAREST)

    def _markers(self, view: int, points: Tensor) -> Tensor:
        gap = self.project(view, points)[:, :, None] - self.get_buffer(f"pixels_{self.grid}")
        square = (gap * gap).sum(-1) * self.grid**2
        return torch.exp(-square / (2 * _MARKER_WIDTH**2)).unflatten(2, (self.grid, self.grid))

    def _blank(self, points: Tensor) -> Tensor:
        return points.new_zeros(len(points), MAPS_PER_VIEW, self.grid, self.grid)

    def _wrist(self, k: Kinematics) -> tuple[Tensor, Tensor]:
        position = k.position + k.rotation @ self.get_buffer("position_2")
        return position, k.rotation @ self.get_buffer("rotation_2")

    def _spots(self, view: int, n: int) -> Tensor:
        """(n * n, 2) m: where each place's ray of a fixed view is `_MIDDLE` above the table; as `_table`."""
        x, y = self.get_buffer(f"pixels_{n}").T / self.focal[view]
        rays = torch.stack([x, -y, -torch.ones_like(x)], 1) @ self.get_buffer(f"rotation_{view}").T
        position = self.get_buffer(f"position_{view}")
        reach = (_MIDDLE - position[2]) / rays[:, 2].clamp(max=-0.08)
        return (position + reach[:, None] * rays)[:, :2]

    def _table(self, k: Kinematics, n: int, height: float = 0.0) -> Tensor:
        """(B, n * n, 2) m: where each wrist pixel's ray is `height` m above the table; rays above the horizon are bent
        down to it.
        """
        position, rotation = self._wrist(k)
        rays = self.get_buffer(f"rays_{n}") @ rotation.transpose(1, 2)
        reach = (height - position[:, None, 2]) / rays[..., 2].clamp(max=-0.08)
        return (position[:, None] + reach[..., None] * rays)[..., :2]


def _gripper_points(k: Kinematics) -> Tensor:
    """(B, 4, 3) m: palm, both fingertips, and the TCP's shadow on the table."""
    state = k.state()
    tcp, x, z = state[:, :3], state[:, 3:6], state[:, 6:9]
    half = torch.cross(z, x, dim=1) * (HALF_OPENING * (1 - k.gripper).clamp(0, 1))
    shadow = torch.cat([tcp[:, :2], torch.zeros_like(tcp[:, :1])], 1)
    palm = k.position + z * (TCP_OFFSET - _PALM)
    return torch.stack([palm, tcp + half, tcp - half, shadow], 1)

"""Practice: many rollouts of the small VLA in imagination at once, with all that an update of it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from wvl_ros.errors import ConfigError
from wvl_ros.policies import flow
from wvl_ros.policies.network import Inputs
from wvl_ros.policies.small import SmallPolicy
from wvl_ros.policies.vision import shrink
from wvl_ros.sans.collect import STEPS
from wvl_ros.world_model.imagination import Imagination
from wvl_ros.world_model.kinematics import Kinematics, matrix_to_euler, rotvec_to_matrix
from wvl_ros.worlds import droid
from wvl_ros.worlds.imagined_start import Start

TIMED = ("images", "state", "places", "actions", "log_probs", "counts")


@dataclass
class Practice:
    """D decisions each of B rollouts; those after a rollout's end do not count.

    Attributes:
        images: uint8 (B, D, cameras, 3, S, S). state: (B, D, 10). places: (B, D, 6) as they were found, or (B, D, 0)
            where the policy votes for none. words: int64 (B, L). See `Inputs`.
        actions: (B, D, T, 7) as chosen, before they are clipped to the action space. log_probs: (B, D, T, 7) of their
            parts, where sampled with a density, else 0.
        counts: bool (B, D, T), the actions that were executed before the end.
        success: bool (B,) as the reward head says.
        chance: float32 (B,), the highest probability of success that a frame had; 1 after a success.
    """

    images: Tensor
    state: Tensor
    places: Tensor
    words: Tensor
    actions: Tensor
    log_probs: Tensor
    counts: Tensor
    success: Tensor
    chance: Tensor

    def select(self, rows: Tensor) -> Practice:
        """Some of the rollouts."""
        return Practice(*(getattr(self, field.name)[rows] for field in fields(self)))

    def inputs(self, rows: Tensor, decisions: Tensor) -> Inputs:
        """The network's input at decisions (n,) of rollouts (n,)."""
        places = self.places[rows, decisions]
        found = places if places.shape[1] else None
        return Inputs(self.images[rows, decisions], self.state[rows, decisions], self.words[rows], found)


def kept_places(inputs: Inputs) -> Tensor:
    """What a `Practice` keeps of where things were found at a decision, (B, 6) or (B, 0)."""
    return inputs.state[:, :0] if inputs.places is None else inputs.places


def join(parts: Sequence[Practice]) -> Practice:
    """All rollouts of some practices; the shorter ones are filled up with decisions that do not count."""
    longest = max(part.state.shape[1] for part in parts)

    def filled(tensor: Tensor) -> Tensor:
        missing = tensor.new_zeros(len(tensor), longest - tensor.shape[1], *tensor.shape[2:])
        return torch.cat([tensor, missing], 1)

    columns = {
        field.name: [getattr(part, field.name) for part in parts] for field in fields(Practice)
    }  # fmt: skip
    return Practice(
        **{name: torch.cat([filled(t) if name in TIMED else t for t in column]) for name, column in columns.items()}
    )


def require_whole_calls(policy: SmallPolicy, imagination: Imagination) -> None:
    """Raises a ConfigError where the policy looks again before what the world model draws at a time is complete."""
    steps, call = policy.config.execute_steps, imagination.frames_per_call * imagination.actions_per_frame
    if steps % call:
        raise ConfigError(
            f"The policy executes {steps} steps of a chunk, but the world model imagines {call} at a time: make "
            f"execute_steps a multiple of {call}."
        )


@torch.no_grad()
def practise(
    policy: SmallPolicy,
    imagination: Imagination,
    starts: Sequence[Start],
    seeds: Sequence[int],
    temperature: float,
    generator: torch.Generator,
    limits: Sequence[int] | None = None,
) -> Practice:
    """One rollout from each start, all at once, until each has succeeded or its steps are used up.

    Args:
        imagination: draws them; it is started anew.
        seeds: of the imagined noise. temperature, generator: of the policy's sampling;
            at temperature 0 a Gaussian head deploys its mean. limits: control steps of each; None takes its start's.
    """
    require_whole_calls(policy, imagination)
    config, count = policy.config, len(starts)
    views = torch.stack([torch.from_numpy(start.views) for start in starts])
    kinematics = torch.cat([start.kinematics for start in starts])
    known = torch.tensor([float(start.calibrated) for start in starts])
    imagination.start(views, kinematics, [start.instruction for start in starts], known, seeds)
    if limits is None:
        limits = [min(start.max_steps, STEPS.get(start.task, start.max_steps)) for start in starts]
    call = imagination.frames_per_call * imagination.actions_per_frame
    most = (torch.tensor(limits) // call * call).clamp(min=call)  # a rollout ends with a frame
    words = torch.from_numpy(policy.tokenizer.encode([start.instruction for start in starts]))
    columns: dict[str, list[Tensor]] = {name: [] for name in TIMED}
    policy.network.eval()
    step, chance = 0, torch.zeros(count)
    while bool(imagination.active.any()):
        inputs = policy.network.located(look(policy, views, imagination.kinematics, words))
        actions, log_probs = choose(policy, inputs, temperature, generator)
        columns["images"].append(inputs.images)
        columns["state"].append(inputs.state)
        columns["places"].append(kept_places(inputs))
        columns["actions"].append(actions)
        columns["log_probs"].append(log_probs)
        poses = command(imagination.kinematics, actions.clamp(-1, 1))
        counts = torch.zeros(count, config.chunk_size, dtype=torch.bool)
        for i in range(config.execute_steps):
            counts[:, i] = imagination.active
            imagination.move(poses[:, i])
            step += 1
            if imagination.frame_due:
                frames = imagination.imagine()
                views = frames.views[:, -1]
                chance = torch.maximum(chance, (frames.success_probability * frames.valid).amax(1))
                imagination.stop(step >= most)
        columns["counts"].append(counts)
    success = imagination.success.clone()
    chance = torch.where(success, torch.ones_like(chance), chance)
    return Practice(
        words=words, success=success, chance=chance, **{name: torch.stack(c, 1) for name, c in columns.items()}
    )


def choose(
    policy: SmallPolicy, inputs: Inputs, temperature: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Chunks (B, T, 7) and the log-probabilities (B, T, 7) of their parts: 0 of a mean, and of what a flow draws."""
    if policy.config.head == "flow":
        known = policy.network.context(inputs)
        actions = flow.draw(policy.network, known, policy.config.flow_steps, generator)
        return actions, torch.zeros_like(actions)
    outputs = policy.network(inputs)
    if temperature == 0:
        closed = (outputs.gripper > 0).float()[..., None]
        actions = torch.cat([outputs.mean.clamp(-1, 1), closed], -1)
        return actions, torch.zeros_like(actions)
    actions = policy.noise.sample(outputs.mean, outputs.gripper, temperature, generator)
    return actions, policy.noise.log_prob_parts(outputs.mean, outputs.gripper, actions, temperature)


def look(policy: SmallPolicy, views: Tensor, kinematics: Tensor, words: Tensor) -> Inputs:
    """The policy's input from imagined views uint8 (B, 3, H, W, 3) and packed kinematics (B, 39)."""
    images = [
        shrink(list(views[:, droid.CAMERAS.index(camera)].numpy()), policy.config.image_size, camera)
        for camera in policy.config.cameras
    ]
    k = Kinematics.unpack(kinematics)
    state = torch.cat([k.position, k.rotation[:, :, 0], k.rotation[:, :, 1], k.gripper], 1).float()
    return Inputs(torch.stack(images, 1), state, words)


def command(kinematics: Tensor, actions: Tensor) -> Tensor:
    """Absolute flange poses and grippers (B, T, 7) of chunks of normalised velocities, from the last commanded poses.

    As `droid.convert_chunk` does it, of a whole batch.
    """
    k = Kinematics.unpack(kinematics.double())
    position, rotation, poses = k.commanded_position, k.commanded_rotation, []
    low, high = (torch.from_numpy(bound) for bound in droid.action_bounds("cartesian_position"))
    for action in actions.double().unbind(1):
        linear, turn = action[:, :3], action[:, 3:6]
        linear = linear / linear.norm(dim=1, keepdim=True).clamp(min=1) * droid.MAX_LINEAR_DELTA
        turn = turn / turn.norm(dim=1, keepdim=True).clamp(min=1) * droid.MAX_ROTATION_DELTA
        position, rotation = position + linear, rotvec_to_matrix(turn) @ rotation
        poses.append(torch.cat([position, matrix_to_euler(rotation), action[:, 6:]], 1).clamp(low, high))
    return torch.stack(poses, 1)

"""How fast the shipped world model imagines, by batch and horizon, and in how much memory; beside a plain pipeline."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.diffusers_pipeline import make_pipeline
from wvl_ros.checkpoints import find
from wvl_ros.evaluation.charts import Line, Panel, write_chart
from wvl_ros.evaluation.held_out import collect_held_out
from wvl_ros.evaluation.images import image_measures
from wvl_ros.evaluation.imagined import ImaginedEpisode, imagine_episodes
from wvl_ros.evaluation.outcome import outcome_measures
from wvl_ros.training.frame_cache import FrameCache, open_cache
from wvl_ros.training.world_model_data import cache_shape
from wvl_ros.world_model import patches
from wvl_ros.world_model.loading import load_world_model
from wvl_ros.world_model.model import WorldModel
from wvl_ros.world_model.rollout import Rollouts
from wvl_ros.worlds.imagined import ImaginedWorld

DATA, SEED, EPISODES = Path("data/speed"), 905_000, 24  # validation seeds: nothing is read off the held-out ones
TASKS = ("pick_place", "push", "stack")
BATCHES = (1, 2, 4, 8, 16, 32, 64)
HORIZONS = (10, 20, 40, 80, 160, 320)  # frames
STEPS = (1, 2, 5, 10, 20, 50)
CHART = Path(__file__).parent / "results" / "imagination_speed.png"


def run() -> dict[str, Any]:
    """Robot steps a second by threads and batch; time and memory by horizon; a plain pipeline's quality and speed."""
    model = load_world_model(find("world_model", "small"))
    folder = collect_held_out(DATA, SEED, EPISODES, find("policy", "small"), tasks=TASKS, workers=os.cpu_count() or 1)
    cache = open_cache(folder, **cache_shape(model.config))
    figures: dict[str, Any] = {}
    for threads in (1, 2):
        figures[f"robot steps/s of ImaginedWorld, batch 1, {threads} thread(s)"] = round(world_speed(threads), 1)
    by_batch = {batch: _rate(_rollouts(model, cache, batch), batch, cache.actions_per_frame) for batch in BATCHES}
    figures |= {f"robot steps/s in total, batch {batch}": round(rate) for batch, rate in by_batch.items()}
    figures["robot steps/s in total, two processes of one thread, batch 32"] = round(in_processes(2, 32))
    seconds, memory = by_horizon(model, cache)
    figures["seconds by frames, batch 8"] = seconds
    figures["MB of memory by frames, batch 8"] = memory
    times = {batch: batch * cache.actions_per_frame / rate for batch, rate in by_batch.items()}
    _chart(times, seconds, memory)
    return figures | compare(model, cache, by_batch)


def in_processes(count: int, batch: int) -> float:
    """Robot steps a second in total of so many processes at once, of one thread each."""
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        return sum(pool.map(_alone, [batch] * count))


def _alone(batch: int) -> float:
    torch.set_num_threads(1)
    model = load_world_model(find("world_model", "small"))
    cache = open_cache(DATA, **cache_shape(model.config))
    advance = _rollouts(model, cache, batch)
    _rate(advance, batch, cache.actions_per_frame)  # until the others have started too
    return _rate(advance, batch, cache.actions_per_frame, seconds=10)


def world_speed(threads: int, steps: int = 150) -> float:
    """Robot steps a second of one imagined rollout, observations included."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    world = ImaginedWorld(max_steps=10**6)
    _, info = world.reset(seed=0)
    action = np.asarray(info["commanded_pose"])
    for _ in range(6):
        world.step(action)
    began = time.perf_counter()
    for _ in range(steps):
        world.step(action)
    elapsed = time.perf_counter() - began
    world.close()
    torch.set_num_threads(before)
    return steps / elapsed


def by_horizon(model: WorldModel, cache: FrameCache) -> tuple[dict[int, float], dict[int, float]]:
    """Seconds, and MB of the process's own memory at the end, of rollouts of so many frames in a batch of 8."""
    seconds: dict[int, float] = {}
    memory: dict[int, float] = {}
    _rate(_rollouts(model, cache, 8), 8, 3)  # what is allocated once
    for frames in HORIZONS:
        advance = _rollouts(model, cache, 8)
        began = time.perf_counter()
        for _ in range(frames):
            advance()
        seconds[frames] = round(time.perf_counter() - began, 2)
        gc.collect()
        memory[frames] = round(_memory())
    return seconds, memory


def compare(model: WorldModel, cache: FrameCache, own_rates: dict[int, float]) -> dict[str, Any]:
    """`Rollouts` and the pipeline on the same episodes: PSNR, outcome accuracy; robot steps/s at batch 1 and 32."""
    episodes = np.arange(len(cache))
    figures: dict[str, Any] = {}
    own = _quality(model, cache, imagine_episodes(model, cache, episodes))
    figures["Rollouts, 1 step"] = _line(own, own_rates[1], own_rates[32])
    table = {}
    for steps in STEPS:
        quality = _quality(model, cache, _by_pipeline(model, cache, steps))
        rates = [_rate(_pipeline_loop(model, cache, batch, steps), batch, cache.actions_per_frame) for batch in (1, 32)]
        figures[f"diffusers pipeline, {steps} step(s)"] = _line(quality, *rates)
        table[steps] = (quality, rates)
    equal = [steps for steps, (quality, _) in table.items() if quality["psnr"] >= own["psnr_low"]]
    if equal:
        ratios = [own_rates[batch] / rate for batch, rate in zip((1, 32), table[equal[0]][1], strict=True)]
        figures[f"faster than the pipeline of equal quality ({equal[0]} step(s)), batch 1 and 32"] = (
            f"{ratios[0]:.1f} x, {ratios[1]:.1f} x"
        )
    ratios = [own_rates[batch] / rate for batch, rate in zip((1, 32), table[STEPS[-1]][1], strict=True)]
    figures[f"faster than the pipeline of {STEPS[-1]} steps, batch 1 and 32"] = f"{ratios[0]:.0f} x, {ratios[1]:.0f} x"
    return figures


def _quality(model: WorldModel, cache: FrameCache, imagined: list[ImaginedEpisode]) -> dict[str, float]:
    episodes = np.arange(len(cache))
    images = image_measures(cache, episodes, imagined, model)
    limits = float(model.config["success_threshold"]), int(model.config["success_frames"])
    outcome = outcome_measures([own.success_probability for own in imagined], cache.outcomes, *limits)
    low = images["intervals_95"]["psnr"][0]
    return {"psnr": images["psnr"], "psnr_low": low, "ssim": images["ssim"], "accuracy": outcome["accuracy"]}


def _line(quality: dict[str, float], one: float, many: float) -> str:
    return (
        f"PSNR {quality['psnr']:.2f}, SSIM {quality['ssim']:.3f}, outcome right {quality['accuracy']:.2f}; "
        f"{one:.0f} robot steps/s at batch 1, {many:.0f} at 32"
    )


class _Start:
    """The first frames of B episodes of a cache, again from the front when there are fewer, and their actions."""

    def __init__(self, cache: FrameCache, batch: int) -> None:
        self.cache, self.rows = cache, torch.arange(batch) % len(cache)
        zero = torch.zeros_like(self.rows)
        self.frames = cache.frame(self.rows, zero)
        self.kinematics = cache.kinematics[cache.step(self.rows, zero)]
        self.instructions = [cache.instructions[i] for i in self.rows.tolist()]
        self.calibrated = cache.calibrated[self.rows]

    def actions(self, t: int) -> Tensor:
        """(B, K, 7) from frame t to the next; at an episode's end from its front again."""
        return self.cache.chunk(self.rows, torch.full_like(self.rows, t) % (self.cache.frame_count[self.rows] - 1))


def _rollouts(model: WorldModel, cache: FrameCache, batch: int) -> Callable[[], None]:
    """A function that imagines one more frame of B rollouts."""
    start = _Start(cache, batch)
    rollouts, count = Rollouts(model, stop_at_success=False), iter(range(10**9))
    rollouts.start(start.frames, start.kinematics, start.instructions, start.calibrated, list(range(batch)))

    def advance() -> None:
        rollouts.advance(start.actions(next(count)))

    return advance


class _Loop:
    """Rollouts by the pipeline; `advance` gives the next frames, chances and kinematics."""

    def __init__(self, model: WorldModel, cache: FrameCache, batch: int, steps: int) -> None:
        self.start, self.steps, self.count = _Start(cache, batch), steps, 0
        self.pipeline = make_pipeline(model)
        self.last = self.previous = self.start.frames
        self.kinematics = self.start.kinematics
        self.generator = torch.Generator().manual_seed(0)

    def advance(self) -> tuple[Tensor, Tensor, Tensor]:
        """One more frame."""
        start = self.start
        frame, chance, kinematics = self.pipeline(
            start.instructions, start.frames, start.kinematics, start.calibrated, self.last, self.previous,
            self.kinematics, start.actions(self.count), self.steps, self.generator,
        )  # fmt: skip
        self.previous, self.last, self.kinematics = self.last, frame, kinematics
        self.count += 1
        return frame, chance, kinematics


def _pipeline_loop(model: WorldModel, cache: FrameCache, batch: int, steps: int) -> Callable[[], object]:
    return _Loop(model, cache, batch, steps).advance


def _by_pipeline(model: WorldModel, cache: FrameCache, steps: int) -> list[ImaginedEpisode]:
    """All episodes of the cache (they are equally long) imagined by the pipeline."""
    loop, frames, chances, arms = _Loop(model, cache, len(cache), steps), [], [], []
    for _ in range(int(cache.frame_count.min()) - 1):
        frame, chance, kinematics = loop.advance()
        frames.append(patches.to_uint8(frame))
        chances.append(chance.numpy().astype(float))
        arms.append(kinematics)
    return [
        ImaginedEpisode(np.stack([f[i] for f in frames]), np.array([c[i] for c in chances]), torch.stack(arms)[:, i])
        for i in range(len(cache))
    ]


def _rate(advance: Callable[[], object], batch: int, per_frame: int, seconds: float = 3.0) -> float:
    """Robot steps a second, all rollouts together."""
    for _ in range(2):
        advance()
    frames, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds or frames < 3:
        advance()
        frames += 1
    return frames * batch * per_frame / elapsed


def _chart(times: dict[int, float], seconds: dict[int, float], memory: dict[int, float]) -> None:
    milliseconds = [1000 * value for value in times.values()]
    panels = [
        Panel("rollouts at once", "ms a frame", [Line("", list(times), milliseconds)], from_zero=True),
        Panel("frames imagined", "seconds, batch 8", [Line("", list(seconds), list(seconds.values()))], from_zero=True),
        Panel("frames imagined", "MB of memory", [Line("", list(memory), list(memory.values()))], from_zero=True),
    ]
    write_chart(CHART, panels)


def _memory() -> float:
    """MB of this process's memory that is no file's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) / 1000

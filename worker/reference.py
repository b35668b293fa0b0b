"""Reference trajectories: what relative controls compare with (sections 3.2 and 8.3).

A relative head says something of an image only beside the same head's readout of a *reference* at
the same timestep. The reference is sampled once, alone and unguided, from its own noise or from
that of `invert`; its latents are kept for every step, and what the heads say for the steps that
controls act on. Nothing of it runs beside the pictures that follow it, as the authors' twin does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from heads_registry.base_model import BaseModel, Latents
from heads_registry.networks import ReadoutHead
from worker.guidance import read
from worker.passes import Branch, Passes
from worker.plan import SampleItem, SamplingPlan
from worker.sampler import Run
from worker.schedule import DDIMSchedule

Key = tuple[str, Branch, int]
"""Reader, branch, step index."""
OnPass = Callable[[], None]


@dataclass(frozen=True, eq=False)
class Reader:
    """A head as it is read along a trajectory.

    Attributes:
        key: what tells its readouts from another head's; the hash of its weights.
        head: the network, frozen.
        taps: module paths of the features it reads.
        timestep_convention: see `HeadManifest`.
    """

    key: str
    head: ReadoutHead
    taps: tuple[str, ...]
    timestep_convention: str


@dataclass(eq=False)
class Trajectory:
    """One sampled reference, on the CPU.

    Attributes:
        latents: (steps + 1, channels, h, w); [i] enters step i, the last is the clean one. Before
            the plan's first step all are the first one.
        readouts: what the heads say before a step, (channels, height, width).
        psnr_db: of the last latents' picture against the one that was inverted; None: sampled.
    """

    latents: Float[Tensor, "states channels h w"]
    readouts: dict[Key, Float[Tensor, "channels height width"]] = field(default_factory=dict)
    psnr_db: float | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.latents.nbytes + sum(readout.nbytes for readout in self.readouts.values())

    def trimmed(self, budget_bytes: int) -> Trajectory:
        """The latents, and as many of the readouts as the budget leaves room for."""
        kept, left = {}, budget_bytes - self.latents.nbytes
        for key, readout in self.readouts.items():
            left -= readout.nbytes
            if left < 0:
                break
            kept[key] = readout
        return Trajectory(self.latents, kept, self.psnr_db)


@dataclass(frozen=True, eq=False)
class TrajectoryReadouts:
    """One head's part of a trajectory, as the target of a control."""

    trajectory: Trajectory
    reader: str

    def at(self, step_index: int, branch: Branch) -> Float[Tensor, "channels height width"]:
        """The readout before step `step_index`."""
        return self.trajectory.readouts[self.reader, branch, step_index]


@torch.no_grad()
def record(
    model: BaseModel,
    item: SampleItem,
    plan: SamplingPlan,
    readers: Sequence[Reader],
    steps: Iterable[int],
    branches: Sequence[Branch],
    *,
    dtype: torch.dtype = torch.float16,
    on_pass: OnPass = lambda: None,
) -> Trajectory:
    """Sample the reference without guidance; one U-Net pass a step.

    Args:
        model: the frozen base model.
        item: the reference; its targets are not looked at.
        plan: how it is sampled; has the steps of the pictures that will follow it.
        readers: heads whose readouts are kept.
        steps: those at which they are kept.
        branches: whose features are read.
        dtype: of the readouts that are kept.
        on_pass: called before each pass; raise in it to stop.
    """
    taps = tuple(dict.fromkeys(tap for reader in readers for tap in reader.taps))
    run = Run(model, [item], plan, taps)
    wanted = set(steps)
    states = [run.latents[0].cpu()] * (run.steps.start + 1)
    trajectory = Trajectory(torch.empty(0))
    for step_index in run.steps:
        on_pass()
        passes = Passes(branches if readers and step_index in wanted else ())
        noise_pred = run.noise_pred(step_index, passes)
        _keep(trajectory, run, step_index, passes, readers, dtype)
        run.advance(step_index, noise_pred)
        states.append(run.latents[0].cpu())
    trajectory.latents = torch.stack(states)
    return trajectory


@torch.no_grad()
def complete(
    model: BaseModel,
    trajectory: Trajectory,
    item: SampleItem,
    plan: SamplingPlan,
    readers: Sequence[Reader],
    steps: Iterable[int],
    branches: Sequence[Branch],
    *,
    dtype: torch.dtype = torch.float16,
    on_pass: OnPass = lambda: None,
) -> int:
    """Add the readouts that a trajectory lacks, from its latents; the arguments are `record`'s.

    A pass has the batch shape that `record`'s has, so it gives the same bits. Returns the number
    of U-Net passes: 0 where nothing lacks, without so much as encoding the prompt.
    """

    def lacking(step_index: int) -> list[Reader]:
        return [
            reader
            for reader in readers
            if any(
                (reader.key, branch, step_index) not in trajectory.readouts for branch in branches
            )
        ]

    missing = {
        step_index: lack for step_index in sorted(set(steps)) if (lack := lacking(step_index))
    }
    if not missing:
        return 0
    taps = tuple(dict.fromkeys(tap for reader in readers for tap in reader.taps))
    run = Run(model, [item], plan, taps)
    for step_index, lack in missing.items():
        on_pass()
        run.latents = trajectory.latents[step_index : step_index + 1].to(run.latents)
        passes = Passes(branches)
        run.noise_pred(step_index, passes)
        _keep(trajectory, run, step_index, passes, lack, dtype)
    return len(missing)


@torch.no_grad()
def invert(
    model: BaseModel,
    latents: Latents,
    prompt: str,
    plan: SamplingPlan,
    *,
    first_timestep: int = 0,
    on_pass: OnPass = lambda: None,
) -> Float[Tensor, "states channels h w"]:
    """DDIM inversion of a clean image: the noise from which it is sampled again (section 4.3).

    Without classifier-free guidance, as table 1 has it for the reference. Song et al. 2021: the
    deterministic step, from each timestep to the noisier one with the noise predicted at the less
    noisy. One U-Net pass a step.

    Args:
        model: the frozen base model.
        latents: (1, channels, h, w) of the image, such as `BaseModel.encode` returns.
        prompt: what the image shows; may be empty.
        plan: its size and its number of steps; eta is not looked at.
        first_timestep: what the U-Net is told of the clean latents. The authors' code says -1,
            which no model was trained on; the noise level is that of timestep 0 in either case.
        on_pass: called before each pass; raise in it to stop.

    Returns:
        (steps + 1, channels, h, w): [0] is the image, [-1] its noise.
    """
    schedule = DDIMSchedule(model.ddim_scheduler(plan.num_inference_steps), 0.0, model.device)
    conditioning = model.encode_prompts([prompt], plan.height, plan.width)
    latents = latents.to(model.device, model.latent_dtype)
    timestep = torch.tensor(float(first_timestep), device=model.device)
    states = [latents]
    for step_index in reversed(range(len(schedule))):
        on_pass()
        output = model.denoise(latents, timestep, conditioning)
        latents = schedule.inverse_step(latents, output, step_index)
        timestep = schedule.timesteps[step_index]
        states.append(latents)
    return torch.cat(states)


def _keep(
    trajectory: Trajectory,
    run: Run,
    step_index: int,
    passes: Passes,
    readers: Sequence[Reader],
    dtype: torch.dtype,
) -> None:
    """What the heads say of a pass."""
    for branch in passes.observed:
        features = passes.features(branch, 0)
        for reader in readers:
            readout = read(
                features,
                run.taps,
                reader,
                lambda convention: run.time_embedding(step_index, convention),
                run.size,
            )
            # contiguous, as it comes back from disk: sums over other strides round otherwise
            kept = readout[0].to("cpu", dtype).contiguous()
            trajectory.readouts[reader.key, branch, step_index] = kept

"""One resumable training loop for every stage; knows no networks, only the Stage protocol."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from demo_model.config import PlanConfig
from demo_model.parallel import Group
from demo_model.schedule import learning_rate, progress

#: More than this is compilation, a sleeping machine or a held process: it is not training time.
LONGEST_STEP_S = 30.0


class Stage(Protocol):
    """What the loop trains: it steps, it can be saved, and it shows what it can do."""

    name: str
    plan: PlanConfig
    generator: torch.Generator

    def train_step(self, position: int, rate: float, step: int) -> float | None:
        """One optimiser step on the samples from `position` on; the loss where it is known."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`'s answer."""

    def write_sheet(self, path: Path) -> dict[str, float]:
        """Writes a PNG that shows the state of training; returns measures for the log."""


class Stopped(Exception):
    """SIGTERM or SIGINT came; the state has been saved."""


class StopFlag:
    """Set by SIGTERM and SIGINT between `__enter__` and `__exit__`."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopFlag:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._set)
        return self

    def _set(self, number: int, frame: object) -> None:
        self.requested = True

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """torch.save to a temporary name, flushed, then renamed: a crash leaves the old file."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


class Loop:
    """Runs one stage in `folder` until its plan is done; resumes from `<name>.pt` there.

    The stage's generator is seeded anew at every step from (seed, step, rank), so that a resumed
    run draws what an uninterrupted one would, whatever the number of processes that were saved.
    """

    def __init__(
        self, stage: Stage, folder: Path, seed: int = 0, group: Group | None = None
    ) -> None:
        self.stage, self.folder, self.seed = stage, folder, seed
        self.group = group or Group()
        self.step = self.samples = 0
        self.elapsed_s = 0.0
        self.loss: float | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{stage.name}.pt"
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        saved = torch.load(self.path, map_location="cpu", weights_only=True)
        self.step, self.samples = saved["step"], saved["samples"]
        self.elapsed_s, self.loss = saved["elapsed_s"], saved["loss"]
        self.stage.load_state_dict(saved["stage"])

    def save(self) -> None:
        """Writes the checkpoint; only the leading process does."""
        if not self.group.leads:
            return
        counters = {"step": self.step, "samples": self.samples, "elapsed_s": self.elapsed_s}
        state = {**counters, "loss": self.loss, "stage": self.stage.state_dict()}
        save_atomically(state, self.path)

    @property
    def done(self) -> float:
        """Progress, 0…1."""
        return progress(self.stage.plan, self.samples, self.elapsed_s)

    def _show(self) -> None:
        if not self.group.leads:
            return
        sheet = self.folder / "sheets" / f"{self.stage.name}-{self.samples:08d}.png"
        sheet.parent.mkdir(exist_ok=True)
        measures = self.stage.write_sheet(sheet)
        row = {"stage": self.stage.name, "step": self.step, "samples": self.samples}
        row |= {"elapsed_s": round(self.elapsed_s, 1), "loss": self.loss, **measures}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        tqdm.write(json.dumps(row))

    def _advance(self) -> None:
        """One step of the stage."""
        stage = self.stage
        stage.generator.manual_seed((self.seed << 40) + (self.step << 8) + self.group.rank)
        loss = stage.train_step(self.samples, learning_rate(stage.plan, self.done), self.step)
        if loss is not None:
            factor = 0.05 if self.step > 100 else 0.3  # known every tenth step
            self.loss = loss if self.loss is None else self.loss + factor * (loss - self.loss)
        self.step += 1
        self.samples += stage.plan.batch_size

    def run(self, max_steps: int | None = None) -> bool:
        """Trains until the plan, or `max_steps` more steps, are done; returns whether the plan is.

        Raises:
            Stopped: a signal asked to stop; the checkpoint is written.
        """
        plan, before = self.stage.plan, time.monotonic()
        last_step = None if max_steps is None else self.step + max_steps
        saved_at = shown_at = before
        already_done = self.done >= 1.0
        hidden = not self.group.leads
        bar = tqdm(total=plan.samples, initial=self.samples, unit="sample", desc=self.stage.name,
                   mininterval=5.0, disable=hidden)  # fmt: skip
        with StopFlag() as stop, bar:
            while self.done < 1.0 and (last_step is None or self.step < last_step):
                self._advance()
                now = time.monotonic()
                step_s = min(now - before, LONGEST_STEP_S)
                self.elapsed_s, stopping = self.group.agree(
                    self.elapsed_s + step_s, float(stop.requested)
                )
                before = now
                if self.step % 10 == 0:
                    bar.set_postfix(loss=self.loss and round(self.loss, 4), refresh=False)
                bar.update(plan.batch_size)
                if stopping:
                    self.save()
                    raise Stopped(self.stage.name)
                if now - saved_at > 60 * plan.checkpoint_minutes:
                    self.save()
                    saved_at = now
                if now - shown_at > 60 * plan.sheet_minutes:
                    self._show()
                    shown_at = now
        if already_done:
            return True
        self.save()
        if self.done >= 1.0:
            self._show()
        return self.done >= 1.0

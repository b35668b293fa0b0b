"""The text encoder's stage: pre-training by reading back which words stand together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTokenizer

from demo_model.config import RunConfig
from demo_model.data import EpochOrder, Renders
from demo_model.devices import Device
from demo_model.networks import build_text_encoder
from world.packed import Packed

#: Captions of each image: with and without words of the pose.
WITH_POSE, WITHOUT_POSE = 4, 2


def tokenize_captions(tokenizer: CLIPTokenizer, packed: Packed, length: int) -> np.ndarray:
    """(count, 6, length) int16: token ids of all captions of every image, poseless last."""
    captions: list[str] = []
    for row in packed.rows:
        captions += row["captions"][:WITH_POSE] + row["captions_without_pose"][:WITHOUT_POSE]
    unique = {caption: index for index, caption in enumerate(dict.fromkeys(captions))}
    ids = tokenizer(list(unique), padding="max_length", max_length=length, truncation=True)
    table = np.array(ids["input_ids"], np.int16)
    chosen = np.array([unique[caption] for caption in captions])
    return table[chosen].reshape(len(packed.rows), WITH_POSE + WITHOUT_POSE, length)


def frequent_bigrams(ids: np.ndarray, end: int, vocabulary: int, least: int = 20) -> np.ndarray:
    """Codes (first · vocabulary + second) of the pairs of neighbouring words in the captions."""
    flat = ids.reshape(-1, ids.shape[-1]).astype(np.int64)
    first, second = flat[:, 1:-1], flat[:, 2:]
    codes, counts = np.unique((first * vocabulary + second)[second != end], return_counts=True)
    return codes[counts >= least]


class BigramReader(nn.Module):
    """Reads from the hidden states: the previous word at each word; all bigrams at the end of text
    and at every padding after it. "red shirt" but not "red trousers" is what binds colours."""

    def __init__(self, width: int, vocabulary: int, bigrams: int) -> None:
        super().__init__()
        self.previous = nn.Linear(width, vocabulary)
        self.bag = nn.Linear(width, bigrams)


class TextStage:
    """Pre-trains the text encoder on captions alone: minutes, so that colours are bound to garments
    in its embeddings before the U-Net begins to listen."""

    name = "text"

    def __init__(
        self, config: RunConfig, renders: Renders, device: Device, tokenizer: CLIPTokenizer
    ) -> None:
        self.plan, self.device = config.text.plan, device
        torch.manual_seed(config.seed)
        self.ids = tokenize_captions(tokenizer, renders.train, config.text.max_length)
        self.end, self.vocabulary = int(tokenizer.eos_token_id), len(tokenizer)
        codes = frequent_bigrams(self.ids[:20_000], self.end, self.vocabulary)
        self.codes = torch.from_numpy(codes).to(device.device)
        self.model = build_text_encoder(config, tokenizer).to(device.device)
        self.reader = BigramReader(config.text.width, self.vocabulary, len(codes)).to(device.device)
        some = torch.from_numpy(self.ids[:500, 0].astype(np.int64)).to(device.device)
        with torch.no_grad():  # begins at the frequencies
            self.reader.bag.bias.copy_(self._present(some).mean(0).clamp(1e-3, 0.99).logit())
        self.order = EpochOrder(len(self.ids), config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        parameters = [*self.model.parameters(), *self.reader.parameters()]
        self.optimizer = torch.optim.AdamW(
            parameters, weight_decay=self.plan.weight_decay, fused=True
        )
        self._measures: dict[str, float] = {}

    def _present(self, ids: Tensor) -> Tensor:
        """(batch, bigrams) 1 where the caption has the bigram."""
        pairs = ids[:, :-1] * self.vocabulary + ids[:, 1:]
        at = torch.searchsorted(self.codes, pairs).clamp(max=len(self.codes) - 1)
        found = (self.codes[at] == pairs).float()
        present = torch.zeros(len(ids), len(self.codes), device=ids.device)
        return present.scatter_reduce(1, at, found, "amax")

    def train_step(self, position: int, rate: float, step: int) -> float | None:
        """One AdamW step on one batch of captions; the loss every tenth step."""
        images = self.order.batch(position, self.plan.batch_size)
        variant = torch.randint(0, self.ids.shape[1], (len(images),), generator=self.generator)
        ids = torch.from_numpy(self.ids[images, variant.numpy()].astype(np.int64)).to(
            self.device.device
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self.device.autocast():
            hidden = self.model(ids).last_hidden_state
            words = ids[:, 1:] != self.end
            previous = self.reader.previous(hidden[:, 1:][words])
            loss = F.cross_entropy(previous.float(), ids[:, :-1][words])
            ends = (ids == self.end).float()
            pick = torch.multinomial(ends.cpu(), 2, True, generator=self.generator).to(ids.device)
            states = hidden.gather(1, pick[..., None].expand(-1, -1, hidden.shape[-1]))
            bag, present = (
                self.reader.bag(states).float(),
                self._present(ids)[:, None].expand(-1, 2, -1),
            )
        errors = F.binary_cross_entropy_with_logits(bag, present, reduction="none")
        loss = loss + errors.sum(-1).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if step % 10:
            return None
        right = ((bag > 0) == (present > 0.5)).all(-1).float().mean()
        self._measures = {"captions_read_back": round(right.item(), 4)}
        return loss.item()

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimiser."""
        parts = {"model": self.model, "reader": self.reader, "optimizer": self.optimizer}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores weights and optimiser."""
        self.model.load_state_dict(state["model"])
        self.reader.load_state_dict(state["reader"])
        self.optimizer.load_state_dict(state["optimizer"])

    def write_sheet(self, path: Path) -> dict[str, float]:
        """No picture; the part of captions whose bigrams are all read back."""
        return self._measures

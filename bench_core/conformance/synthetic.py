"""Synthetic recordings for the checks: samples from easy to hard, with event frames for strategies that use inputs."""

from dataclasses import dataclass, replace

import torch

from bench_core.trace.trace import Trace

__all__ = ["Recording", "record"]

SAMPLES, TIMESTEPS, CLASSES = 48, 6, 5
FRAME = (2, 8, 8)


@dataclass(frozen=True)
class Recording:
    """A recording of some samples.

    Attributes:
        trace: logits, labels and ids.
        frames: network input at each timestep, float32 [N, T, C, H, W].
    """

    trace: Trace
    frames: torch.Tensor

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.trace)

    def copy(self) -> "Recording":
        """Return a copy with its own tensors, so that a strategy's modifications affect only the copy."""
        trace = self.trace
        return Recording(
            Trace(trace.logits.clone(), trace.labels.clone(), trace.sample_ids.clone()), self.frames.clone()
        )

    def select(self, index: torch.Tensor) -> "Recording":
        """Return the samples at ``index``, in that order."""
        return Recording(self.trace.select(index), self.frames[index])

    def with_logits(self, logits: torch.Tensor) -> "Recording":
        """Return the same samples with other logits."""
        return replace(self, trace=replace(self.trace, logits=logits))

    def with_labels(self, labels: torch.Tensor) -> "Recording":
        """Return the same samples with other labels."""
        return replace(self, trace=replace(self.trace, labels=labels))

    def with_future_of(self, other: "Recording", t: int) -> "Recording":
        """Return the same up to timestep t, followed by the logits and frames of ``other``."""
        logits = torch.cat([self.trace.logits[:, :t], other.trace.logits[:, t:]], 1)
        return replace(self.with_logits(logits), frames=torch.cat([self.frames[:, :t], other.frames[:, t:]], 1))

    def read(self, positions: torch.Tensor, frames: int) -> torch.Tensor:
        """Return the network input presented so far, as ``InputFrames`` does, float32 [B, F, C, H, W]."""
        return self.frames[positions, :frames].clone()


def record(seed: int, *, samples: int = SAMPLES, timesteps: int = TIMESTEPS) -> Recording:
    """Return noisy evidence for every sample's label, weak for some and strong for others; no two logits tie."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % CLASSES
    strength = 0.5 + 2.0 * torch.rand(samples, 1, 1, generator=generator)
    signal = strength * torch.nn.functional.one_hot(labels, CLASSES)[:, None]
    logits = signal + 1.5 * torch.randn(samples, timesteps, CLASSES, generator=generator)
    ids = torch.randperm(10_000, generator=generator)[:samples]
    return Recording(Trace(logits, labels, ids), torch.rand(samples, timesteps, *FRAME, generator=generator))

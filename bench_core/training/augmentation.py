"""Augmentation of whole batches of raw images, from a seeded generator."""

import torch
import torch.nn.functional as F

__all__ = ["augment"]


def augment(images: torch.Tensor, generator: torch.Generator, *, shift: int, flip: bool) -> torch.Tensor:
    """Shift each image by up to ``shift`` pixels (zeros move in) and, if ``flip``, mirror every other one at random.

    ``images``: uint8 [B, C, H, W]; returns the same shape and type.
    """
    batch, channels, height, width = images.shape
    if flip:
        mirrored = torch.rand(batch, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if shift:
        padded = F.pad(images, [shift] * 4)
        top, left = torch.randint(0, 2 * shift + 1, (2, batch, 1, 1, 1), generator=generator)
        rows = (top + torch.arange(height)[:, None]).expand(batch, channels, height, 1)
        columns = (left + torch.arange(width)[None, :]).expand(batch, channels, 1, width)
        sample = torch.arange(batch)[:, None, None, None]
        images = padded[sample, torch.arange(channels)[None, :, None, None], rows, columns]
    return images

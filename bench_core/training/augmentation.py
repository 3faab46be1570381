"""Augmentation of batches of raw images, from a seeded generator, on the images' own device.

The random numbers are drawn on the CPU, so that a GPU applies the same augmentation.
"""

import torch
import torch.nn.functional as F

from bench_core.training.autoaugment import autoaugment_cifar

__all__ = ["augment", "augment_frames"]


def augment(
    images: torch.Tensor,
    generator: torch.Generator,
    *,
    shift: int,
    flip: bool | torch.Tensor,
    reflect: bool = False,
    autoaugment: bool = False,
    cutout: int = 0,
    fill: tuple[int, ...] = (0,),
) -> torch.Tensor:
    """Mirror, shift, AutoAugment and cutout, in this order, each only if requested.

    Args:
        images: [B, C, H, W], usually uint8; the result has the same shape and type.
        generator: source of the random numbers, on the CPU.
        shift: move each image by up to this many pixels; zeros move in.
        flip: mirror each image with probability one half; or which to mirror, bool [B].
        reflect: move in the image's own reflection at its border instead of zeros.
        autoaugment: apply a random policy of AutoAugment's for CIFAR; needs uint8.
        cutout: erase a square of this side around a random pixel; the part outside the image is lost (DeVries and
            Taylor, arXiv 1708.04552).
        fill: raw value per channel (or one for all) of erased pixels.
    """
    batch, channels, height, width = images.shape
    device = images.device
    if isinstance(flip, torch.Tensor) or flip:
        mirrored = flip if isinstance(flip, torch.Tensor) else torch.rand(batch, generator=generator) < 0.5
        images = torch.where(mirrored.to(device)[:, None, None, None], images.flip(-1), images)
    if shift:
        if reflect and shift >= min(height, width):
            raise ValueError(f"images of {height} x {width} have no reflection {shift} pixels wide; shift less")
        padded = _reflected(images, shift) if reflect else F.pad(images, [shift] * 4)
        top, left = torch.randint(0, 2 * shift + 1, (2, batch, 1, 1, 1), generator=generator).to(device)
        rows = (top + torch.arange(height, device=device)[:, None]).expand(batch, channels, height, 1)
        columns = (left + torch.arange(width, device=device)[None, :]).expand(batch, channels, 1, width)
        sample = torch.arange(batch, device=device)[:, None, None, None]
        images = padded[sample, torch.arange(channels, device=device)[None, :, None, None], rows, columns]
    if autoaugment:
        images = autoaugment_cifar(images, generator)
    if cutout:
        images = _erase(images, generator, cutout, fill)
    return images


def augment_frames(
    frames: torch.Tensor,
    generator: torch.Generator,
    *,
    shift: int,
    flip: bool | torch.Tensor,
    reflect: bool = False,
    cutout: int = 0,
) -> torch.Tensor:
    """Augment event frames [T, B, C, H, W] like ``augment``; all frames of a sample are changed alike."""
    steps, channels = frames.shape[0], frames.shape[2]
    stacked = frames.transpose(0, 1).flatten(1, 2)
    changed = augment(stacked, generator, shift=shift, flip=flip, reflect=reflect, cutout=cutout)
    return changed.reshape(len(changed), steps, channels, *changed.shape[2:]).transpose(0, 1)


def _reflected(images: torch.Tensor, width: int) -> torch.Tensor:
    """Return images with a border of their own reflection, without the edge pixels; torch's padding rejects uint8."""
    for dimension in (-2, -1):
        last = images.shape[dimension] - 1
        places = torch.arange(-width, last + width + 1, device=images.device).abs()
        images = images.index_select(dimension, last - (last - places).abs())
    return images


def _erase(images: torch.Tensor, generator: torch.Generator, side: int, fill: tuple[int, ...]) -> torch.Tensor:
    batch, _, height, width = images.shape
    row = torch.randint(0, height, (batch, 1, 1), generator=generator)
    column = torch.randint(0, width, (batch, 1, 1), generator=generator)
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    from_row, from_column = row - side // 2, column - side // 2
    hole = (rows >= from_row) & (rows < from_row + side) & (columns >= from_column) & (columns < from_column + side)
    value = torch.tensor(fill, dtype=images.dtype, device=images.device).reshape(-1, 1, 1)
    return torch.where(hole[:, None].to(images.device), value, images)

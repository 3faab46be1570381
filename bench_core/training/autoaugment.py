"""AutoAugment's policy for CIFAR, on whole batches (Cubuk et al., CVPR 2019, arXiv 1805.09501, table 7).

A random one of 25 sub-policies applies to each image: two operations, each with a probability and a magnitude. The
operations follow Pillow's, with which the policy was found; the geometric ones take the nearest pixel and fill with
grey 128, as the authors' code does. They truncate where Pillow does; tests compare the two.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F

__all__ = ["CIFAR_POLICY", "Operation", "apply_operation", "autoaugment_cifar"]

GREY = 128
LEVELS = 10
_LUMA = (299, 587, 114)  # thousandths


class Operation(NamedTuple):
    """One operation of a sub-policy: its name, its probability, and its level, 0 to 9."""

    name: str
    probability: float
    level: int = 0


def _policy(*parts: tuple[str, float, int]) -> tuple[Operation, ...]:
    return tuple(Operation(*part) for part in parts)


CIFAR_POLICY: Final[tuple[tuple[Operation, ...], ...]] = (
    _policy(("invert", 0.1, 7), ("contrast", 0.2, 6)),
    _policy(("rotate", 0.7, 2), ("translate-x", 0.3, 9)),
    _policy(("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    _policy(("shear-y", 0.5, 8), ("translate-y", 0.7, 9)),
    _policy(("autocontrast", 0.5, 8), ("equalize", 0.9, 2)),
    _policy(("shear-y", 0.2, 7), ("posterize", 0.3, 7)),
    _policy(("color", 0.4, 3), ("brightness", 0.6, 7)),
    _policy(("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    _policy(("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    _policy(("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    _policy(("color", 0.7, 7), ("translate-x", 0.5, 8)),
    _policy(("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
    _policy(("translate-y", 0.4, 3), ("sharpness", 0.2, 6)),
    _policy(("brightness", 0.9, 6), ("color", 0.2, 8)),
    _policy(("solarize", 0.5, 2), ("invert", 0.0, 3)),
    _policy(("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    _policy(("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    _policy(("color", 0.9, 9), ("equalize", 0.6, 6)),
    _policy(("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
    _policy(("brightness", 0.1, 3), ("color", 0.7, 0)),
    _policy(("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
    _policy(("translate-y", 0.9, 9), ("translate-y", 0.7, 9)),
    _policy(("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
    _policy(("equalize", 0.8, 8), ("invert", 0.1, 3)),
    _policy(("translate-y", 0.7, 9), ("autocontrast", 0.9, 1)),
)
_NAMES: Final = sorted({operation.name for pair in CIFAR_POLICY for operation in pair})


def autoaugment_cifar(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Apply a random sub-policy to each image, uint8 [B, 1 or 3, H, W]; return the same shape and type."""
    if images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
        raise ValueError(f"AutoAugment needs grey or RGB images in uint8, not {images.dtype} {list(images.shape)}")
    batch = len(images)
    policies = torch.randint(0, len(CIFAR_POLICY), (batch,), generator=generator)
    chances = torch.rand(2, batch, generator=generator)
    signs = torch.randint(0, 2, (2, batch), generator=generator) * 2 - 1
    for turn in (0, 1):
        table = [pair[turn] for pair in CIFAR_POLICY]
        probability = torch.tensor([operation.probability for operation in table])[policies]
        name = torch.tensor([_NAMES.index(operation.name) for operation in table])[policies]
        level = torch.tensor([operation.level for operation in table])[policies]
        name = torch.where(chances[turn] < probability, name, -1)
        changed = images.clone()
        for number in name.unique().tolist():
            if number >= 0:
                mine = torch.nonzero(name == number).flatten()
                at = mine.to(images.device)
                changed[at] = apply_operation(_NAMES[number], images[at], level[mine], signs[turn][mine])
        images = changed
    return images


def apply_operation(name: str, images: torch.Tensor, level: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Apply one operation to a batch.

    Args:
        name: of the operation, as in ``CIFAR_POLICY``.
        images: uint8 [B, C, H, W].
        level: [B], 0 to 9.
        sign: [B], -1 or 1: the direction of a movement, or whether a colour operation weakens or strengthens.
    """
    share = (level.double() / (LEVELS - 1)).to(images.device)
    return _OPERATIONS[name](images, share, sign.to(images.device))


def _affine(images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Sample each image at the positions to which ``matrix`` [B, 2, 3] maps its pixel centres.

    Positions are in pixels from the image's middle.
    """
    height, width = images.shape[-2:]
    rows, columns = torch.meshgrid(
        torch.arange(height, device=images.device) - (height - 1) / 2,
        torch.arange(width, device=images.device) - (width - 1) / 2,
        indexing="ij",
    )
    places = torch.stack([columns, rows, torch.ones_like(rows)]).flatten(1).to(matrix.dtype)
    x, y = (matrix @ places).unbind(1)
    x, y = (x + width / 2).floor().long(), (y + height / 2).floor().long()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    at = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).unsqueeze(1).expand(-1, images.shape[1], -1)
    seen = images.flatten(2).gather(2, at)
    return torch.where(inside.unsqueeze(1), seen, GREY).to(torch.uint8).reshape(images.shape)


def _matrix(share: torch.Tensor, **entries: torch.Tensor) -> torch.Tensor:
    matrix = torch.eye(2, 3, dtype=share.dtype, device=share.device).repeat(len(share), 1, 1)
    for place, values in entries.items():
        matrix[:, int(place[1]), int(place[2])] = values
    return matrix


def _shear_x(images: torch.Tensor, share: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    return _affine(images, _matrix(share, m01=sign * share * 0.3))


def _shear_y(images: torch.Tensor, share: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    return _affine(images, _matrix(share, m10=sign * share * 0.3))


def _translate_x(images: torch.Tensor, share: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    return _affine(images, _matrix(share, m02=sign * share * 150 / 331 * images.shape[-1]))


def _translate_y(images: torch.Tensor, share: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    return _affine(images, _matrix(share, m12=sign * share * 150 / 331 * images.shape[-2]))


def _rotate(images: torch.Tensor, share: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    angle = torch.deg2rad(sign * share * 30)
    return _affine(images, _matrix(share, m00=angle.cos(), m01=-angle.sin(), m10=angle.sin(), m11=angle.cos()))


def _invert(images: torch.Tensor, _share: torch.Tensor, _sign: torch.Tensor) -> torch.Tensor:
    return 255 - images


def _solarize(images: torch.Tensor, share: torch.Tensor, _sign: torch.Tensor) -> torch.Tensor:
    threshold = (255 * (1 - share))[:, None, None, None]
    return torch.where(images < threshold, images, 255 - images)


def _posterize(images: torch.Tensor, share: torch.Tensor, _sign: torch.Tensor) -> torch.Tensor:
    dropped = (share * 4).round().long()  # bits: 8 are kept at level 0, 4 at level 9
    mask = (256 - 2**dropped).to(torch.uint8)
    return images & mask[:, None, None, None]


def _autocontrast(images: torch.Tensor, _share: torch.Tensor, _sign: torch.Tensor) -> torch.Tensor:
    flat = images.flatten(2).double()
    low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
    scale = 255.0 / (high - low).clamp(min=1)
    stretched = (flat * scale - low * scale).trunc().clamp(0, 255)
    return torch.where(high > low, stretched, flat).to(torch.uint8).reshape(images.shape)


def _equalize(images: torch.Tensor, _share: torch.Tensor, _sign: torch.Tensor) -> torch.Tensor:
    planes = images.flatten(0, 1).flatten(1).long()
    histogram = torch.zeros(len(planes), 256, dtype=torch.long, device=images.device)
    histogram.scatter_add_(1, planes, torch.ones_like(planes))
    last = histogram.gather(1, planes.amax(1, keepdim=True))
    step = (planes.shape[1] - last) // 255
    before = histogram.cumsum(1) - histogram
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    changed = torch.where(step > 0, table.gather(1, planes), planes)
    return changed.to(torch.uint8).reshape(images.shape)


def _luma(images: torch.Tensor) -> torch.Tensor:
    """Return brightness as Pillow rounds it, [B, 1, H, W] whole numbers in float."""
    if images.shape[1] == 1:
        return images.float()
    weights = torch.tensor([round(part * 65536 / 1000) for part in _LUMA], device=images.device)
    total = (images.long() * weights.reshape(3, 1, 1)).sum(1, keepdim=True) + 0x8000
    return (total >> 16).float()


def _blend(images: torch.Tensor, dull: torch.Tensor, share: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Blend ``dull`` (factor 0) with the image (factor 1); the factor, 1 -+ 0.9 of the share, may exceed 1."""
    factor = (1 + sign * share * 0.9).float()[:, None, None, None]  # Pillow blends in single precision
    return (dull + factor * (images - dull)).clamp(0, 255).to(torch.uint8)


def _brightness(images: torch.Tensor, share: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    return _blend(images, torch.zeros_like(images, dtype=torch.float32), share, sign)


def _color(images: torch.Tensor, share: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    return _blend(images, _luma(images), share, sign)


def _contrast(images: torch.Tensor, share: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    mean = (_luma(images).double().mean((1, 2, 3), keepdim=True) + 0.5).floor().float()
    return _blend(images, mean, share, sign)


def _sharpness(images: torch.Tensor, share: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    kernel = images.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=torch.float64) / 13
    channels = images.shape[1]
    smooth = images.float()
    inner = F.conv2d(smooth.double(), kernel.expand(channels, 1, 3, 3), groups=channels)
    smooth[:, :, 1:-1, 1:-1] = (inner + 0.5).floor().float()  # Pillow leaves the border unchanged
    return _blend(images, smooth, share, sign)


_OPERATIONS: Final[dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "autocontrast": _autocontrast,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "rotate": _rotate,
    "sharpness": _sharpness,
    "shear-x": _shear_x,
    "shear-y": _shear_y,
    "solarize": _solarize,
    "translate-x": _translate_x,
    "translate-y": _translate_y,
}

"""Rows of state tensors: some are kept, others overwritten. PyTorch's own indexing walks through them value by value.

State lies in memory sample by sample, whatever the order of its other dimensions (``channels_last`` as a rule), so a
row can be moved as one block, if one looks at it in the order in which it lies there.
"""

import torch

__all__ = ["kept_rows", "overwrite_rows"]


def kept_rows(state: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """A new tensor of the rows at ``index`` [B'] of ``state`` [B, ...], laid out as they were."""
    order = _order_in_memory(state)
    return state.permute(order).index_select(0, index).permute(_inverse(order))


def overwrite_rows(state: torch.Tensor, index: torch.Tensor, values: torch.Tensor | float) -> None:
    """``state[index] = values``: rows [R] of ``state`` [B, ...] become ``values`` [R, ...] or one number.

    No gradient goes through it.
    """
    state = state.detach()
    alike = not isinstance(values, torch.Tensor) or values.dtype == state.dtype
    if state.device.type != "cpu" or state.dtype not in (torch.float32, torch.float64) or not alike:
        state[index] = values  # NumPy can't look at it
        return
    order = _order_in_memory(state)
    rows = state.permute(order).numpy()
    rows[index.numpy()] = values.detach().permute(order).numpy() if isinstance(values, torch.Tensor) else values


def _order_in_memory(state: torch.Tensor) -> list[int]:
    """The dimensions of ``state`` but the first, from the longest stride to the shortest, after the first."""
    strides = state.stride()
    return [0, *sorted(range(1, state.dim()), key=lambda dimension: -strides[dimension])]


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)

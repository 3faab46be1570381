"""Row operations on state tensors: keeping and overwriting rows, faster than PyTorch's value-by-value indexing.

State is stored sample by sample, whatever the order of its other dimensions (usually ``channels_last``), so a row can
be moved as one block if the dimensions are viewed in memory order.
"""

import torch

__all__ = ["kept_rows", "overwrite_rows"]


def kept_rows(state: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return a new tensor of the rows at ``index`` [B'] of ``state`` [B, ...], in the same layout."""
    order = _order_in_memory(state)
    return state.permute(order).index_select(0, index).permute(_inverse(order))


def overwrite_rows(state: torch.Tensor, index: torch.Tensor, values: torch.Tensor | float) -> None:
    """Set rows [R] of ``state`` [B, ...] to ``values`` [R, ...] or one number: ``state[index] = values``.

    No gradient flows through it.
    """
    state = state.detach()
    alike = not isinstance(values, torch.Tensor) or values.dtype == state.dtype
    if state.device.type != "cpu" or state.dtype not in (torch.float32, torch.float64) or not alike:
        state[index] = values  # NumPy can't view it
        return
    order = _order_in_memory(state)
    rows = state.permute(order).numpy()
    rows[index.numpy()] = values.detach().permute(order).numpy() if isinstance(values, torch.Tensor) else values


def _order_in_memory(state: torch.Tensor) -> list[int]:
    """Return the dimensions of ``state``: the first, then the others from the longest stride to the shortest."""
    strides = state.stride()
    return [0, *sorted(range(1, state.dim()), key=lambda dimension: -strides[dimension])]


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)

"""Integers of four bits as engines store them, and as moec's kernels take them.

Kernels read *rows*: codes ``[E, N, K / 2]``, two in a byte, the lower columns in the lower bits, which stand for ``code - 8``; and
scales ``[E, N, K / group]``. A zero point other than 8 adds the same to each code of a group: a product with such weights is one with
codes and scales alone, and one of the group's sum of inputs with ``(8 - zero) * scale``, which :func:`terms` gives. So codes stay four
bits wide, and what is computed is exact but for one sum.
"""

import weakref

import torch
from torch.utils.weak import WeakIdKeyDictionary

#: What was made of zero points, and the numbers by which PyTorch counted writes to them and their scales.
KEPT = WeakIdKeyDictionary()
#: The place of each of eight columns in a word of AWQ.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


def is_in_order(actorder: object) -> bool:
    """Whether groups hold columns in the order of the columns, by what compressed-tensors calls that.

    A group of others has two names, ``group`` and ``dynamic``, of which that package's own type is equal to both and unequal to one.
    """
    return actorder in (None, "weight", "static")


def rows_of_columns(words: torch.Tensor) -> torch.Tensor:
    """Rows of codes that lie in words along K, ``[E, K / 8, N]``, the lowest columns in the lowest bits: GPTQ's."""
    return words.transpose(1, 2).contiguous().view(torch.uint8)


def rows_of_awq(words: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """AWQ's codes ``[E, K, N / 8]``, scales ``[E, K / group, N]`` and zero points ``[E, K / group, N / 8]``.

    Returns:
        Rows of codes and scales, and zero points ``[E, N / 2, K / group]``, two in a byte.
    """
    n_experts, width, _ = words.shape
    rows = torch.empty((n_experts, scales.shape[2], width // 2), dtype=torch.uint8, device=words.device)
    for expert, own in enumerate(words):
        # One by one: meanwhile a code takes four bytes.
        columns = _awq_columns(own)
        rows[expert] = (columns[0::2] | columns[1::2] << 4).t()
    points = torch.stack([_awq_columns(own) for own in zeros]).transpose(1, 2)
    return rows, scales.transpose(1, 2).contiguous(), points[:, 0::2] | points[:, 1::2] << 4


def _awq_columns(words: torch.Tensor) -> torch.Tensor:
    """A byte for each number in words along the last axis."""
    places = torch.tensor(_AWQ_PLACES, dtype=torch.int32, device=words.device) * 4
    return (words.unsqueeze(-1) >> places & 15).flatten(-2).to(torch.uint8)


def zeros_of_columns(words: torch.Tensor) -> torch.Tensor:
    """Zero points in words along N, ``[E, K / group, N / 8]``, as ``[E, N / 2, K / group]``, two in a byte."""
    return words.contiguous().view(torch.uint8).transpose(1, 2).contiguous()


def terms(scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """What the zero points ``[E, N / 2, K / group]``, two in a byte, add for each unit of a group's sum of inputs: f32."""
    points = torch.stack([zeros & 15, zeros >> 4], 2).flatten(1, 2)
    return (8 - points.float()) * scales.float()


def kept_terms(scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """:func:`terms`, made once for the same tensors."""
    versions = [-1 if t.is_inference() else t._version for t in (scales, zeros)]
    found = KEPT.get(zeros)
    if found is None or found[0] != versions or found[1]() is not scales:
        found = KEPT[zeros] = (versions, weakref.ref(scales), terms(scales, zeros))
    return found[2]

"""Content keys of tensors, kept in memory only: nothing on disk is found by them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def tensor_key(tensor: Tensor) -> str:
    """Hash of a tensor's number type, shape and values."""
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=20)
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""Adam in another basis, of one matrix in float64.

AdaDiag: Nguyen et al. 2025 (arXiv:2502.07488), algorithm 1; SOAP: Vyas et al. 2024
(arXiv:2409.11321), algorithm 3, which as in the authors' code takes no step at first.
"""

import torch
from torch import Tensor


def adadiag(
    weights: Tensor,
    grads: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    every: int = 200,
    sides: str = "left",
    reproject: bool = False,
) -> Tensor:
    w = weights.double()
    rows, cols = w.shape
    p, q = torch.eye(rows).double(), torch.eye(cols).double()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, grad in enumerate(grads, start=1):
        g = grad.double()
        if (t - 1) % every == 0:
            before = p, q
            u, _, vh = torch.linalg.svd(g, full_matrices=True)
            p = u if sides in ("left", "both") else p
            q = vh.T if sides in ("right", "both") else q
            if reproject:
                m = p.T @ (before[0] @ m @ before[1].T) @ q
        turned = p.T @ g @ q
        m = betas[0] * m + (1 - betas[0]) * turned
        v = betas[1] * v + (1 - betas[1]) * turned**2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        w = w - lr * p @ (m_hat / (v_hat.sqrt() + eps)) @ q.T
    return w


def soap(
    weights: Tensor,
    grads: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float] = (0.95, 0.95),
    eps: float = 1e-8,
    every: int = 10,
) -> Tensor:
    w = weights.double()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    first = grads[0].double()
    left, right = (1 - betas[1]) * first @ first.T, (1 - betas[1]) * first.T @ first
    p, q = torch.linalg.eigh(left).eigenvectors, torch.linalg.eigh(right).eigenvectors
    for t, grad in enumerate(grads[1:], start=1):
        g = grad.double()
        turned = p.T @ g @ q
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * turned**2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        w = w - lr * p @ ((p.T @ m_hat @ q) / (v_hat.sqrt() + eps)) @ q.T
        left = betas[1] * left + (1 - betas[1]) * g @ g.T
        right = betas[1] * right + (1 - betas[1]) * g.T @ g
        if t % every == 0:
            rows = torch.argsort(torch.diag(p.T @ left @ p), descending=True)
            cols = torch.argsort(torch.diag(q.T @ right @ q), descending=True)
            v = v[rows][:, cols]
            p = torch.linalg.qr(left @ p[:, rows]).Q
            q = torch.linalg.qr(right @ q[:, cols]).Q
    return w

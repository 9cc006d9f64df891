"""MAML on sinusoids as a plain torch.func loop: `python -m benchmarks.speed.peer_maml JSON` in the PyTorch peers' environment."""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from typing import Any

import torch
from torch.func import grad, grad_and_value, vmap

from benchmarks.record import versions
from benchmarks.speed.measure import answer, measure


def forward(params: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    w1, b1, w2, b2, w3, b3 = params
    return torch.relu(torch.relu(x @ w1 + b1) @ w2 + b2) @ w3 + b3


def squared_error(params: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.mean((forward(params, x) - y) ** 2)


def main() -> None:
    """Measure what the JSON argument asks for."""
    job: dict[str, Any] = json.loads(sys.argv[1])
    settings = job["settings"]
    started = time.perf_counter()
    if job["threads"] is not None:
        torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    tasks, shots, queries, alpha = (settings[name] for name in ("num_envs", "shots", "queries", "inner_rate"))
    sizes = [1, *settings["hidden"], 1]
    params = []
    for m, n in itertools.pairwise(sizes):
        params += [(torch.randn(m, n) * (2.0 / m) ** 0.5).requires_grad_(), torch.zeros(n, requires_grad=True)]
    optimiser = torch.optim.Adam(params, lr=settings["learning_rate"], foreach=True)

    def after(params: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor, xq: torch.Tensor, yq: torch.Tensor) -> torch.Tensor:
        gradient = grad(squared_error)(params, x, y)
        return squared_error([p - alpha * g for p, g in zip(params, gradient, strict=True)], xq, yq)

    def meta_loss(params: list[torch.Tensor], *data: torch.Tensor) -> torch.Tensor:
        return torch.mean(vmap(after, in_dims=(None, 0, 0, 0, 0))(params, *data))

    def turns(n: int) -> None:
        for _ in range(n):
            amplitude, phase = 0.1 + 4.9 * torch.rand(tasks, 1, 1), math.pi * torch.rand(tasks, 1, 1)
            x = 10.0 * torch.rand(tasks, shots + queries, 1) - 5.0
            y = amplitude * torch.sin(x - phase)
            gradient, _ = grad_and_value(meta_loss)(params, x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])
            for p, g in zip(params, gradient, strict=True):
                p.grad = g
            optimiser.step()

    result = measure(turns, 1, job["seconds"], started)
    answer(result | {"return_after": None, "versions": versions(["torch"])})


if __name__ == "__main__":
    main()

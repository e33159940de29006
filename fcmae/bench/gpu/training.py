"""A whole pretraining step of one arm with its optimiser, and the times of it."""

import logging
import time
from typing import Any

import torch
from torch import Tensor

from fcmae.bench.arms import StepSpec, build_network
from fcmae.bench.worker import peak_bytes, reset_peak
from fcmae.masking import patch_grid, random_visible_ids
from fcmae.training.engine.optim import build_adamw, parameter_groups, set_learning_rate
from sparse_ops import ActiveSites, SparseImage, global_response_norm, grn_mlp, subm_conv2d

MASKS = 4
"""Masks that the steps of an arm go through in turn, drawn before."""

WARM_UP = 3
LEARNING_RATE = 1e-4
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.05


class TrainingStep:
    """Forward, backward and fused AdamW of one arm, on images that lie on the device.

    Args:
        step: What to run.
        graph: Whether to replay the step as a CUDA graph, its masks copied into a static buffer.
    Attributes:
        facts: What `Arm.ready` returns. Loss and norm of the gradients are those of the first step,
            where equal arms have equal weights.
    """

    def __init__(self, step: StepSpec, *, graph: bool = False) -> None:
        start = time.perf_counter()
        self.step_spec, self.device = step, torch.device(step.device)
        # Let cuDNN choose its fastest kernels: it matters to the dense arms most.
        torch.backends.cudnn.benchmark = True
        self.engines = engines_of(step.backend, self.device)
        self.network, self.images, patch_size = build_network(step)
        self.ids = draw_masks(step, patch_size)
        groups = parameter_groups(self.network, weight_decay=WEIGHT_DECAY)
        self.adamw = build_adamw(groups, betas=BETAS, device=self.device)
        set_learning_rate(self.adamw, LEARNING_RATE)
        self.run = torch.compile(self.network, fullgraph=True) if step.compile else self.network
        self.count = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        state = reset_peak(step.device)
        loss = float(self.loss(self.ids[0]))
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        parameters = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        state += 2 * 4 * parameters  # the moments, made by the first update
        self.finish()
        for _ in range(WARM_UP - 1):
            self.step()
        self.captured_peak = 0
        if graph:
            self.capture()
        self.facts = {
            "loss": loss,
            "grad_norm": norm,
            "parameters": parameters,
            "state_bytes": state,
            "prepare_seconds": time.perf_counter() - start,
            "engines": self.engines,
        }
        self.release()

    def loss(self, ids: Tensor) -> Tensor:
        """Forward and backward; the loss."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.step_spec.precision == "bf16"):
            out = self.run(self.images, visible_ids=ids)
        loss = out if isinstance(out, Tensor) else out.loss
        loss.backward()
        return loss.detach()

    def finish(self) -> None:
        """Update the weights."""
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)

    def step(self) -> None:
        """One step on the next mask."""
        ids = self.ids[self.count % MASKS]
        self.count += 1
        if self.graph is None:
            self.loss(ids)
            self.finish()
        else:
            self.static_ids.copy_(ids)
            self.graph.replay()

    def capture(self) -> None:
        """Record the step as a CUDA graph; from here on `step` replays it on masks copied into its input."""
        for group in self.adamw.param_groups:
            group["capturable"] = True
        for state in self.adamw.state.values():
            state["step"] = state["step"].to(self.device)
        self.static_ids = self.ids[0].clone()
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.loss(self.static_ids)
                self.finish()
        torch.cuda.current_stream(self.device).wait_stream(side)
        torch.cuda.empty_cache()
        reset_peak(self.step_spec.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.loss(self.static_ids)
            self.finish()
        self.captured_peak = peak_bytes(self.step_spec.device)
        self.graph = graph

    def turn(self, steps: int) -> dict[str, Any]:
        """Time steps back to back, after one that is not timed and takes memory back from the device."""
        self.step()
        reset_peak(self.step_spec.device)
        if self.device.type == "cuda":
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
            marks[0].record()
            for mark in marks[1:]:
                self.step()
                mark.record()
            torch.cuda.synchronize()
            seconds = [marks[i].elapsed_time(marks[i + 1]) / 1e3 for i in range(steps)]
            peak = max(self.captured_peak, peak_bytes("cuda"))
        else:
            clock = [time.perf_counter()]
            for _ in range(steps):
                self.step()
                clock.append(time.perf_counter())
            seconds = [clock[i + 1] - clock[i] for i in range(steps)]
            peak = peak_bytes("cpu")
        self.release()
        return {"seconds": seconds, "peak_bytes": peak}

    def release(self) -> None:
        """Give the memory that no tensor holds back to the device, for the other arms."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def draw_masks(step: StepSpec, patch_size: int) -> list[Tensor]:
    """Visible patch ids of `MASKS` steps, the same in every arm; at mask ratio 0 every patch."""
    grid = patch_grid((step.image_size, step.image_size), patch_size)
    if step.mask_ratio == 0:
        every = torch.arange(grid[0] * grid[1], device=step.device)
        return [every.repeat(step.batch_size, 1) for _ in range(MASKS)]
    generator = torch.Generator().manual_seed(0)
    return [
        random_visible_ids(
            step.batch_size, grid, mask_ratio=step.mask_ratio, generator=generator, device=step.device
        )
        for _ in range(MASKS)
    ]


def engines_of(backend: str, device: torch.device) -> dict[str, str]:
    """Which engine of the sparse operations runs each op: what `auto` announces, or the one that is named."""
    if backend != "auto":
        return dict.fromkeys(("subm_conv2d", "global_response_norm", "grn_mlp"), backend)
    heard = _Announcements()
    logger = logging.getLogger("sparse_ops")
    level = logger.level
    logger.addHandler(heard)
    logger.setLevel(logging.INFO)
    try:
        _run_each_op(device)
    finally:
        logger.removeHandler(heard)
        logger.setLevel(level)
    return heard.engines


def _run_each_op(device: torch.device) -> None:
    def ones(*shape: int) -> Tensor:
        return torch.ones(shape, device=device)

    # No rows: the choice is made and announced, and no kernel has to be compiled for it.
    ids = torch.zeros(1, 0, dtype=torch.int64, device=device)
    sites = ActiveSites.from_visible_ids(ids, grid=(1, 1), tile=2)
    x = SparseImage(ones(0, 8), sites)
    subm_conv2d(x, ones(8, 1, 3, 3), groups=8)
    global_response_norm(x, ones(8), ones(8))
    grn_mlp(x, (ones(32, 8), ones(32)), (ones(32), ones(32)), (ones(8, 32), ones(8)))


class _Announcements(logging.Handler):
    """Keeps what `sparse_ops.dispatch` says about its choices."""

    def __init__(self) -> None:
        super().__init__()
        self.engines: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        op, _, backend = record.args  # type: ignore[misc]
        self.engines[str(op)] = str(backend)

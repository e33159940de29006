"""What stops a run before it does harm: numbers that are not finite, too many unreadable images."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from fcmae.convert.files import newest_checkpoint
from fcmae.data import Batch
from fcmae.errors import InputError
from fcmae.training.engine.logs import RunLog
from fcmae.training.engine.sharding import first_non_finite_name, whole


class LossReading:
    """A loss on its way to the host: the mean over devices, and whether any of them was asked to stop.

    On a GPU the copy starts behind the forward pass and is waited for after the backward pass was queued, so
    that the device never idles for the check, and yet no weight is ever stepped by a loss that was not
    finite.

    Args:
        fabric: The run's Fabric.
        loss: Scalar.
        stop: Whether this process was asked to stop: all must save and leave after the same step.
    """

    def __init__(self, fabric: Fabric, loss: Tensor, *, stop: bool) -> None:
        # new_full, not new_tensor: that would copy from the host, and wait for the forward pass.
        value = torch.stack([loss.detach().float(), loss.new_full((), float(stop), dtype=torch.float32)])
        if fabric.world_size > 1:  # all processes must come to the same verdict
            fabric.all_reduce(value, reduce_op="mean")  # in place
        self._value = value.to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if value.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def wait(self) -> tuple[float, bool]:
        """The loss, and whether to stop."""
        if self._copied is not None:
            self._copied.synchronize()
        loss, stop = self._value.tolist()
        return loss, stop > 0


def non_finite(log: RunLog, expected: str, where: str, *, step: int, lr: float) -> InputError:
    """Log that a run stops at a value that is not finite, and return the error to raise.

    Args:
        log: The run's log.
        expected: "a finite loss, got nan".
        where: Where it arose.
        step: The optimiser step, counted from 1. Its weights are never saved.
        lr: Its learning rate.
    """
    log.write("non_finite", step=step, lr=lr, expected=expected, first=where)
    good = newest_checkpoint(log.path.parent)
    kept = f"the last checkpoint is kept: {good}" if good is not None else "there is no checkpoint yet"
    return InputError(
        f"train: expected {expected} at step {step}, learning rate {lr:.3g}, first in {where}. "
        f"Lower train.base_lr or set train.clip_grad=1; {kept}."
    )


class SkippedSteps:
    """Steps whose gradient is not finite: they are left out, named in the log, and too many stop the run.

    Args:
        log: The run's log.
        model: Its parameters carry the gradients.
        limit: How many are left out (train.max_skipped_steps).
        known: Steps left out before the run was resumed.
    """

    def __init__(self, log: RunLog, model: nn.Module, *, limit: int, known: Iterable[int] = ()) -> None:
        self._log, self._model, self._limit = log, model, limit
        self.steps = list(known)

    def allow(self, norm: float, *, step: int, lr: float) -> bool:
        """Whether the optimiser may step on gradients of this norm.

        Raises:
            InputError: more steps than the limit had to be left out.
        """
        if math.isfinite(norm):
            return True
        self.steps.append(step)
        where = f"the gradient of {_first_non_finite_gradient(self._model)}"
        if len(self.steps) > self._limit:
            expected = f"at most {self._limit} steps without a finite gradient, got {len(self.steps)}"
            raise non_finite(self._log, expected, where, step=step, lr=lr)
        self._log.write("skipped_step", step=step, lr=lr, first=where)
        self._log.say(f"skipped step {step}: not finite in {where}")
        return False


def gradient_norm(model: nn.Module, *, clip: float | None) -> Tensor:
    """The norm of all gradients, before they are scaled down to `clip` where they exceed it."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    if clip is not None:
        return whole(nn.utils.clip_grad_norm_(parameters, clip))
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return whole(nn.utils.get_total_norm(gradients))


def require_finite_weights(log: RunLog, model: nn.Module, *, step: int, lr: float) -> None:
    """Refuse to go on with a weight that is not finite: a gradient can overflow under a finite loss.

    Called before each save; waits for the device once.

    Raises:
        InputError: naming the weight.
    """
    where = first_non_finite_weight(model)
    if where is not None:
        raise non_finite(log, "finite weights, got others", where, step=step, lr=lr)


def first_non_finite(model: nn.Module, batch: Any, *, run: Callable[[], Any] | None = None) -> str:
    """Where the first value that is not finite is: the images, a weight, a module's output, or the loss.

    Args:
        model: Its modules are watched.
        batch: Tensors, or lists, tuples and mappings of them.
        run: The forward pass of `batch` through `model`; None: model(batch).
    """
    if not all(tensor.isfinite().all() for tensor in _tensors(batch)):
        return "the input images"
    weight = first_non_finite_weight(model)
    if weight is not None:
        return weight
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not all(tensor.isfinite().all() for tensor in _tensors(output)):
                found.append(f"the output of {name}")

        return hook

    # A module's hook runs when it returns: the innermost module that produced the value comes first.
    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(batch) if run is None else run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "the loss itself"


def first_non_finite_weight(model: nn.Module) -> str | None:
    """The first parameter with a value that is not finite, or None; waits for the device."""
    name = first_non_finite_name(dict(model.named_parameters()))
    return None if name is None else f"the weight {name}"


def _first_non_finite_gradient(model: nn.Module) -> str:
    named = model.named_parameters()
    gradients = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
    return first_non_finite_name(gradients) or "all parameters together"


def _tensors(output: Any) -> Iterable[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)
    elif isinstance(output, Mapping):
        yield from _tensors(list(output.values()))
    elif hasattr(output, "features"):  # a SparseImage
        yield output.features


class BadImages:
    """Unreadable images met so far: each is named once in the log, and too many stop the run.

    Args:
        log: The run's log.
        limit: How many different ones are skipped (data.max_bad_images).
        known: Names met before the run was resumed.
    """

    def __init__(self, log: RunLog, *, limit: int, known: Iterable[str] = ()) -> None:
        self._log, self._limit = log, limit
        self.names = dict.fromkeys(known)  # a set that keeps its order

    def note(self, bad: Iterable[str], *, step: int) -> None:
        """Count the lines "name: reason" of a batch.

        Raises:
            InputError: more different images than the limit were unreadable.
        """
        for line in bad:
            if line in self.names:
                continue
            self.names[line] = None
            self._log.write("bad_image", step=step, name=line)
            self._log.say(f"skipped an unreadable image: {line}")
            if len(self.names) > self._limit:
                raise InputError(
                    f"data.max_bad_images: expected at most {self._limit} unreadable images, "
                    f"got {len(self.names)}, the last: {line}. "
                    f"Remove those that {self._log.path} names, or raise data.max_bad_images."
                )

    def noting(self, batches: Iterable[Batch], *, step: int) -> Iterator[Batch]:
        """The batches, the bad images of each noted."""
        for batch in batches:
            self.note(batch.bad, step=step)
            yield batch


COLLAPSE_BOUNDS = {
    "embedding_std": 0.01,
    "prototypes_in_use": 1.0,
    "prototype_share": 0.125,
    "feature_distance": 0.01,
}
"""What the log says -> the value that, or less than which, is a collapse.

At a spread of 0.01 the encoder's vectors lie half a degree from their mean; small networks on digits learn at
0.06 to 0.9. One prototype in use means that all images are taken for the same. At an eighth of the prototypes
that the batch could use (they learn at 0.36 and more) nearly all are: the head's BatchNorm keeps a collapse
from ending at one.

The feature distance is the mean cosine distance of a layer's channels, the smallest of a few layers. At
0.01 the sum of C unit vectors is 0.99 C long (`fcmae.evaluation.diversity.cosine_distance`): they lie 8
degrees from their mean, so all channels of that layer draw the same map. The demo's network learns at 0.47 to
0.49.
"""
_ADVICE = {
    "feature_distance": "The channels of a layer say the same: lower train.base_lr, keep GRN in ConvNeXt."
}
_COMPARED = (
    "The encoder no longer tells images apart: raise model.me_max_weight, set model.sinkhorn_iterations=3 or "
    "lower train.base_lr."
)


class CollapseGuard:
    """Names a collapse: a logged value at its bound or below for several log lines on end.

    The run goes on, since some recover. The log line (event "collapse") and the printed one come once for
    each collapse, again after the value was above its bound, and anew in a resumed run.

    Args:
        log: The run's log.
        lines: How many log lines on end make a collapse.
    """

    def __init__(self, log: RunLog, *, lines: int = 5) -> None:
        self._log, self._lines = log, lines
        self._low = dict.fromkeys(COLLAPSE_BOUNDS, 0)

    def note(self, values: Mapping[str, float], *, step: int) -> None:
        """Look at what a log line said; values without a bound are none of its business."""
        for name in COLLAPSE_BOUNDS.keys() & values.keys():
            value, bound = values[name], COLLAPSE_BOUNDS[name]
            self._low[name] = self._low[name] + 1 if value <= bound else 0
            if self._low[name] == self._lines:
                self._log.write("collapse", step=step, of=name, value=value, bound=bound)
                self._log.say(
                    f"collapse at step {step}: {name} was at most {bound:g} in {self._lines} log lines, now "
                    f"{value:.3g}. {_ADVICE.get(name, _COMPARED)}"
                )

"""Pretraining: masked images in, an encoder out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from fcmae.config import PretrainConfig, TrainConfig
from fcmae.config_io import to_dict
from fcmae.data import Batch, open_dataset
from fcmae.masking import BatchPart
from fcmae.methods import Method, from_config
from fcmae.training.engine.checkpoints import find_start
from fcmae.training.engine.devices import LossOf, launch_fabric
from fcmae.training.engine.loop import Event, Task, train
from fcmae.training.engine.run import batches_of
from fcmae.training.engine.seeding import mask_generator, seed_draws
from fcmae.training.watch import Watch


class Pretraining(Task):
    """A method that learns from masked images.

    Args:
        method: As `fcmae.create_method` returns it.
        settings: Of the run.
        events: In the order of their calls.
    """

    kind = "pretrain"

    def __init__(self, method: Method, settings: TrainConfig, events: Sequence[Event] = ()) -> None:
        super().__init__(method, network=LossOf(method), events=events)
        self._method, self._settings = method, settings

    def loss(
        self, network: nn.Module, batch: Batch, *, step: int, part: BatchPart
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The method's loss under masks that depend on the seed, the step and the images' places alone."""
        masks = mask_generator(self._settings.seed, step)
        return network(batch.images, self._method.draw_visible_ids(batch.images, masks, part=part))

    def after_step(self, step: int) -> None:
        """What the method does then, by the share of its schedules that is through."""
        self._method.after_step(step / (self._settings.steps * self._settings.schedule_stretch))


def pretrain(config: PretrainConfig) -> Path:
    """Pretrain as `config` says, and return the run's folder.

    A run that was interrupted at any point goes on from its newest good checkpoint and, on a CPU, ends with
    the weights of the uninterrupted run, bit for bit: every random draw is a function of the seed, the step,
    the process and the micro-batch.

    Which images make a step, their crops and their masks depend on none but the seed and their places in the
    global batch of `batch_size * accumulate * processes` images. So any split of the same global batch gives
    the same loss up to the order of summation, also for a run that is resumed with another split. Not so:
    stochastic depth (`model.drop_path`), drawn by each process; statistics over the images of one forward
    pass (`model.grn_scope=batch`); and MSN with accumulation, which compares the images of a forward pass.

    Args:
        config: Images, method, optimiser and run folder; see `fcmae.config`.
    Returns:
        `config.run.dir`, with config.yaml, log.jsonl, report.html, tensorboard/ and checkpoints/.
    Raises:
        InputError: something of the user's cannot be used, a loss was not finite, too many images were
            unreadable, or the disk is full. The last good checkpoint is kept.
    Paper: Woo et al. 2023, ConvNeXt V2, table 8.
    """
    fabric = launch_fabric(config.run, config.train)
    start = find_start(config.resume, config.run.dir, kind=Pretraining.kind, config=to_dict(config))
    dataset = open_dataset(config.data, split="all", labelled=False)
    seed_draws(config.train.seed)  # the initial weights
    method = from_config(config.model, config.data)
    batches = batches_of(
        config,
        dataset,
        method.transform(config.data),
        fabric=fabric,
        start=start,
        repeats=config.data.repeats,
    )
    task = Pretraining(method, config.train, Watch(method, dataset, config).events())
    train(task, batches, config, fabric=fabric, start=start, images=len(dataset))
    return Path(config.run.dir)

"""Looks at a few fixed images while a pretraining run goes on: what it paints, how alike its features are."""

import random
import re

from torch import Tensor, nn

from fcmae.config import PretrainConfig
from fcmae.config.diversity import EXPANSION
from fcmae.data import ImageDataset
from fcmae.evaluation.diversity import measure_diversity
from fcmae.methods import MaskedAutoencoder, Method
from fcmae.models import ViTEncoder
from fcmae.report.reconstruction import sheet
from fcmae.report.samples import draw_visible, picture_rows, read_images
from fcmae.training.engine.guards import CollapseGuard
from fcmae.training.engine.loop import Event, Running

IMAGES = 8
"""That are looked at; they and their masks are functions of the run's seed."""
LAYERS = 4
"""At even distances in the encoder, the last one among them."""
GUARDED_LOOKS = 3
"""Looks on end at features that are all alike, before the log says so."""


class Watch:
    """Looks by the first process alone, at the weights as they are, without a change to what training draws.

    The images are the same in each look, cropped from the centre and not augmented, in float32.

    Args:
        method: The network, unwrapped.
        dataset: Where the images come from.
        config: How often, how images are normalised, and the seed.
    """

    def __init__(self, method: Method, dataset: ImageDataset, config: PretrainConfig) -> None:
        self._method, self._dataset, self._config = method, dataset, config
        self._images: tuple[list[str], Tensor] | None = None
        self._guard: CollapseGuard | None = None

    def events(self) -> list[Event]:
        """What the loop calls; of a look that is turned off, nothing."""
        train = self._config.train
        looks = ((train.reconstruct_every, self.reconstruct), (train.diversity_every, self.diversity))
        return [Event(every=every, call=look) for every, look in looks if every]

    def reconstruct(self, running: Running, step: int) -> None:
        """Write originals, what is visible of them, and what the network paints, as one picture."""
        if not running.fabric.is_global_zero:
            return
        assert isinstance(self._method, MaskedAutoencoder)  # checked by PretrainConfig
        names, images = self._fixed_images(running)
        visible = draw_visible(self._method, images, seed=self._config.train.seed)
        rows = picture_rows(self._method, images, visible, self._config.data)
        running.log.picture("reconstruction", sheet([row for _, row in rows]), step=step, names=names)

    def diversity(self, running: Running, step: int) -> None:
        """Log the cosine distance of a few layers' channels on whole images, and say where it collapses."""
        if not running.fabric.is_global_zero:
            return
        encoder = self._method.encoder
        layers = measure_diversity(
            encoder,
            [self._fixed_images(running)[1]],
            modules="|".join(map(re.escape, watched_layers(encoder))),
            prefix_tokens=int(isinstance(encoder, ViTEncoder)),
        )
        distances = {layer.module: layer.distance for layer in layers}
        smallest = {"feature_distance": min(distances.values())}
        running.log.write("diversity", step=step, **smallest, **distances)
        self._guard = self._guard or CollapseGuard(running.log, lines=GUARDED_LOOKS)
        self._guard.note(smallest, step=step)

    def _fixed_images(self, running: Running) -> tuple[list[str], Tensor]:
        """Names and normalised images [B, C, H, W] on the run's device, read once."""
        if self._images is None:
            count = min(IMAGES, len(self._dataset))
            drawn = random.Random(self._config.train.seed).sample(range(len(self._dataset)), count)
            chosen = self._dataset.subset(sorted(drawn))
            names, images, bad = read_images(chosen, self._config.data, count=count)
            for line in bad:
                running.log.say(f"not watched: {line}")
            self._images = names, images.to(running.fabric.device)
        return self._images


def watched_layers(encoder: nn.Module) -> list[str]:
    """Names of the modules whose input is looked at: the second layers of a few MLPs."""
    names = [name for name, _ in encoder.named_modules() if re.fullmatch(EXPANSION, name)]
    count = min(LAYERS, len(names))
    return [names[(place + 1) * len(names) // count - 1] for place in range(count)]

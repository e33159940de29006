"""What our own pretraining saves: the middle in which all formats meet, so every name stands for itself."""

from fcmae.convert.formats.format import Format

NAMES = {
    "encoder.{path}": "encoder.{path}",
    "decoder.{path}": "decoder.{path}",
    "head.{path}": "head.{path}",
}
MSN_NAMES = {"target_encoder.{path}": "encoder.{path}"}
MSN_DROPPED = {
    "encoder.{path}": "MSN evaluates the target network, this one's moving average",
    "projection.{path}": "only pretraining has a projection head",
    "target_projection.{path}": "only pretraining has a projection head",
    "prototypes": "only pretraining has prototypes",
}


def pretraining_format(mark: str, ndim: int) -> Format:
    """FCMAE's, MAE's and ConvMAE's checkpoints: encoder and decoder.

    Args:
        mark: A name of the family's encoder.
        ndim: Dimensions of that tensor.
    """
    return Format(
        name="fcmae", marks={f"encoder.{mark}": ndim}, lacks=(f"target_encoder.{mark}",), names=NAMES
    )


def msn_format(mark: str, ndim: int) -> Format:
    """MSN's checkpoints, whose target network is taken; arguments as for pretraining_format."""
    return Format(
        name="fcmae_msn",
        marks={f"target_encoder.{mark}": ndim},
        names=MSN_NAMES,
        dropped=MSN_DROPPED,
        note="the target network was taken, the one that MSN evaluates",
    )

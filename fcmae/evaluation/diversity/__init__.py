"""How different the channels of networks are from each other."""

from fcmae.evaluation.diversity.measure import LayerDiversity, cosine_distance, measure_diversity

__all__ = ["LayerDiversity", "cosine_distance", "measure_diversity"]

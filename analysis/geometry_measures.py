"""What geometry's measures are called and mean: names, ranges, directions, sources.

Nothing goes in; out comes `GEOMETRY_MEASURES`, for axes, tables and help texts.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GeometryMeasure:
    """What a measure is called and means, for axes and help texts.

    `lowest` and `highest` bound it, None where nothing does. `direction` says what higher means.
    """

    title: str
    unit: str
    lowest: float | None
    highest: float | None
    direction: str
    definition: str
    source: str


PAPYAN = "Papyan, Han and Donoho 2020"

GEOMETRY_MEASURES: dict[str, GeometryMeasure] = {
    "effective_rank": GeometryMeasure(
        "Effective rank",
        "directions",
        1,
        None,
        "higher: features spread over more directions",
        "The exponential of the entropy of the centred features' singular values, taken as shares "
        "of their sum: how many directions they fill. It grows with the number of images until "
        "that is many times the number of features.",
        "Roy and Vetterli 2007",
    ),
    "participation_ratio": GeometryMeasure(
        "Participation ratio",
        "directions",
        1,
        None,
        "higher: variance spread over more directions",
        "The squared sum of the covariance's eigenvalues divided by the sum of their squares: how "
        "many directions share the variance. Large variances weigh more than in the effective "
        "rank.",
        "Gao et al. 2017",
    ),
    "two_nn": GeometryMeasure(
        "Intrinsic dimension (TwoNN)",
        "dimensions",
        0,
        None,
        "higher: images vary in more ways nearby",
        "The dimension of the surface on which the features lie, from how much farther each "
        "image's second neighbour is than its first. It comes out too low above some 10 "
        "dimensions unless there are very many images.",
        "Facco, d'Errico, Rodriguez and Laio 2017; censored maximum likelihood",
    ),
    "class_separability": GeometryMeasure(
        "Class separability",
        "share of variance",
        0,
        1,
        "higher: classes more separate",
        "The share of the features' variance that lies between the means of the classes. Labels "
        "at random give (K - 1) / (N - 1).",
        "Fisher 1936; Fukunaga 1990, section 10.2",
    ),
    "silhouette": GeometryMeasure(
        "Silhouette",
        "score",
        -1,
        1,
        "higher: classes more separate",
        "How much nearer an image is to its own class than to the nearest other class, divided by "
        "the larger of both distances, averaged over images.",
        "Rousseeuw 1987",
    ),
    "nc1": GeometryMeasure(
        "NC1, variability within classes",
        "ratio",
        0,
        None,
        "lower: more collapsed",
        "tr(S_W S_B^+) / K: the scatter of images about the mean of their class, measured along "
        "the class means' own directions in units of the scatter of these means. With few images a "
        "class, chance differences of the means lower it.",
        f"{PAPYAN}, figure 6",
    ),
    "nc2_norms": GeometryMeasure(
        "NC2, unequal lengths of class means",
        "ratio",
        0,
        None,
        "lower: more collapsed",
        "The standard deviation of the class means' distances to their centre, divided by the "
        "mean of these distances.",
        f"{PAPYAN}, figure 2",
    ),
    "nc2_angles": GeometryMeasure(
        "NC2, unequal angles of class means",
        "cosine",
        0,
        2,
        "lower: more collapsed",
        "How far the cosines between class means, seen from their centre, are from -1 / (K - 1), "
        "that of a simplex, on average over pairs of classes.",
        f"{PAPYAN}, figure 4",
    ),
    "nc3": GeometryMeasure(
        "NC3, classifier against class means",
        "squared distance",
        0,
        4,
        "lower: more collapsed",
        "The squared distance between the classifier's weights and the class means about their "
        "centre, each divided by its Frobenius norm. Only the classifier's own input has it.",
        f"{PAPYAN}, figure 5",
    ),
    "nc4": GeometryMeasure(
        "NC4, nearest class mean against classifier",
        "share of images",
        0,
        1,
        "higher: more collapsed",
        "The share of images that the nearest class mean of this layer's features puts into the "
        "class that the classifier predicts; each image is left out of its own class's mean.",
        f"{PAPYAN}, figure 7, who plot 1 minus this",
    ),
    "class_mean_accuracy": GeometryMeasure(
        "Accuracy of the nearest class mean",
        "share of images",
        0,
        1,
        "higher: classes more separate",
        "The share of images whose true class has the nearest mean in this layer's features; each "
        "image is left out of its own class's mean.",
        f"{PAPYAN}, figure 7, with the true classes",
    ),
    "sparsity": GeometryMeasure(
        "Sparsity",
        "share of entries",
        0,
        1,
        "higher: sparser",
        "The share of entries that are exactly 0, as rectified layers have them.",
        "by count",
    ),
    "sparseness": GeometryMeasure(
        "Sparseness (Treves-Rolls)",
        "share",
        0,
        1,
        "higher: activity in fewer units",
        "1 minus the squared mean over the mean square of the units' absolute activity, scaled to "
        "[0, 1] and averaged over images: 0 if all units are equally active, 1 if one alone is. "
        "It needs no exact zeros.",
        "Treves and Rolls 1991; Vinje and Gallant 2000",
    ),
    "dead_units": GeometryMeasure(
        "Dead units",
        "share of units",
        0,
        1,
        "lower: more of the layer in use",
        "The share of units that give the same value, mostly 0, for every image.",
        "by count",
    ),
    "norm_mean": GeometryMeasure(
        "Feature norm, mean",
        "length",
        0,
        None,
        "higher: longer features",
        "The Euclidean length of an image's features, averaged over images.",
        "by definition",
    ),
    "norm_deviation": GeometryMeasure(
        "Feature norm, standard deviation",
        "length",
        0,
        None,
        "higher: lengths differ more",
        "The standard deviation over images of the Euclidean length of their features.",
        "by definition",
    ),
}

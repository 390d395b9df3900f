"""What the page on method says: definitions, formulas, sources, cautions, versions, citations.

Titles, ranges, definitions and sources of geometry and of similarity come from the code that
computes them; formulas and cautions stand here. Formulas are LaTeX as KaTeX reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from analysis.geometry_measures import GEOMETRY_MEASURES


@dataclass(frozen=True)
class Entry:
    """A measure or a rule.

    `text` and `cautions` are markdown of ours; `formulas` are LaTeX, in order; `source` is who
    defined it, and where we differ.
    """

    title: str
    text: str
    formulas: tuple[str, ...] = ()
    source: str = ""
    cautions: tuple[str, ...] = ()


CKA = Entry(
    "Centred kernel alignment (CKA)",
    "How alike two layers arrange the same images. Each layer gives a Gram matrix $K_{ij} = "
    "\\langle x_i, x_j \\rangle$ over the images; CKA is the cosine between the two, once centred. "
    "1: equal up to rotation and scale. About 0: unrelated. Small negative values are honest: the "
    "estimator is unbiased and is never clamped.",
    (
        r"\mathrm{CKA}(X, Y) = \frac{\sum_b \mathrm{HSIC}_1(K_b, L_b)}"
        r"{\sqrt{\sum_b \mathrm{HSIC}_1(K_b, K_b)\,\sum_b \mathrm{HSIC}_1(L_b, L_b)}}",
        r"\mathrm{HSIC}_1(K, L) = \frac{\langle U(K), U(L) \rangle}{N (N - 3)}",
        r"U(K)_{ij} = K_{ij} - \frac{\sum_l K_{il}}{N - 2} - \frac{\sum_l K_{lj}}{N - 2}"
        r" + \frac{\sum_{kl} K_{kl}}{(N - 1)(N - 2)}",
    ),
    "Nguyen, Raghu and Kornblith 2021, equations 2 to 4; Kornblith, Norouzi, Lee and Hinton 2019; "
    "Song et al. 2012, equation 5; Székely and Rizzo 2014, equation 2.3.",
    (
        "Sums run over batches $b$ of at least 4 shuffled images, the diagonals of $K$ and $L$ "
        "are left out, and features are centred before they are multiplied. *Debiased* takes all "
        "images as one batch; *biased* is the older estimator, which rises with the number of "
        "features.",
        "The RBF kernel is $\\exp(-|x_i - x_j|^2 / 2s^2)$ with $s$ a fraction of the median "
        "distance.",
    ),
)

# By the name that `--measures` takes; title, range and direction come from the measure itself.
SIMILARITY: dict[str, Entry] = {
    "svcca": Entry(
        "SVCCA",
        "Both layers are cut to the principal directions that hold 99% of their variance; the "
        "value is the mean of the canonical correlations of what is left.",
        (r"\frac{1}{\min(k_a, k_b)} \sum_i \sigma_i(Q_a^\top Q_b)",),
        "Raghu, Gilmer, Yosinski and Sohl-Dickstein 2017, section 2.",
        (
            "Unrelated features score up to about $\\sqrt{\\max(k_a, k_b) / (N - 1)}$: with few "
            "images everything looks alike.",
        ),
    ),
    "pwcca": Entry(
        "Projection-weighted CCA",
        "Canonical correlations $\\rho_i$ weighted by how much of layer A each canonical variate "
        "$h_i$ carries. Not symmetric.",
        (
            r"\frac{\sum_i \alpha_i \rho_i}{\sum_i \alpha_i}, \quad"
            r" \alpha_i = \sum_j |\langle h_i, x_j \rangle|",
        ),
        "Morcos, Raghu and Bengio 2018, section 3; the weights here are always A's.",
        ("Overfits like SVCCA; no value with as many features as images.",),
    ),
    "procrustes": Entry(
        "Orthogonal Procrustes",
        "What is left between two layers after the best rotation of one onto the other, each "
        "centred and scaled to size 1.",
        (r"\min_R \|A - B R\|_F^2 = 2 - 2 \|A^\top B\|_*",),
        "Ding, Denain and Steinhardt 2021, section 2; Williams, Kunz, Kornblith and Linderman "
        "2021 for the angle $\\arccos \\|A^\\top B\\|_*$, which is a metric.",
        ("With more dimensions than images, any two layers can be rotated close together.",),
    ),
    "rsa": Entry(
        "Representational similarity (RSA)",
        "Whether two layers find the same pairs of images unlike: the rank correlation of their "
        "dissimilarities $1 - \\mathrm{Pearson}$ over all pairs.",
        (r"\mathrm{Spearman}\bigl(\{d_a(i, j)\}_{i<j},\, \{d_b(i, j)\}_{i<j}\bigr)",),
        "Kriegeskorte, Mur and Bandettini 2008; Nili et al. 2014.",
    ),
    "neighbours": Entry(
        "Mutual nearest neighbours",
        "The share of the $k$ nearest neighbours that two layers have in common.",
        (r"\frac{1}{N} \sum_i \frac{|\mathcal{N}_a(i) \cap \mathcal{N}_b(i)|}{k}",),
        "Huh, Cheung, Wang and Isola 2024, appendix A, with $k = 10$ and cosine; ties are ours.",
        ("Unrelated features share $k / (N - 1)$, so compare between equal $N$ and $k$ only.",),
    ),
    "predictivity": Entry(
        "Linear predictivity",
        "How much of layer B's features a ridge regression tells from layer A's, on images that "
        "it was not fitted to (five folds). Not symmetric: rows predict columns.",
        (r"R^2 = 1 - \frac{\sum |b - \hat b|^2}{\sum |b - \bar b|^2}",),
        "Yamins et al. 2014; Golub, Heath and Wahba 1979 for the choice of the penalty.",
        ("A wide layer predicts more than a narrow one, whatever it represents.",),
    ),
}

PROBES = Entry(
    "Linear probes",
    "What a linear classifier reads from each layer: multinomial logistic regression on globally "
    "average-pooled, standardised features, fitted on training images to its optimum and scored "
    "on test images that it never saw.",
    (r"\min_{W, b}\; -\sum_n \log \mathrm{softmax}(W x_n + b)_{y_n} + \frac{\lambda}{2} \|W\|^2",),
    "Alain and Bengio 2016 for probes; solved as scikit-learn's LogisticRegression is; Cover and "
    "Hart 1967 for the nearest neighbours beside them.",
    (
        "Intervals of one accuracy are Wilson's (1927). Two networks are compared on the same "
        "images: Tango's interval (1998) of the difference and the exact McNemar test (1947), "
        "corrected for the number of layers by Holm (1979).",
        "A probe tells what *can be read* linearly, not what the network *uses*. Auxiliary "
        "networks were trained with the layer; probes were not.",
    ),
)

GEOMETRY_FORMULAS: dict[str, str] = {
    "effective_rank": r"\exp\Bigl(-\sum_i p_i \log p_i\Bigr), \quad p_i = s_i / \sum_j s_j",
    "participation_ratio": r"\frac{(\sum_i \lambda_i)^2}{\sum_i \lambda_i^2}",
    "two_nn": r"P(\mu \le x) = 1 - x^{-d}, \quad \mu_i = r_{i,2} / r_{i,1}",
    "class_separability": r"\frac{\mathrm{tr}\, S_B}{\mathrm{tr}\, S_B + \mathrm{tr}\, S_W}",
    "silhouette": r"\frac{1}{N} \sum_i \frac{b_i - a_i}{\max(a_i, b_i)}",
    "nc1": r"\frac{1}{K} \mathrm{tr}(S_W S_B^+)",
    "nc2_norms": r"\frac{\mathrm{std}_c \|m_c - m\|}{\mathrm{mean}_c \|m_c - m\|}",
    "nc2_angles": r"\mathrm{mean}_{c \ne c'} \Bigl|\cos(m_c - m,\, m_{c'} - m)"
    r" + \tfrac{1}{K - 1}\Bigr|",
    "nc3": r"\Bigl\| \frac{W}{\|W\|_F} - \frac{M}{\|M\|_F} \Bigr\|_F^2",
    "nc4": r"\mathrm{mean}_i\, [\arg\min_c \|x_i - m_c^{(-i)}\| = \hat y_i]",
    "class_mean_accuracy": r"\mathrm{mean}_i\, [\arg\min_c \|x_i - m_c^{(-i)}\| = y_i]",
    "sparsity": r"\mathrm{mean}_{i, d}\, [x_{id} = 0]",
    "sparseness": r"\frac{1 - (\sum_d |x_d| / D)^2 / (\sum_d x_d^2 / D)}{1 - 1 / D}",
    "dead_units": r"\mathrm{mean}_d\, [x_{1d} = x_{2d} = \dots = x_{Nd}]",
    "norm_mean": r"\mathrm{mean}_i \|x_i\|",
    "norm_deviation": r"\mathrm{std}_i \|x_i\|",
}

INTERVALS = """
Every interval is a 95% interval over **the choice of images**: repeat the study with other images
of the same kind, and 95 of 100 such intervals hold the value of all images.

- **CKA**: the standard error is a delete-one-batch jackknife (Efron and Stein 1981) with Student's
  t; there is none below 8 batches. The *null level* is what 95% of shuffles of one network's images
  stay under: below it, a value is no evidence of any similarity.
- **Other similarities and geometry**: a delete-one-group jackknife over random parts of the images
  (Busing, Meijer and van der Leeden 1999); where leaving images out only ever raises a value, no
  interval is given, and hovering says why.
- **Probes**: Wilson's interval of a fraction.

They say nothing about **training again**: a network is one draw of its seed. To see what another
seed changes, compare two networks that differ in the seed alone (a *ceiling*), and an untrained one
(a *floor*), beside the pair that you care about.
"""

MISLEADING: tuple[tuple[str, str], ...] = (
    (
        "Data sorted by class",
        "Batches of one class compare images within that class only: on class-sorted data "
        "minibatch and full estimates of CKA differed by 0.19, and by 0.006 once shuffled. Images "
        "are drawn at random here, and a warning shows where classes are uneven.",
    ),
    (
        "Few images",
        "SVCCA, PWCCA and biased CKA rise, and the Procrustes distance falls, as images become "
        "fewer than features: unlike layers look alike. Look at the null level before the value.",
    ),
    (
        "Features far from zero",
        "Multiplying uncentred features loses all digits: at an offset of ten standard deviations "
        "common tools give NaN or 0.000 where the truth is 0.154. Features are centred first here.",
    ),
    (
        "A constant in the denominator",
        "Breaks the invariance to scale (self-similarity 0.92 at a scale of 0.1). There is none "
        "here; where nothing is left to divide by, the cell is undefined and says so.",
    ),
    (
        "Clamping to [0, 1]",
        "Hides that about half of the estimates of independent layers are negative, and so raises "
        "averages. Nothing is clamped here.",
    ),
    (
        "A colour scale of its own for every map",
        "Makes maps incomparable. Scales here are fixed from 0 to 1 unless you stretch them.",
    ),
    (
        "Similarity is not accuracy",
        "CKA follows the directions of most variance. Two layers may be alike in it and differ in "
        "what can be read from them, and the reverse: look at probes and similarity together.",
    ),
    (
        "Depth is not stage",
        "At the same index, layers of networks of different depth do different things; they are "
        "matched by relative depth.",
    ),
    (
        "One training run each",
        "A difference between two networks may be one between two seeds.",
    ),
    (
        "The best epoch on the test split",
        "Is an optimistic accuracy, and is what the published code of AugLocal and others keep. "
        "Here comparisons use the last epoch of equal schedules.",
    ),
)

RULES: tuple[Entry, ...] = (
    Entry(
        "BP",
        "End-to-end backpropagation: one block, one loss at the end. What every rule is compared "
        "with.",
    ),
    Entry(
        "AugLocal",
        "Every hidden layer $l$ of $n$ learns from an auxiliary network of its own, made of fresh "
        "copies of layers that come after it, and no gradient passes between layers. How many "
        "layers an auxiliary network copies falls towards the output (*pyramid* $c$), and they are "
        "selected uniformly, the last layer always among them:",
        (
            r"d_i = \max\Bigl(1, \mathrm{round}\bigl(d\,(1 - \tfrac{i c}{B - 2})"
            r" + \tfrac{i c}{B - 2}\bigr)\Bigr), \quad i = 0, \dots, B - 2",
            r"\text{copies of layer } \mathrm{round}\Bigl(l + \frac{n - 1 - l}{d_i}\, k\Bigr),"
            r" \quad k = 1, \dots, d_i",
        ),
        "Ma, Wu, Si and Tan, ICLR 2024, sections 3.2 and 3.3, with the details of its published "
        "codes: rounding half to even, at most one halving of the size a copy, global average pool "
        "and a linear classifier at the end; the last d + 1 layers train with the classifier in "
        "the CIFAR form.",
    ),
    Entry(
        "DGL",
        "A small classifier of 1x1 convolutions a block.",
        (),
        "Belilovsky, Eickenberg and Oyallon, ICML 2020.",
    ),
    Entry(
        "PredSim",
        "A linear classifier, and a loss that makes images of one class look alike: the adjusted "
        "cosine similarities $S$ of features against those of the labels.",
        (r"0.01\, \mathrm{CE} + 0.99\, \mathrm{mean}_{ij} (S_{ij}(s) - S_{ij}(y))^2",),
        "Nøkland and Eidnes, ICML 2019.",
    ),
    Entry(
        "InfoPro",
        "A classifier, and a reconstruction of the image, weighted by depth, so that early layers "
        "keep what later ones need.",
        (r"\alpha_l\, \mathrm{BCE}(\hat x, x) + \beta_l\, \mathrm{CE}",),
        "Wang, Ni, Song, Yang and Huang, ICLR 2021.",
    ),
    Entry(
        "Linear",
        "A linear classifier on each layer's pooled output: the floor of local learning.",
        (),
        "Belilovsky, Eickenberg and Oyallon, ICML 2019, without auxiliary layers and all layers "
        "side by side.",
    ),
)

DATA = """
- **scikit-learn digits**: the 1,797 digits of 8 x 8 pixels that scikit-learn bundles (from the UCI
  repository, Alpaydin and Kaynak 1998), enlarged to 3 x 32 x 32: 697 for training, 100 for
  validation, 1,000 for testing.
- **CIFAR-10 (JPEG)**: CIFAR-10 (Krizhevsky 2009) re-encoded as JPEG of quality 75, 50,000 training
  and 10,000 test images. It is lossy: compare rules on it with each other, not with published
  figures.
- **CIFAR-10, CIFAR-100** (Krizhevsky 2009), **SVHN** (Netzer et al. 2011), **STL-10** (Coates, Ng
  and Lee 2011): as torchvision fetches them from their authors, and only when you ask.
- **Shipped checkpoints** were trained by this project; `checkpoints/README.md` has the command,
  the date and the checksum of each.
"""

PAPER = """@inproceedings{ma2024scaling,
  title     = {Scaling Supervised Local Learning with Augmented Auxiliary Networks},
  author    = {Ma, Chenxiang and Wu, Jibin and Si, Chenyang and Tan, Kay Chen},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2024}
}"""

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "safetensors",
    "streamlit",
    "plotly",
)


def software_citation() -> str:
    """How to cite this project, with its version, as BibTeX."""
    return (
        "@software{auglocal,\n"
        "  title   = {auglocal: networks trained without end-to-end backpropagation, and what "
        "their layers learn},\n"
        "  author  = {{The auglocal developers}},\n"
        f"  version = {{{version('auglocal')}}},\n"
        "  license = {MIT}\n"
        "}"
    )


@cache
def version(package: str) -> str:
    """The installed version of a package, read without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def version_rows() -> list[dict[str, str]]:
    """The project and what it stands on, one line a package."""
    import platform

    rows = [{"Package": "auglocal (this project)", "Version": version("auglocal")}]
    rows += [{"Package": name, "Version": version(name)} for name in PACKAGES]
    return [*rows, {"Package": "Python", "Version": platform.python_version()}]


def geometry_entries() -> list[Entry]:
    """Geometry's measures, as the code that computes them describes them."""
    return [
        Entry(
            kind.title,
            f"{kind.definition} *{kind.direction[0].upper()}{kind.direction[1:]}.* "
            f"{in_range(kind.lowest, kind.highest)}",
            (GEOMETRY_FORMULAS[name],),
            f"{kind.source}.",
        )
        for name, kind in GEOMETRY_MEASURES.items()
    ]


def in_range(lowest: float | None, highest: float | None) -> str:
    """The range of a measure in words."""
    if lowest is None and highest is None:
        return ""
    if highest is None:
        return f"From {lowest:g} on."
    return f"Between {lowest:g} and {highest:g}."


def about(measure: Any) -> str:
    """Range, direction and invariances of a measure of similarity, in a line."""
    low, high = measure.range
    bounds = f"At most {high:g}" if low == float("-inf") else f"{low:.3g} to {high:.3g}"
    return f"{bounds}, {measure.direction}. Unchanged by {'; by '.join(measure.invariances)}."

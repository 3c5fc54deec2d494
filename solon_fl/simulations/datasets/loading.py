"""Every data set by its name."""

from collections.abc import Callable
from pathlib import Path

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.datasets.cifar10 import cifar10
from solon_fl.simulations.datasets.dataset import Dataset
from solon_fl.simulations.datasets.images import fashion_mnist, fashion_mnist_6k
from solon_fl.simulations.datasets.reviews import movie_reviews, synthetic_reviews
from solon_fl.simulations.datasets.svhn import svhn

__all__ = ["DATASETS", "load_dataset"]

DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "fashion-mnist-6k": fashion_mnist_6k,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "svhn": svhn,
    "synthetic-reviews": synthetic_reviews,
    "movie-reviews": movie_reviews,
}
"""The data sets' names, each with the function that reads it from a folder (``None``: no folder was given)."""


def load_dataset(name: str, data_dir: Path | None = None) -> Dataset:
    """Return a data set by name. It is read into memory; nothing is downloaded.

    Parameters
    ----------
    name : str
        Images of 10 classes. ``fashion-mnist-6k``: 5,000 training and 1,000 test images of Fashion-MNIST, embedded in
        the package. ``fashion-mnist``: all 70,000. ``cifar10``: CIFAR-10, in colour. ``svhn``: the house numbers of
        Street View, cropped to 99,289 digits in colour.

        Texts of 2 classes. ``synthetic-reviews``: 5,000 training and 1,000 test texts of random words, made by code.
        No person wrote them, and a score on them says nothing about real language. ``movie-reviews``: snippets of film
        reviews, unfavourable (0) or favourable (1). They are shuffled, and every 10th is kept for the test.
    data_dir : Path, optional
        The folder to read, for all sets but ``fashion-mnist-6k`` and ``synthetic-reviews``.
        For ``fashion-mnist`` it holds the four idx files, gzipped or not, itself or in ``FashionMNIST/raw/`` (as
        torchvision leaves them) or in ``fashion-mnist/`` (as in Debian's ``/usr/share/datasets``).
        For ``cifar10`` it holds ``train/<class>/`` and ``test/<class>/`` with JPEG or PNG images (which needs the extra
        ``simulation``), or it holds or is torchvision's ``cifar-10-batches-py/``.
        For ``svhn`` it holds ``train_32x32.mat`` and ``test_32x32.mat``.
        For ``movie-reviews`` it holds ``rt-polarity.pos`` and ``rt-polarity.neg``. Or it is a file, gzipped or not, of
        lines with an id, the mean rating and the text, separated by tabs (VADER's
        ``movieReviewSnippets_GroundTruth.txt``). A text is favourable if rated above 0, and left out at exactly 0.

    Returns
    -------
    Dataset
        Images of one shape or texts of one length, each with the label of a class.

    Raises
    ------
    ConfigurationError
        If the name is not in `DATASETS`, if `data_dir` is missing or is given to a set that reads none, if a file is
        not found there, or if a file is truncated, malformed, or a pickle that asks for more than arrays.

    Notes
    -----
    Memory: 4 bytes for each value of a pixel (CIFAR-10: 737 MB; SVHN: 1.2 GB), and 1 more while reading; 8 bytes for
    each token.

    Examples
    --------
    >>> data = load_dataset("fashion-mnist-6k")
    >>> data.input_shape, len(data.train_labels), len(data.test_labels)
    ((1, 28, 28), 5000, 1000)
    >>> texts = load_dataset("synthetic-reviews")
    >>> texts.input_shape, texts.num_classes  # 1,000 token ids, texts of 30 tokens
    ((1000, 30), 2)

    References
    ----------
    ``svhn``: Y. Netzer et al., "Reading digits in natural images with unsupervised feature learning", NIPS workshop on
    deep learning 2011. ``movie-reviews``: B. Pang, L. Lee, "Seeing stars", ACL 2005; rated by C. Hutto, E. Gilbert,
    "VADER", ICWSM 2014.
    """
    if name not in DATASETS:
        raise ConfigurationError(f"dataset must be one of {', '.join(DATASETS)}; got dataset={name!r}; choose one.")
    return DATASETS[name](data_dir)

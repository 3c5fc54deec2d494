"""Every data set by its name."""

from collections.abc import Callable
from pathlib import Path

from solon_fl.checks import check_one_of, check_whole, closest
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.datasets.cifar10 import cifar10
from solon_fl.simulations.datasets.dataset import Dataset
from solon_fl.simulations.datasets.examples import dataset_of
from solon_fl.simulations.datasets.folders import read_folder, similar_folder
from solon_fl.simulations.datasets.images import fashion_mnist, fashion_mnist_6k
from solon_fl.simulations.datasets.reviews import movie_reviews, synthetic_reviews
from solon_fl.simulations.datasets.svhn import svhn
from solon_fl.simulations.own import OWN, arguments_for, call_own, is_own, load_own, seeded

__all__ = ["DATASETS", "check_dataset_name", "load_dataset"]

DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "fashion-mnist-6k": fashion_mnist_6k,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "svhn": svhn,
    "synthetic-reviews": synthetic_reviews,
    "movie-reviews": movie_reviews,
}
"""The data sets' names, each with the function that reads it from a folder (``None``: no folder was given)."""


def load_dataset(name: str, data_dir: Path | None = None, image_size: int | None = None) -> Dataset:
    """Return a data set by name, from a folder, or of your own. It is read into memory; nothing is downloaded.

    Parameters
    ----------
    name : str
        Images of 10 classes. ``fashion-mnist-6k``: 5,000 training and 1,000 test images of Fashion-MNIST, embedded in
        the package. ``fashion-mnist``: all 70,000. ``cifar10``: CIFAR-10, in colour. ``svhn``: the house numbers of
        Street View, cropped to 99,289 digits in colour.

        Texts of 2 classes. ``synthetic-reviews``: 5,000 training and 1,000 test texts of random words, made by code.
        No person wrote them, and a score on them says nothing about real language. ``movie-reviews``: snippets of film
        reviews, unfavourable (0) or favourable (1). They are shuffled, and every 10th is kept for the test.

        Or a folder: of folders of images, one a class, or ``train/`` and ``test/`` with such folders in them; or what
        ``save_to_disk`` of Hugging Face's ``datasets`` wrote, with a column of images and one of labels. Images of PNG,
        JPEG, BMP or WEBP, of one size, or see `image_size`.

        Or ``module:name`` of your own: a `Dataset`; or a map-style data set, such as a ``torch.utils.data.Dataset``, of
        pairs of an input and the number of its class; or a tuple of two of them, train and test; or a function that
        returns any of these. It is called with `data_dir` if its signature names it, with seeded random states.
        Inputs: images, of PIL or uint8 with channels first, are normalised; floating-point numbers are taken as they
        are; whole numbers (int64) of one dimension are the tokens of a text.

        Where there is no test set, one of five examples of each class, rounded down, is kept for it: always the same.
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
    image_size : int, optional
        For images of PIL, in a folder or of your own: each is scaled so that its shorter side has so many pixels
        (bilinear), and cropped in the middle to a square.

    Returns
    -------
    Dataset
        Images of one shape or texts of one length, each with the label of a class.

    Raises
    ------
    ConfigurationError
        If the name is not in `DATASETS`, no folder and no import path, if `data_dir` is missing or is given to a set
        that reads none, if a file is not found there, or if a file is truncated, malformed, or a pickle that asks for
        more than arrays. If your own raises, or is not as above.

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
    check_dataset_name(name)
    if image_size is not None:
        check_whole("image_size", image_size, 1)
    if name in DATASETS:
        if image_size is not None:
            rule = "image_size is for folders of images and data of your own"
            raise ConfigurationError(f"{rule}; got image_size={image_size}, dataset={name!r}; leave image_size out.")
        if data_dir is not None and (meant := similar_folder(data_dir)):
            raise ConfigurationError(f"data_dir must exist; got data_dir={str(data_dir)!r}; did you mean {meant}?")
        return DATASETS[name](data_dir)
    if not is_own(name):
        _refuse_folder(name, data_dir)
        return dataset_of(name, read_folder(Path(name)), image_size)
    with seeded(0):
        found = load_own("dataset", name)
        if isinstance(found, type) or (callable(found) and not hasattr(found, "__getitem__")):
            if "data_dir" not in arguments_for(found, {"data_dir": data_dir})[0]:
                _refuse_folder(name, data_dir)
            found = call_own("dataset", name, found, {"data_dir": data_dir})
        return dataset_of(name, found, image_size)


def check_dataset_name(name: str) -> None:
    """Raise ConfigurationError unless the name is in `DATASETS`, a folder, or leads to something of the user's.

    Whether a folder is there that is written with a slash shows when it is read.
    """
    if is_own(name):
        load_own("dataset", name)
    elif name not in DATASETS and not (isinstance(name, str) and name and ("/" in name or Path(name).is_dir())):
        also = f"a folder, or {OWN}"
        if isinstance(name, str) and not closest(name, DATASETS) and (meant := similar_folder(Path(name))):
            rule = f"dataset must be one of {', '.join(DATASETS)}, or {also}"
            raise ConfigurationError(f"{rule}; got dataset={name!r}; did you mean {meant}?")
        check_one_of("dataset", name, DATASETS, also)


def _refuse_folder(name: str, data_dir: Path | None) -> None:
    if data_dir is not None:
        raise ConfigurationError(f"dataset={name!r} takes no data_dir; got data_dir={str(data_dir)!r}; leave it out.")

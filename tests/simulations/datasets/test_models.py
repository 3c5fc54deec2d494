import pytest
import torch
import torch.nn.functional as F
from torch import nn

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.datasets import load_dataset
from solon_fl.simulations.datasets.models import MODELS, build_model

GREY = (1, 28, 28)
COLOUR = (3, 32, 32)
TEXT = (1000, 30)
IMAGE_MODELS = [name for name in MODELS if name != "textcnn"]


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def kind(name: str) -> tuple[int, ...]:
    return GREY if name in IMAGE_MODELS else TEXT


def inputs(input_shape: tuple[int, ...], count: int) -> torch.Tensor:
    if len(input_shape) == 3:
        return torch.zeros(count, *input_shape)
    return torch.arange(count * input_shape[1]).view(count, -1) % input_shape[0]


@pytest.mark.parametrize(
    ("name", "input_shape"),
    [(name, shape) for name in IMAGE_MODELS for shape in (GREY, COLOUR, (2, 9, 14), (1, 2, 1), (1, 40, 70))]
    + [("textcnn", shape) for shape in (TEXT, (1, 5), (40, 6))],
)
def test_every_model_takes_every_shape_of_its_kind(name: str, input_shape: tuple[int, ...]) -> None:
    model = build_model(name, input_shape, num_classes=7, seed=3)
    logits = model(inputs(input_shape, 2))
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32
    assert model.training
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "grey", "colour"),
    [
        ("logistic", 7_850, 30_730),
        ("mlp", 1_047_210, 2_648_810),
        ("cnn", 20_746, 26_346),
        ("resnet18", 11_172_810, 11_173_962),
        ("vgg13", 9_411_914, 9_413_066),
    ],
)
def test_parameter_counts(name: str, grey: int, colour: int) -> None:
    assert count_parameters(build_model(name, GREY, 10, seed=0)) == grey
    assert count_parameters(build_model(name, COLOUR, 10, seed=0)) == colour


@pytest.mark.parametrize("vocabulary_size", [1_000, 5_002])
def test_parameter_count_of_textcnn(vocabulary_size: int) -> None:
    model = build_model("textcnn", (vocabulary_size, 30), 2, seed=0)
    assert count_parameters(model) == 38_852 + 64 * vocabulary_size
    assert count_parameters(build_model("textcnn", (vocabulary_size, 80), 2, seed=0)) == count_parameters(model)


def test_only_normalisation_brings_buffers() -> None:
    assert {name for name in MODELS if list(build_model(name, kind(name), 10, seed=0).buffers())} == {
        "resnet18",
        "vgg13",
    }


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_a_model_for_images_refuses_texts(name: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"model='{name}' needs images; .* texts, input_shape=\(1000, 30\); choose textcnn"
    ):
        build_model(name, TEXT, 2, seed=0)


def test_a_model_for_texts_refuses_images() -> None:
    match = r"needs texts; .* images, input_shape=\(1, 28, 28\); choose logistic or mlp or cnn or resnet18 or vgg13"
    with pytest.raises(ConfigurationError, match=match):
        build_model("textcnn", GREY, 10, seed=0)


def test_a_text_shorter_than_the_widest_window_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"at least 5 tokens; got input_shape=\(1000, 4\)"):
        build_model("textcnn", (1000, 4), 2, seed=0)


def test_every_word_of_a_text_moves_textcnn_and_no_run_differs() -> None:
    model = build_model("textcnn", TEXT, 2, seed=0)
    tokens = inputs(TEXT, 2)
    tokens[1, 10:] = 0  # padding counts as a word
    model(tokens).sum().backward()
    weight = model.get_parameter("embedding.weight")
    assert weight.grad is not None
    assert not weight.grad.is_sparse
    assert weight.grad[0].any()
    torch.testing.assert_close(model(tokens), model(tokens), rtol=0, atol=0)


def test_vgg13_pools_five_times() -> None:
    model = build_model("vgg13", COLOUR, 10, seed=0)
    sides: list[int] = []
    for layer in model.children():
        if isinstance(layer, (nn.MaxPool2d, nn.AdaptiveMaxPool2d)):
            layer.register_forward_hook(lambda _layer, _input, output: sides.append(output.shape[2]))
    model(torch.zeros(1, *COLOUR))
    assert sides == [16, 8, 4, 2, 1]
    assert sum(isinstance(layer, nn.Conv2d) for layer in model.modules()) == 10


def test_resnet18_halves_its_resolution_three_times() -> None:
    model = build_model("resnet18", COLOUR, 10, seed=0)
    shapes: list[tuple[int, ...]] = []
    for layer in model.children():
        layer.register_forward_hook(lambda _layer, _input, output: shapes.append(tuple(output.shape[1:])))
    model(torch.zeros(1, *COLOUR))
    stem, head = (
        [(64, 32, 32)] * 3,
        [(512, 1, 1), (512,), (10,)],
    )  # convolution, normalisation, ReLU; pool, flatten, linear
    blocks = [(64, 32, 32)] * 2 + [(128, 16, 16)] * 2 + [(256, 8, 8)] * 2 + [(512, 4, 4)] * 2
    assert shapes == stem + blocks + head


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_alone_decides_the_weights(name: str) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_model(name, kind(name), 10, seed=5)
    torch.testing.assert_close(torch.get_rng_state(), state, rtol=0, atol=0)
    torch.manual_seed(2)
    again, other = (build_model(name, kind(name), 10, seed=seed) for seed in (5, 6))
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    weights, other_weights = (nn.utils.parameters_to_vector(model.parameters()) for model in (first, other))
    assert not torch.equal(weights, other_weights)


def test_a_failed_build_leaves_the_global_state() -> None:
    state = torch.get_rng_state()
    with pytest.raises(ConfigurationError, match="model='net'"):
        build_model("net", GREY, 10, seed=0)
    torch.testing.assert_close(torch.get_rng_state(), state, rtol=0, atol=0)


def test_unknown_name_lists_those_that_exist() -> None:
    with pytest.raises(
        ConfigurationError, match="textcnn, or module:name of your own; got model='vgg'; did you mean vgg13"
    ):
        build_model("vgg", GREY, 10, seed=0)


@pytest.mark.parametrize(
    ("input_shape", "num_classes", "seed", "match"),
    [
        ((0, 28, 28), 10, 0, r"input_shape=\(0, 28, 28\)"),
        ((1, 28, -1), 10, 0, r"input_shape=\(1, 28, -1\)"),
        ((28, 28), 10, 0, r"input_shape=\(28, 28\)"),
        ((28,), 10, 0, r"input_shape=\(28,\)"),
        ((0, 30), 10, 0, r"input_shape=\(0, 30\)"),
        (GREY, 0, 0, "num_classes=0"),
        (GREY, 10, -1, "seed=-1"),
        (GREY, 10, 2**63, f"seed={2**63}"),
    ],
)
def test_numbers_out_of_range_are_refused(
    input_shape: tuple[int, ...], num_classes: int, seed: int, match: str
) -> None:
    with pytest.raises(ConfigurationError, match=match):
        build_model("cnn", input_shape, num_classes, seed)


def train(dataset: str, name: str, steps: int, batch_size: int) -> tuple[float, float, float]:
    """A network's loss on the test set before and after training, and its accuracy after."""
    data = load_dataset(dataset)
    model = build_model(name, data.input_shape, data.num_classes, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)

    def evaluate() -> tuple[float, float]:
        with torch.no_grad():
            logits = model(data.test_inputs)
        accuracy = (logits.argmax(dim=1) == data.test_labels).double().mean()
        return F.cross_entropy(logits, data.test_labels).item(), accuracy.item()

    before, _ = evaluate()
    for _ in range(steps):
        rows = torch.randint(len(data.train_labels), (batch_size,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(data.train_inputs[rows]), data.train_labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
    after, accuracy = evaluate()
    return before, after, accuracy


def test_a_few_steps_lower_the_loss() -> None:
    before, after, _ = train("fashion-mnist-6k", "cnn", steps=10, batch_size=64)
    assert after < 0.7 * before


@pytest.mark.slow
def test_cnn_passes_four_fifths_in_a_hundred_steps() -> None:
    _, _, accuracy = train("fashion-mnist-6k", "cnn", steps=100, batch_size=320)
    assert accuracy > 0.8


@pytest.mark.slow
def test_textcnn_passes_four_fifths_on_made_up_texts() -> None:
    _, _, accuracy = train("synthetic-reviews", "textcnn", steps=160, batch_size=64)
    assert accuracy > 0.8

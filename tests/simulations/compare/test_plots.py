import numpy as np

from solon_fl.simulations.compare.plots import plot_accuracy
from tests.simulations.compare import handmade
from tests.simulations.compare.handmade import ALL, SLOW, SOLON


def test_plots_have_a_panel_for_each_attack_and_a_line_for_each_strategy() -> None:
    results = handmade.results(*ALL, target_accuracy=0.5)
    for network in (None, SLOW):
        panels = [axes for axes in plot_accuracy(results, network).axes if axes.get_visible()]
        assert [axes.get_title(loc="left") for axes in panels] == ["no attack", "alie: 2 of 10 nodes lie"]
        labels = [[str(line.get_label()) for line in axes.get_lines()] for axes in panels]
        named = [[label for label in found if not label.startswith("_")] for found in labels]
        assert named == [["Solon", "FedAvg"], ["Solon", "FedAvg", "MultiKrum"]]
    drawn = plot_accuracy(results).axes[0].get_lines()[0].get_ydata()
    assert np.asarray(drawn).tolist() == SOLON.accuracies

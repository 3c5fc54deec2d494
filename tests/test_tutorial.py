"""The tutorial's code runs block by block, and prints what the tutorial shows."""

import re
from pathlib import Path
from typing import Any

import pytest

from solon_fl import ConfigurationError, GroupFailedError

PAGE = (Path(__file__).parent.parent / "docs/tutorial.md").read_text()
BLOCKS = re.findall(r"```(python|text)\n(.*?)```", PAGE, flags=re.DOTALL)
DIGITS = re.compile(r"\b[0-9a-f]{16}\b")
FIGURES = re.compile(r"\d+\.\d+")


@pytest.mark.slow
def test_each_block_prints_what_the_tutorial_shows(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    shown, printed = [], []
    for kind, text in BLOCKS:
        if kind == "python":
            exec(text, names)
            printed.append(capsys.readouterr().out)
        else:
            shown.append(text)
    printed = [text for text in printed if text]
    assert len(shown) == len(printed) == 4
    for there, here in zip(shown, printed, strict=True):
        assert FIGURES.sub("x", DIGITS.sub("y", here)) == FIGURES.sub("x", DIGITS.sub("y", there))
        expected, found = ([float(figure) for figure in FIGURES.findall(text)] for text in (there, here))
        if here.startswith("FedAvg"):
            assert found.pop() < 40  # -20 everywhere: how badly it does depends on the machine
            expected.pop()
        assert found == pytest.approx(expected, rel=0.05)
    (honest,), (attacked,) = map(DIGITS.findall, printed[:2])
    assert honest == attacked

    messages = dict(re.findall(r"`(\w+Error): (.*?) \.\.\.`", PAGE))
    two = names["attack_mod"](names["Constant"](-100.0), {1, 3})
    with pytest.raises(GroupFailedError, match=re.escape(messages["GroupFailedError"])):
        names["train"](names["MyClient"]().client_app([two]))
    with pytest.raises(ConfigurationError, match=re.escape(messages["ConfigurationError"])):
        names["SolonConfig"](num_nodes=6, byzantine=1, compression=3)

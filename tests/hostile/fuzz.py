"""Feeds the bytes of a coverage-guided fuzzer, as a node's replies, to all code that reads replies.

Run it with ``make fuzz``, or with libFuzzer's options: ``python -m tests.hostile.fuzz -runs=100000 -max_len=400``. The
checks are in checks.py. A failure is a traceback and a file ``crash-...`` that reproduces it:
``python -m tests.hostile.fuzz crash-...``. SOLON_FUZZ_CHECK=check_group runs a single check. By itself, the fuzzer
prefers the slow ones, which have more code.
"""

import os
import resource
import sys

import atheris

READERS = ("replies", "group", "digest_group", "calibration", "roster", "exchange")
INSTRUMENTED = [f"solon_fl.strategies.{name}" for name in READERS]
INSTRUMENTED += ["solon_fl.baselines.vectors", "solon_fl.wire", "tests.hostile.replies"]
with atheris.instrument_imports(include=INSTRUMENTED):
    from tests.hostile import checks

ADDRESS_SPACE = 6 << 30  # most bytes that the process may map; torch maps most of them at once


class Bytes:
    """Choices determined by a fuzzer's bytes."""

    def __init__(self, data: bytes) -> None:
        self._provider = atheris.FuzzedDataProvider(data)

    def whole(self, least: int, most: int) -> int:
        return int(self._provider.ConsumeIntInRange(least, most))

    def binary(self, most: int) -> bytes:
        return bytes(self._provider.ConsumeBytes(self.whole(0, most)))

    def text(self, most: int) -> str:
        return str(self._provider.ConsumeUnicode(self.whole(0, most)))


def main() -> None:
    """Fuzz until libFuzzer's options say to stop."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    only = os.environ.get("SOLON_FUZZ_CHECK")
    weighted = []
    for check in checks.CHECKS:
        if only in (None, check.__name__):
            weighted += [check] * (1 if check in checks.SLOW else 60)
            with checks.only_one_liners():
                check(Bytes(b""))  # create objects that are only made once before memory is measured

    def one_input(data: bytes) -> None:
        source = Bytes(data)
        check = weighted[source.whole(0, len(weighted) - 1)]
        with checks.only_one_liners():
            check(source)

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

"""Whatever happened to the files: the newest complete checkpoint, or a CheckpointError that says why there is none."""

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from solon_fl.errors import CheckpointError, ConfigurationError, GroupFailedError
from solon_fl.simulations import InProcessGrid
from solon_fl.strategies import SolonStrategy
from solon_fl.strategies import checkpoint as checkpoint_module
from solon_fl.strategies.checkpoint import Checkpoint, Checkpoints
from solon_fl.wire import to_array, trusted_tensor
from tests.support import (
    REMEMBERING,
    SGD,
    Remembering,
    initial_model,
    record_of,
    share_array,
    small_config,
    spoil,
    train,
)

RUN = {"strategy": "SolonStrategy", "seed": 1, "model": {"w": [[2, 3], "torch.float32"]}}


def checkpoint(number: int, **changes: Any) -> Checkpoint:
    tensors = {"vector": torch.full((6,), float(number)), "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}}
    return Checkpoint(
        **{"round": number, "run": RUN, "notes": {"lying": [1, 2], "x": "é"}, "tensors": tensors, **changes}
    )


def saved(folder: Path, *rounds: int, **settings: int) -> Checkpoints:
    checkpoints = Checkpoints(folder, **settings)
    for number in rounds:
        checkpoints.save(checkpoint(number))
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def loaded_round(folder: Path) -> int:
    found = Checkpoints(folder).load(RUN)
    assert found is not None
    assert torch.equal(found.tensors["vector"], torch.full((6,), float(found.round)))
    return found.round


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    found = saved(tmp_path / "new" / "folder", 7).load(RUN)
    assert found is not None
    assert (found.round, found.run, found.notes) == (7, RUN, {"lying": [1, 2], "x": "é"})
    assert torch.equal(found.tensors["optimizer"]["state"][0]["step"], torch.tensor(1.0))


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_without_checkpoints_there_is_nothing_to_load(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    assert Checkpoints(tmp_path / folder).load(RUN) is None


def test_as_many_are_kept_as_were_asked_for(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, 5, keep=3)
    assert names(tmp_path) == [f"round-00000{n}.{kind}" for n in (3, 4, 5) for kind in ("json", "pt")]


def test_the_newest_is_that_of_the_highest_round_even_beyond_six_digits(tmp_path: Path) -> None:
    saved(tmp_path, 999_999, 1_000_000, 1_000_001)
    assert loaded_round(tmp_path) == 1_000_001
    assert len(names(tmp_path)) == 4


def test_leftovers_of_a_killed_save_are_removed_by_the_next(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    (tmp_path / "round-000003.pt.part").write_bytes(b"half")
    (tmp_path / "round-000004.pt").write_bytes(b"killed before the manifest")
    (tmp_path / "notes.txt").write_text("the user's")
    saved(tmp_path, 3)
    assert names(tmp_path) == ["notes.txt", *(f"round-00000{n}.{kind}" for n in (2, 3) for kind in ("json", "pt"))]


def test_a_kill_between_the_two_files_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    (tmp_path / "round-000002.json").unlink()
    assert loaded_round(tmp_path) == 1


def test_damaged_newer_checkpoints_do_not_push_out_the_whole_ones(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, keep=3)
    for number in (2, 3):
        (tmp_path / f"round-00000{number}.pt").write_bytes(b"")
    assert loaded_round(tmp_path) == 1
    Checkpoints(tmp_path, every=1, keep=2).save(checkpoint(1))  # the server dies again after this
    assert loaded_round(tmp_path) == 1
    saved(tmp_path, 2)
    (tmp_path / "round-000002.pt").write_bytes(b"")
    assert loaded_round(tmp_path) == 1


# ---- damage --------------------------------------------------------------------------------------------------


def damaged(tmp_path: Path, damage: Callable[[Path], None], kinds: tuple[str, ...] = ("json", "pt")) -> None:
    for kind in kinds:
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        saved(folder, 1, 2)
        path = folder / f"round-000002.{kind}"
        whole = path.read_bytes()
        damage(path)
        if path.is_dir() or not path.exists() or path.read_bytes() != whole:
            assert loaded_round(folder) == 1


def put_a_folder_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_a_link_there(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "folder": put_a_folder_there,
    "link-to-nowhere": put_a_link_there,
    "text": lambda path: path.write_text("not a checkpoint"),
    "deep": lambda path: path.write_text("[" * 200_000 + "]" * 200_000),
    "deep-objects": lambda path: path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000),
    "long-number": lambda path: path.write_text('{"round": ' + "9" * 100_000 + "}"),
    "list": lambda path: path.write_text('["digest"]'),
    "null": lambda path: path.write_text("null"),
    "nan": lambda path: path.write_text('{"digest": NaN, "format": Infinity}'),
    "not-utf8": lambda path: path.write_bytes(b'{"digest": "\xff\xfe"}'),
    "pickle": lambda path: path.write_bytes(b"cos\nsystem\n(S'true'\ntR."),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_the_checkpoint_before_is_used(tmp_path: Path, name: str) -> None:
    damaged(tmp_path, DAMAGES[name])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    saved(folder, 1, 2)
    return folder


@given(st.sampled_from(["json", "pt"]), st.floats(0, 1, exclude_max=True), st.integers(0, 7), st.booleans())
def test_cut_off_or_flipped_anywhere(whole: Path, kind: str, where: float, bit: int, cut: bool) -> None:
    path = whole / f"round-000002.{kind}"
    content = path.read_bytes()
    position = int(where * len(content))
    flipped = bytearray(content)
    flipped[position] ^= 1 << bit
    try:
        path.write_bytes(content[:position] if cut else bytes(flipped))
        assert loaded_round(whole) == 1
    finally:
        path.write_bytes(content)
    assert loaded_round(whole) == 2


@pytest.mark.slow
@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_a_manifest_with_the_right_digest_and_anything_in_it(whole: Path, content: Any) -> None:
    """Anybody who can write to the folder can make a matching digest. That must not crash the server, either."""
    path = whole / "round-000002.json"
    before = path.read_bytes()
    manifest = json.loads(before)
    del manifest["digest"]
    for key in ("round", "run", "tensors", "notes", None):
        changed = {**manifest, key: content} if key else {"format": manifest["format"]}
        changed["digest"] = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()
        try:
            path.write_text(json.dumps(changed))
            assert loaded_round(whole) in (1, 2)
        finally:
            path.write_bytes(before)


class NotATensor:
    """A class that weights_only refuses to load."""


def test_tensors_that_only_a_pickle_could_hold_are_neither_saved_nor_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved(tmp_path, 1)
    odd = checkpoint(2, tensors={"vector": NotATensor()})
    with pytest.raises(CheckpointError, match=r"NotATensor\); use numbers, strings and tensors there"):
        checkpoints.save(odd)
    assert names(tmp_path) == ["round-000001.json", "round-000001.pt"]
    monkeypatch.setattr(checkpoint_module, "_check_readable", lambda file: None)
    checkpoints.save(odd)
    assert loaded_round(tmp_path) == 1


def test_numbers_and_arrays_of_numpy_come_back_as_plain_ones(tmp_path: Path) -> None:
    numbers = {"rate": np.float64(0.1), "betas": (np.float32(0.5), 1), "count": np.array([1, 2])}
    state = {"optimizer": {"state": {}, "param_groups": [numbers]}}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(checkpoint(1, tensors=state, notes={"accuracy": np.float32(0.5)}))
    found = checkpoints.load(RUN)
    assert found is not None
    assert found.notes == {"accuracy": 0.5}
    group = found.tensors["optimizer"]["param_groups"][0]
    assert (group["rate"], group["betas"], group["count"].tolist()) == (0.1, (0.5, 1), [1, 2])


def test_settings_that_json_can_not_hold_are_refused_at_the_first_save(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"can't hold .*NotATensor; use numbers and strings as settings"):
        Checkpoints(tmp_path).save(checkpoint(1, notes={"x": NotATensor()}))


class Noting(torch.optim.SGD):
    """Keeps a numpy number in its state."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        self.state[self.param_groups[0]["params"][0]]["note"] = np.float64(1.5)
        return loss


@pytest.mark.slow
def test_a_run_whose_optimizer_has_numbers_of_numpy_goes_on(tmp_path: Path) -> None:
    for rounds in (1, 2):
        _, reports = train(
            rounds=rounds, optimizer=partial(Noting, lr=np.float64(0.1)), checkpoints=Checkpoints(tmp_path)
        )
    assert [report.round for report in reports] == [2]


def test_if_none_is_whole_the_newests_fault_is_told(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    for path in tmp_path.glob("*.json"):
        path.write_text("{}")
    with pytest.raises(CheckpointError, match=r"round-000002\.json: damaged.*another folder to start anew"):
        Checkpoints(tmp_path).load(RUN)


# ---- other runs, other folders -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2}, "seed is 1 there and 2 here"),
        ({"strategy": "DracoStrategy"}, "strategy is 'SolonStrategy' there and 'DracoStrategy' here"),
        ({"extra": None, "seed": 5}, "seed is 1 there and 5 here"),
    ],
)
def test_a_foreign_run_is_refused_with_the_setting_that_differs(tmp_path: Path, changes: Any, message: str) -> None:
    saved(tmp_path, 1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(tmp_path).load({**RUN, **changes})
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_folder_that_can_not_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"round 3 can't be written.*another folder"):
        Checkpoints(tmp_path / "file" / "folder").save(checkpoint(3))
    if os.geteuid():  # root can write everywhere
        tmp_path.chmod(0o500)
        with pytest.raises(CheckpointError, match="round 3 can't be written"):
            Checkpoints(tmp_path).save(checkpoint(3))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    checkpoints = saved(tmp_path, 1)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match=r"round 2 can't be written: .*(space|failed)"):
        checkpoints.save(checkpoint(2))
    assert loaded_round(tmp_path) == 1


def test_a_run_whose_disk_fills_up_goes_on_and_saves_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written = torch.save

    def fill_the_disk(content: Any, file: Any) -> None:
        if len(seen) == 2:
            raise OSError(28, "No space left on device")
        written(content, file)

    seen: list[int] = []

    def note(number: int, arrays: Any) -> None:
        seen[:] = range(number)

    monkeypatch.setattr(torch, "save", fill_the_disk)
    strategy = SolonStrategy(small_config(), SGD, checkpoints=Checkpoints(tmp_path))
    grid = InProcessGrid(REMEMBERING.client_app(), 14)
    result = strategy.start(grid, record_of(initial_model()), num_rounds=3, timeout=1, evaluate_fn=note)
    assert list(result.train_metrics_clientapp) == [1, 2, 3]
    assert [path.stem for path in sorted(tmp_path.glob("*.json"))] == ["round-000001", "round-000003"]
    assert "round 2 can't be written: [Errno 28]" in caplog.text
    assert "Training goes on" in caplog.text


@pytest.mark.parametrize("lacking", ["open", "fsync"])
def test_where_a_folder_can_not_be_forced_to_disk_checkpoints_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    real_open, real_sync = os.open, os.fsync

    def open_files_only(path: Any, *arguments: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *arguments)

    def sync_files_only(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(22, "Invalid argument")
        real_sync(file)

    replacements = {"open": open_files_only, "fsync": sync_files_only}
    monkeypatch.setattr(os, lacking, replacements[lacking])
    saved(tmp_path, 1)
    assert loaded_round(tmp_path) == 1


@pytest.mark.parametrize(("name", "value"), [("every", 0), ("keep", 1), ("every", True), ("keep", 2.0)])
def test_impossible_settings_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}={value}"):
        Checkpoints(tmp_path, **{name: value})


def test_a_strategy_saves_every_so_many_rounds_and_after_the_last(tmp_path: Path) -> None:
    train(rounds=7, checkpoints=Checkpoints(tmp_path, every=3, keep=9))
    assert [path.stem for path in sorted(tmp_path.glob("*.json"))] == ["round-000003", "round-000006", "round-000007"]


# ---- one run at a time ---------------------------------------------------------------------------------------

HOLDING = """
import sys
from solon_fl.strategies import Checkpoints

with Checkpoints(sys.argv[1]).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_server(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that uses the folder until it is killed or its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process


@pytest.mark.slow
def test_a_second_server_is_refused_before_it_does_anything_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("round-*")}
    with another_server(tmp_path) as process:
        message = (
            rf"another run \(process {process.pid} on .*\) uses .*{tmp_path.name}; stop that one, or .*another folder"
        )
        with pytest.raises(CheckpointError, match=message):
            train(rounds=1, checkpoints=Checkpoints(tmp_path), app=ClientApp())  # which can't train
        assert {path.name: path.read_bytes() for path in tmp_path.glob("round-*")} == before
        process.kill()
    with Checkpoints(tmp_path).locked():
        pass


def test_two_runs_of_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    with (
        Checkpoints(tmp_path).locked(),
        pytest.raises(CheckpointError, match=rf"process {os.getpid()} "),
        Checkpoints(tmp_path).locked(),
    ):
        pytest.fail("both have it")


def test_the_folder_is_free_again_when_a_run_is_over_or_has_failed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    train(rounds=1, checkpoints=checkpoints)
    with pytest.raises(GroupFailedError):
        train(rounds=1, checkpoints=Checkpoints(tmp_path / "other"), app=ClientApp(), timeout=0.1)
    with pytest.raises(CheckpointError, match="beyond num_rounds=0"):
        train(rounds=0, checkpoints=checkpoints)
    train(rounds=2, checkpoints=checkpoints)
    with checkpoints.locked(), Checkpoints(tmp_path / "other").locked():
        pass


def test_a_child_that_has_the_lock_file_too_does_not_keep_the_folder(tmp_path: Path) -> None:
    with Checkpoints(tmp_path).locked():
        child = subprocess.Popen(["sleep", "60"], pass_fds=open_files(tmp_path / "lock"))
    try:
        with Checkpoints(tmp_path).locked():
            pass
    finally:
        child.kill()
        child.wait()


def open_files(path: Path) -> list[int]:
    """The descriptors of a file that are open in this process."""
    found = []
    for file in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):
            if os.path.samestat(os.fstat(file), path.stat()):
                found.append(file)
    return found


@pytest.mark.parametrize("what", ["link", "folder", "not a folder"])
def test_a_folder_that_can_not_be_locked_is_refused_at_the_start(tmp_path: Path, what: str) -> None:
    folder, victim = tmp_path / "folder", tmp_path / "victim"
    victim.write_text("precious")
    if what == "not a folder":
        folder.write_text("")
    else:
        folder.mkdir()
        (folder / "lock").symlink_to(victim) if what == "link" else (folder / "lock").mkdir()
    with pytest.raises(CheckpointError, match=r"can't be used.*choose a folder that can be written to"):
        train(rounds=1, checkpoints=Checkpoints(folder), app=ClientApp())
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("lacking", ["platform", "file system"])
def test_where_there_are_no_locks_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lacking: str
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(
        checkpoint_module,
        "fcntl",
        None if lacking == "platform" else SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4, LOCK_UN=8),
    )
    with Checkpoints(tmp_path).locked():
        saved(tmp_path, 1)
    assert "can't be locked" in caplog.text
    assert loaded_round(tmp_path) == 1


# ---- temporary files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pt", "json"])
def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (f"round-000001.{kind}.part", f"round-000001.{kind}", f"round-000001.{kind}.{'0' * 16}.part"):
        (folder / name).symlink_to(victim)
    saved(folder, 1)
    assert loaded_round(folder) == 1
    assert names(folder) == ["round-000001.json", "round-000001.pt"]
    assert victim.read_text() == "precious"
    # Somebody who guesses the name only makes the save fail.
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0" * 2 * size)
    monkeypatch.setattr(Checkpoints, "_remove_parts", lambda self: None)
    (folder / f"round-000002.{kind}.{'0' * 16}.part").symlink_to(victim)
    with pytest.raises(CheckpointError, match="round 2 can't be written"):
        saved(folder, 2)
    assert victim.read_text() == "precious"


def test_leftovers_neither_block_a_save_nor_stay(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    for name in ("round-000001.pt.part", "round-000001.json.ab12.part", "round-000002.pt.part"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "round-000002.json.part").mkdir()  # not a leftover, and it can't be unlinked
    saved(tmp_path, 2)
    assert loaded_round(tmp_path) == 2
    assert [path.name for path in tmp_path.glob("*.part")] == ["round-000002.json.part"]


def test_a_save_that_fails_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_the_disk(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(CheckpointError, match="free some space"):
        saved(tmp_path, 1)
    assert names(tmp_path) == []


# ---- notes and tensors that match their digests but nothing else -------------------------------------------------


def forge(folder: Path, change: Callable[[dict[str, Any]], Any], number: int = 2) -> None:
    """Change the notes of a checkpoint, and make its digest match."""
    path = folder / f"round-00000{number}.json"
    manifest = json.loads(path.read_bytes())
    del manifest["digest"]
    change(manifest["notes"])
    manifest["digest"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest))


def forge_tensors(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "round-000002.pt"
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)
    manifest = json.loads(path.with_suffix(".json").read_bytes())
    del manifest["digest"]
    manifest["tensors"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest["digest"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(manifest))


def with_static_entries() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


CLIENT = Remembering()
CLIENT.make_model = with_static_entries


def went_on(folder: Path, rounds: int) -> list[int]:
    """The rounds played by a run of seven nodes, the first of which lies and is replaced."""
    _, reports = train(
        small_config(num_nodes=7, quarantine_after=1),
        client=CLIENT,
        rounds=rounds,
        checkpoints=Checkpoints(folder),
        projection_seed=1,
        mods=[spoil(lie, {1})],
        num_spares=1,
        client_evaluation=True,
        model=initial_model(with_static_entries),
    )
    return [report.round for report in reports]


def lie(reply: Message) -> Message:
    if reply.has_content() and "share" in reply.content:
        content = share_array(reply.content)
        content["share"] = to_array(trusted_tensor(content["share"]) * -3)
    return reply


@pytest.fixture(scope="module")
def run_of_two_rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert went_on(folder, 2) == [1, 2]
    return folder


WRONG: tuple[Any, ...] = (None, True, -1, 1.5, 10**30, "x", [[]], {})


def places_in(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything in JSON content, but only of the first and last item of a list, and of one metric."""
    if path:
        yield path
    if isinstance(content, dict):
        for key in list(content)[: 1 if len(path) == 3 and path[0] == "metrics" else None]:
            yield from places_in(content[key], (*path, key))
    elif isinstance(content, list) and content:
        for index in {0, len(content) - 1}:
            yield from places_in(content[index], (*path, index))


@pytest.mark.slow
def test_whatever_the_notes_hold_only_a_checkpoint_error_comes_out(run_of_two_rounds: Path, tmp_path: Path) -> None:
    notes = json.loads((run_of_two_rounds / "round-000002.json").read_bytes())["notes"]
    assert notes["roster"]["substitutes"], "so that these are forged too"
    paths = list(places_in(notes))
    refused = accepted = 0
    for path in paths:
        for wrong in (*WRONG, "drop"):

            def change(notes: Any, path: tuple[Any, ...] = path, wrong: Any = wrong) -> None:
                for key in path[:-1]:
                    notes = notes[key]
                if wrong == "drop":
                    del notes[path[-1]]
                else:
                    notes[path[-1]] = wrong

            folder = tmp_path / "run"
            shutil.copytree(run_of_two_rounds, folder)
            forge(folder, change)
            (folder / "round-000001.json").unlink()
            try:
                assert went_on(folder, 3) == [3]
                accepted += 1
            except CheckpointError as error:
                refused += 1
                if not re.search(r"round-000002\.json: .*another folder to start anew", str(error)):
                    raise
            shutil.rmtree(folder)
    assert refused > 3 * accepted > 0, (refused, accepted)


def set_all_places_to_the_first(notes: dict[str, Any]) -> None:
    for record in notes["roster"]["nodes"]:
        record["place"] = [0, 0]


def count_wrongly(notes: dict[str, Any]) -> None:
    notes["roster"]["nodes"][0]["lying"] = "often"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda notes: notes.pop("roster"), "KeyError: 'roster'"),
        (lambda notes: notes.update(rtol=True), "rtol is True"),
        (lambda notes: notes.update(projection="00ff"), "RuntimeError"),
        (lambda notes: notes.pop("metrics"), "KeyError: 'metrics'"),
        (lambda notes: notes["roster"].update(nodes=[]), "no nodes"),
        (lambda notes: notes["roster"]["nodes"].append(notes["roster"]["nodes"][0]), "a node twice"),
        (lambda notes: notes["roster"]["nodes"][0].update(place=[0, 7]), "an impossible place"),
        (lambda notes: notes["roster"]["substitutes"].append([0, 3, "key:nobody"]), "an unknown substitute"),
        (lambda notes: notes["roster"]["nodes"][0].update(node_id=2), "an id twice"),
        (lambda notes: notes["roster"]["nodes"][0].update(state="king"), "state in the ledger is not"),
        (set_all_places_to_the_first, "a place twice"),
        (count_wrongly, "lying in the ledger is not a valid number"),
        (lambda notes: notes["roster"]["nodes"][0].update(lying=-1), "lying in the ledger is not a valid number"),
        (
            lambda notes: notes["roster"].update(idle_strangers=[notes["roster"]["nodes"][0]["identity"]]),
            "an impossible stranger",
        ),
    ],
)
def test_the_checkpoint_before_is_used_if_the_notes_are_forged_and_the_log_says_why(
    run_of_two_rounds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Any, reason: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_of_two_rounds, folder)
    forge(folder, change)
    assert went_on(folder, 2) == [2], "the second is played again"
    assert "round-000002.json is not used" in caplog.text
    assert reason in caplog.text
    forge(folder, lambda notes: None)  # the run has rewritten it
    assert went_on(folder, 2) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("vector"),
        lambda tensors: tensors.update(vector=torch.tensor(1.0)),
        lambda tensors: tensors.update(vector=tensors["vector"].double()),
        lambda tensors: tensors.update(vector="x"),
        lambda tensors: tensors.update(static={}),
        lambda tensors: tensors.update(static={name: torch.zeros(2) for name in tensors["static"]}),
        lambda tensors: tensors.update(optimizer=None),
        lambda tensors: tensors["optimizer"].update(param_groups=[]),
    ],
    ids=["no vector", "scalar", "dtype", "text", "no static", "static", "no optimizer", "no groups"],
)
def test_the_checkpoint_before_is_used_if_the_tensors_are_forged(
    run_of_two_rounds: Path, tmp_path: Path, change: Any
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_of_two_rounds, folder)
    forge_tensors(folder, change)
    assert went_on(folder, 2) == [2]

"""The parts of a model that a node keeps in memory and on disk: intact, private and limited in number."""

import os
import resource
import signal
import stat
import time
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict

from solon_fl.clients import downlink_mod, keeping
from solon_fl.clients.keeping import MOST, ModelStore, store_of
from solon_fl.downlink.codec import make_patch
from solon_fl.errors import ConfigurationError
from solon_fl.parts import FIXED, MODEL, PATCHES, TRAINED, Parts
from solon_fl.simulations.run._compat import become_server
from solon_fl.wire import model_sha256, to_array, trusted_tensor

CONTEXT = Context(run_id=77, node_id=1, node_config={}, state=RecordDict(), run_config={})


def arrays_of(value: float) -> dict[str, Array]:
    return {"a": to_array(torch.full((3, 2), value)), "b": to_array(torch.tensor(value, dtype=torch.float16))}


def sha256_of(arrays: dict[str, Array]) -> str:
    return model_sha256(ArrayRecord(dict(arrays)))


def put(store: ModelStore, value: float, kind: keeping.Kind = "trained") -> str:
    arrays = arrays_of(value)
    store.put(kind, sha256_of(arrays), arrays)
    return sha256_of(arrays)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_another_process_finds_what_one_has_kept(tmp_path: Path) -> None:
    sha256 = put(ModelStore(tmp_path / "root" / "7"), 1.5)
    found = ModelStore(tmp_path / "root" / "7").get("trained", sha256)
    assert found is not None
    assert sha256_of(dict(found)) == sha256
    assert ModelStore(tmp_path / "root" / "7").get("fixed", sha256) is None
    assert ModelStore(tmp_path / "root" / "8").get("trained", sha256) is None


def test_in_memory_and_on_disk_only_the_latest_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "7"
    store = ModelStore(folder)
    kept = []
    for value in range(6):
        kept.append(put(store, float(value)))
        os.utime(folder / f"trained-{kept[-1]}.pt", (value, value))
    fixed = put(store, 100.0, "fixed")
    assert len(files_in(folder)) == MOST["trained"] + 1
    assert [store.get("trained", sha256) is not None for sha256 in kept] == 3 * [False] + 3 * [True]
    assert ModelStore(folder).get("fixed", fixed) is not None


@pytest.mark.parametrize("damage", ["a bit", "cut", "empty", "another model"])
def test_what_is_damaged_on_disk_is_not_used(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "root" / "7"
    sha256 = put(ModelStore(folder), 1.5)
    path = folder / f"trained-{sha256}.pt"
    data = bytearray(path.read_bytes())
    if damage == "a bit":
        place = data.index(torch.full((3, 2), 1.5).numpy().tobytes())
        data[place] ^= 1
    elif damage == "another model":
        torch.save({"a": torch.zeros(3)}, path)
        data = bytearray(path.read_bytes())
    path.write_bytes(bytes(data[: {"cut": len(data) // 2, "empty": 0}.get(damage, len(data))]))
    assert ModelStore(folder).get("trained", sha256) is None
    assert "is not used" in caplog.text
    put(ModelStore(folder), 1.5)
    assert ModelStore(folder).get("trained", sha256) is not None, "it was kept anew"


def test_a_disk_that_is_full_is_a_warning_and_holds_no_scraps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, store, most = tmp_path / "root" / "7", ModelStore(tmp_path / "root" / "7"), resource.RLIMIT_FSIZE
    limits, handler = resource.getrlimit(most), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(most, (64, limits[1]))
    try:
        sha256 = put(store, 1.0)
    finally:
        resource.setrlimit(most, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "can't be kept" in caplog.text
    assert files_in(folder) == []
    assert store.get("trained", sha256) is not None, "in memory it is"


def test_the_folder_is_for_this_user_alone(tmp_path: Path) -> None:
    put(ModelStore(tmp_path / "root" / "7"), 1.0)
    assert stat.S_IMODE((tmp_path / "root").stat().st_mode) == 0o700


@pytest.mark.parametrize("trap", ["others may write", "a link", "a file"])
def test_a_folder_that_others_can_write_to_is_not_used(
    tmp_path: Path, trap: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    if trap == "a link":
        (tmp_path / "elsewhere").mkdir()
        root.symlink_to(tmp_path / "elsewhere")
    elif trap == "a file":
        root.write_text("")
    else:
        root.mkdir()
        root.chmod(0o777)
    store = ModelStore(root / "7")
    sha256 = put(store, 1.0)
    assert "can't be kept" in caplog.text
    assert "SOLON_FL_STATE" in caplog.text
    assert store.get("trained", sha256) is not None, "in memory it is"
    assert not (tmp_path / "elsewhere" / "7").exists()


def test_nothing_is_read_from_a_folder_that_others_can_write_to(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "7"
    sha256 = put(ModelStore(folder), 1.0)
    folder.chmod(0o777)
    assert ModelStore(folder).get("trained", sha256) is None


def test_models_of_runs_that_are_long_over_are_removed(tmp_path: Path) -> None:
    put(ModelStore(tmp_path / "root" / "1"), 1.0)
    put(ModelStore(tmp_path / "root" / "2"), 1.0)
    long_ago = time.time() - 2 * 86_400
    os.utime(tmp_path / "root" / "1", (long_ago, long_ago))
    put(ModelStore(tmp_path / "root" / "3"), 1.0)
    assert files_in(tmp_path / "root") == ["2", "3"]


def test_a_process_for_each_message_keeps_models_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_process_stays", False)
    monkeypatch.setattr(keeping, "_on_disk", {})
    monkeypatch.setenv("SOLON_FL_STATE", str(tmp_path / "here"))
    put(store_of(CONTEXT), 1.0)
    assert files_in(tmp_path / "here") == ["77"]
    monkeypatch.setattr(keeping, "_process_stays", True)
    put(store_of(CONTEXT), 2.0)
    assert len(files_in(tmp_path / "here" / "77")) == 1


def test_in_a_worker_that_stays_models_are_in_memory_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_process_stays", False)
    monkeypatch.setattr(keeping, "_on_disk", {})
    monkeypatch.setenv("SOLON_FL_STATE", "")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    sha256 = put(store_of(CONTEXT), 1.0)
    assert files_in(tmp_path) == []
    assert store_of(CONTEXT).get("trained", sha256) is not None


# ---- the mod ---------------------------------------------------------------------------------------------------------


def answer(
    content: RecordDict, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> tuple[RecordDict, ArrayRecord | None]:
    """Return the reply's content, and the model that the function received."""
    become_server()
    monkeypatch.setattr(keeping, "store_of", lambda context: store)
    seen: list[ArrayRecord] = []

    def train(message: Message, context: Context) -> Message:
        assert set(message.content) == {"arrays", "config"}
        seen.append(message.content.array_records["arrays"])
        return Message(RecordDict(), reply_to=message)

    reply = downlink_mod(Message(content, 1, MessageType.TRAIN), CONTEXT, train)
    return reply.content, seen[0] if seen else None


def content_of(parts: Parts, **records: ArrayRecord) -> RecordDict:
    others = ArrayRecord({"count": to_array(torch.tensor(3))})
    named = {name.replace("_", "."): record for name, record in records.items()}
    return RecordDict({"config": ConfigRecord({}), "arrays": others, MODEL: parts.to_record(), **named})


def patched(before: dict[str, Array], change: float) -> tuple[dict[str, Array], Array]:
    """Return the patched arrays, and the patch."""
    copy = {name: trusted_tensor(array) for name, array in before.items()}
    patch = make_patch([value.float() + change for value in copy.values()], list(copy.values()))
    assert patch is not None
    after = {name: to_array(value) for name, value in copy.items()}
    return after, to_array(torch.frombuffer(bytearray(patch), dtype=torch.uint8))


NAMES = ("b", "count", "a", "table")
START = arrays_of(1.0)
FROZEN = ArrayRecord({"table": to_array(torch.arange(4))})
FIRST, ONE = patched(START, 0.5)
SECOND, TWO = patched(FIRST, 0.25)
VERSIONS = tuple(map(sha256_of, (START, FIRST, SECOND)))


def whole() -> RecordDict:
    parts = Parts(names=NAMES, fixed=model_sha256(FROZEN), versions=VERSIONS[:1])
    return content_of(parts, **{"model_trained": ArrayRecord(dict(START)), "model_fixed": FROZEN})


def both_patches() -> RecordDict:
    parts = Parts(names=NAMES, fixed=model_sha256(FROZEN), versions=VERSIONS)
    return content_of(parts, **{"model_patches": ArrayRecord({"0": ONE, "1": TWO})})


def test_a_model_is_put_together_in_the_servers_order_and_the_node_says_what_it_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (TRAINED, FIXED, PATCHES) == ("model.trained", "model.fixed", "model.patches")
    store = ModelStore()
    reply, model = answer(whole(), store, monkeypatch)
    assert model is not None
    assert tuple(model) == NAMES
    assert dict(reply[MODEL]) == {"version": VERSIONS[0], "fixed": model_sha256(FROZEN), "lacks": False}
    reply, model = answer(both_patches(), store, monkeypatch)
    assert model is not None
    assert {name: model[name].data for name in SECOND} == {name: array.data for name, array in SECOND.items()}
    assert model["table"].data == FROZEN["table"].data
    assert dict(reply[MODEL])["version"] == VERSIONS[2]


@pytest.mark.parametrize("has", [0, 1, 2])
def test_patches_that_a_node_has_applied_already_are_passed_over(has: int, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ModelStore()
    store.put("fixed", model_sha256(FROZEN), dict(FROZEN))
    store.put("trained", VERSIONS[has], (START, FIRST, SECOND)[has])
    _, model = answer(both_patches(), store, monkeypatch)
    assert model is not None
    assert model["a"].data == SECOND["a"].data


@pytest.mark.parametrize("missing", ["trained", "fixed", "both"])
def test_a_node_that_lacks_something_says_what_it_has_and_computes_nothing(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore()
    if missing == "trained":
        store.put("fixed", model_sha256(FROZEN), dict(FROZEN))
    elif missing == "fixed":
        store.put("trained", VERSIONS[0], START)
    reply, model = answer(both_patches(), store, monkeypatch)
    assert model is None
    fixed = model_sha256(FROZEN) if missing == "trained" else ""
    assert {name: dict(record) for name, record in reply.items()} == {
        MODEL: {"version": "", "fixed": fixed, "lacks": True}
    }


@pytest.mark.parametrize("what", ["patch of others", "patch cut", "trained", "fixed"])
def test_what_does_not_have_its_sha256_is_never_used(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, content = ModelStore(), both_patches() if what.startswith("patch") else whole()
    if what == "patch of others":  # has the right shapes, but other values
        answer(whole(), store, monkeypatch)
        _, other = patched(arrays_of(5.0), 0.75)
        content["model.patches"] = ArrayRecord({"0": other, "1": TWO})
    elif what == "patch cut":
        answer(whole(), store, monkeypatch)
        cut = trusted_tensor(ONE)[:-3].clone()
        content["model.patches"] = ArrayRecord({"0": to_array(cut), "1": TWO})
    elif what == "trained":
        content["model.trained"] = ArrayRecord(arrays_of(9.0))
    else:
        content["model.fixed"] = ArrayRecord({"table": to_array(torch.arange(5))})
    reply, model = answer(content, store, monkeypatch)
    assert model is None
    assert dict(reply[MODEL])["lacks"] is True


def test_a_message_with_the_whole_model_is_passed_on_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    become_server()
    arrays = ArrayRecord(dict(START))
    content = RecordDict({"config": ConfigRecord({}), "arrays": arrays})
    reply, model = answer(content, ModelStore(), monkeypatch)
    assert model is arrays
    assert MODEL not in reply


def test_parts_that_another_version_sends_are_an_error_that_says_so() -> None:
    become_server()
    content = RecordDict({MODEL: ConfigRecord({"names": ["a"], "fixed": "", "more": 1})})
    with pytest.raises(ConfigurationError, match=r"unknown entries \['more'\]; install the same solon_fl"):
        Parts.from_message(Message(content, 1, MessageType.TRAIN))


def test_without_versions_and_frozen_weights_a_record_has_no_empty_list() -> None:
    become_server()
    content = RecordDict({MODEL: Parts(names=("a",)).to_record()})
    assert "versions" not in content.config_records[MODEL]
    assert Parts.from_message(Message(content, 1, MessageType.TRAIN)) == Parts(names=("a",))

"""Checksum and metadata of exported files: every change is found, foreign metadata is ignored, old files open."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from export_samples import IMAGE_GROUPS, IMAGES, ImageModel
from typer.testing import CliRunner

from spurmix import PackedDataset, Predictor, export_onnx, models
from spurmix.cli.app import app
from spurmix.data.dataset.tokenizer_files import load_tokenizer
from spurmix.data.pack.layouts.table import from_table
from spurmix.deploy.model_file import DIGEST, read_model_file
from spurmix.train.runs.finished import open_run
from spurmix.train.weights import read_weights


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("file") / "m.onnx"
    export_onnx(ImageModel(), path, source=IMAGES, groups=IMAGE_GROUPS)
    return path.read_bytes()


def edited(contents: bytes, path: Path, entries: dict[str, str | None], sign: bool = True) -> Path:
    """Write a file with other metadata entries. None removes an entry. `sign` stores the new checksum."""
    model = onnx.load_from_string(contents)
    stored: dict[str, str | None] = {entry.key: entry.value for entry in model.metadata_props} | entries
    if sign and DIGEST not in entries:
        stored[DIGEST] = None
    for last in (False, True):
        del model.metadata_props[:]
        for key, value in stored.items():
            if value is not None:
                model.metadata_props.add(key=key, value=value)
        path.write_bytes(model.SerializeToString())
        if not last and sign and DIGEST not in entries:
            stored[DIGEST] = json.dumps(read_model_file(path).digest)
    return path


def test_flipped_bits_do_not_change_logits(contents: bytes, tmp_path: Path) -> None:
    rng, path, opened = random.Random(3), tmp_path / "m.onnx", 0
    path.write_bytes(contents)
    expected = Predictor(path).predict(IMAGES)
    for _ in range(300):
        damaged = bytearray(contents)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            logits = Predictor(path).predict(IMAGES)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017  # most files must fail, some may open
            continue
        opened += 1
        np.testing.assert_array_equal(logits, expected)
    assert opened <= 6


def test_changed_weights_are_refused_by_predictor_and_verify(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(contents)
    done = CliRunner().invoke(app, ["verify", str(path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "checksum matches" in done.output
    model = onnx.load(path)
    weight = next(one for one in model.graph.initializer if len(one.raw_data) > 1000)
    weight.raw_data = weight.raw_data[:-4] + b"\0\0\0\0"
    onnx.save(model, path)
    with pytest.raises(ValueError, match=r"m\.onnx was changed after export_onnx compared it"):
        Predictor(path)
    with pytest.raises(ValueError, match="was changed after export_onnx"):
        CliRunner().invoke(app, ["verify", str(path)], catch_exceptions=False)


def test_foreign_metadata_is_ignored(contents: bytes, tmp_path: Path) -> None:
    path = edited(contents, tmp_path / "m.onnx", {"author": "not JSON {", "x": "[" * 10_000}, sign=False)
    predictor = Predictor(path)
    assert {key.split(".")[0] for key in predictor.metadata} == {"spurmix"}
    assert predictor.classes == ["a", "b", "c"]


def test_files_without_a_checksum_open(contents: bytes, tmp_path: Path) -> None:
    path = edited(contents, tmp_path / "m.onnx", {DIGEST: None}, sign=False)
    assert Predictor(path).classes == ["a", "b", "c"]
    with pytest.raises(ValueError, match="has no checksum"):
        CliRunner().invoke(app, ["verify", str(path)], catch_exceptions=False)


def test_no_flipped_bit_of_a_key_turns_the_checksum_off(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for key in (b"spurmix.digest", b"spurmix.version", b"spurmix.normalise"):
        begin = contents.index(key)
        for position in range(begin - 4, begin + len(key) + 2):  # the tags and lengths before the key, too
            for bit in range(8):
                damaged = bytearray(contents)
                damaged[position] ^= 1 << bit
                path.write_bytes(damaged)
                with pytest.raises(ValueError, match=r"m\.onnx"):
                    Predictor(path)


@pytest.mark.parametrize("key", ["spurmix.digesu", "rpurmix.digest", "purmix.digest", "spurmixdigest", "spurmix.more"])
def test_keys_that_are_nearly_ours_are_refused(contents: bytes, tmp_path: Path, key: str) -> None:
    path = edited(contents, tmp_path / "m.onnx", {key: "1"})
    with pytest.raises(ValueError, match=rf"m\.onnx: metadata {key} is damaged"):
        Predictor(path)


def test_only_files_with_the_entries_of_0_1_0_have_no_checksum(contents: bytes, tmp_path: Path) -> None:
    path = edited(contents, tmp_path / "m.onnx", {DIGEST: None, "spurmix.data": "{}"}, sign=False)
    with pytest.raises(ValueError, match=r"m\.onnx is damaged: it has no metadata spurmix\.digest"):
        Predictor(path)


def test_paths_that_are_too_long_are_named() -> None:
    name = "x" * 300
    readers: tuple[Callable[[], object], ...] = (
        lambda: Predictor(name),
        lambda: PackedDataset(name),
        lambda: open_run(Path(name)),
        lambda: read_weights(name),
        lambda: load_tokenizer(name),
        lambda: from_table(name),
        lambda: models.text_classifier(2, pretrained=name),
        lambda: CliRunner().invoke(app, ["verify", name], catch_exceptions=False),
    )
    for read in readers:
        with pytest.raises(ValueError, match=name) as caught:
            read()
        assert "Errno" not in str(caught.value)


def test_appended_bytes_are_named(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for more in (b"\xff", b"\x08", b"garbage at the end", bytes(7)):
        path.write_bytes(contents + more)
        with pytest.raises(ValueError, match=r"m\.onnx (cannot be loaded as an ONNX model: (the file|it)|was changed)"):
            Predictor(path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"spurmix.version": None}, "was not written by spurmix"),
        ({"spurmix.version": "3"}, "metadata spurmix.version is damaged: the content must be a string"),
        ({"spurmix.classes": None}, "no metadata spurmix.classes"),
        ({"spurmix.classes": "{"}, "metadata spurmix.classes is damaged"),
        ({"spurmix.classes": "[]"}, "metadata spurmix.classes is damaged: it has no names"),
        ({"spurmix.classes": '["a", 3, "c"]'}, r"metadata spurmix.classes is damaged: \[1\] must be a string"),
        ({"spurmix.classes": '["a", "b"]'}, "other outputs than logits of 2 classes"),
        ({"spurmix.report": "[1]"}, "metadata spurmix.report is damaged: the content must be an object"),
        ({"spurmix.report": "[" * 100_000 + "]" * 100_000}, "more than 100 nested"),
        ({"spurmix.report": '{"a":' * 2000 + "1" + "}" * 2000}, "more than 100 nested"),
        ({"spurmix.text": "{}"}, "metadata spurmix.text is damaged: the content has no"),
        ({"spurmix.text": json.dumps(dict(fingerprint="f", max_length=0, pad_id=0, vocab_size=9))}, "out of range"),
        ({"spurmix.text": json.dumps(dict(fingerprint="f", max_length=4, pad_id=9, vocab_size=9))}, "out of range"),
        ({"spurmix.text": json.dumps(dict(fingerprint=1, max_length=4, pad_id=0, vocab_size=9))}, "must be a string"),
        ({"spurmix.other": "x"}, "metadata spurmix.other is damaged"),
        ({DIGEST: '"00"'}, "was changed after export_onnx"),
    ],
)
def test_damaged_metadata_is_named(
    contents: bytes, tmp_path: Path, entries: dict[str, str | None], message: str
) -> None:
    path = edited(contents, tmp_path / "m.onnx", entries)
    with pytest.raises(ValueError, match=message) as caught:
        Predictor(path)
    assert str(path) in str(caught.value)


def test_mutated_metadata_gives_one_clear_error(contents: bytes, tmp_path: Path) -> None:
    rng, path = random.Random(5), tmp_path / "m.onnx"
    names = ["spurmix.version", "spurmix.classes", "spurmix.report", "spurmix.text", "spurmix.normalise"]
    values: list[Any] = [None, 3, -1, 2**70, 1e300, "", "x", [], {}, [[]], {"a": 1}, True, ["a", None], "\0"]
    for _ in range(60):
        entries: dict[str, str | None] = {rng.choice(names): json.dumps(rng.choice(values)) for _ in range(2)}
        edited(contents, path, entries)
        try:
            Predictor(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017  # some mutations are harmless


def test_other_models_are_refused(contents: bytes, tmp_path: Path) -> None:
    model = onnx.load_from_string(contents)
    path = tmp_path / "m.onnx"
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "channels"
    onnx.save(model, path)
    edited(path.read_bytes(), path, {})
    with pytest.raises(ValueError, match=r"other inputs than exported models|cannot be loaded"):
        Predictor(path)


def external(tensor: onnx.TensorProto, location: str) -> None:
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)


@pytest.mark.parametrize("place", ["initializer", "sparse", "attribute", "attributes", "subgraph", "function"])
def test_weights_in_other_files_are_refused(contents: bytes, tmp_path: Path, place: str) -> None:
    model = onnx.load_from_string(contents)
    tensor = onnx.TensorProto()
    if place == "initializer":
        tensor = next(one for one in model.graph.initializer if len(one.raw_data) > 1000)
    external(tensor, "../secret.bin")
    if place == "sparse":
        model.graph.sparse_initializer.add().indices.CopyFrom(tensor)
    elif place == "attribute":
        model.graph.node.add().attribute.add().t.CopyFrom(tensor)
    elif place == "attributes":
        model.graph.node.add().attribute.add().tensors.add().CopyFrom(tensor)
    elif place == "subgraph":
        model.graph.node.add().attribute.add().graphs.add().initializer.add().CopyFrom(tensor)
    elif place == "function":
        model.functions.add().node.add().attribute.add().t.CopyFrom(tensor)
    path = edited(model.SerializeToString(), tmp_path / "m.onnx", {})
    with pytest.raises(
        ValueError, match=r"m\.onnx reads weights from '\.\./secret\.bin', which are not part of the file"
    ):
        Predictor(path)
    with pytest.raises(ValueError, match="reads weights from"):
        CliRunner().invoke(app, ["verify", str(path)], catch_exceptions=False)


def test_deeply_nested_messages_are_refused(contents: bytes, tmp_path: Path) -> None:
    graph = b""
    for _ in range(400):  # field 5 of a graph in field 6 of an attribute in field 5 of a node in field 1 of a graph
        for tag in (0x32, 0x2A, 0x0A):
            size, length = b"", len(graph)
            while length > 127:
                size, length = size + bytes([length & 127 | 128]), length >> 7
            graph = bytes([tag]) + size + bytes([length]) + graph
    path = tmp_path / "m.onnx"
    size, length = b"", len(graph)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    path.write_bytes(contents + b"\x3a" + size + bytes([length]) + graph)
    with pytest.raises(ValueError, match=r"m\.onnx cannot be loaded as an ONNX model: more than 100 nested messages"):
        Predictor(path)


def test_requested_threads_and_providers_are_those_of_the_session(
    contents: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    path = tmp_path / "m.onnx"
    path.write_bytes(contents)
    assert Predictor(path, threads=2).session.get_session_options().intra_op_num_threads == 2
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    create = onnxruntime.InferenceSession

    def without_cuda(*arguments: Any, providers: list[str]) -> Any:
        return create(*arguments, providers=["CPUExecutionProvider"])  # as when a library of CUDA is missing

    monkeypatch.setattr(onnxruntime, "InferenceSession", without_cuda)
    with pytest.raises(ValueError, match="could not load CUDAExecutionProvider and uses CPUExecutionProvider"):
        Predictor(path, providers=available)

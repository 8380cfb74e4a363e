"""The flax container: read, write, and refuse what is not one."""

import golden
import msgpack
import numpy as np
import pytest
import torch

from mbt_fast.checkpoint import flax_msgpack, load_scenic, save_scenic
from mbt_fast.checkpoint.flax_msgpack import pack, unpack
from mbt_fast.errors import CheckpointError

CHECKPOINT = golden.CHECKPOINT


def recorded_params():
    return golden.group(golden.read(), "params")


def assert_same_tree(actual, expected):
    assert type(actual) is type(expected)
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_same_tree(actual[key], expected[key])
    elif isinstance(expected, np.ndarray):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected, strict=True)
    else:
        assert actual == expected


def test_official_container_holds_the_recorded_parameters():
    assert_same_tree(load_scenic(CHECKPOINT), recorded_params())


def test_saved_container_is_the_official_one(tmp_path):
    official = unpack(CHECKPOINT.read_bytes())
    step = int(official["global_step"])
    save_scenic(recorded_params(), tmp_path / "checkpoint", step=step)
    saved = unpack((tmp_path / "checkpoint").read_bytes())
    assert saved["rng"].dtype == official["rng"].dtype
    assert saved["rng"].shape == official["rng"].shape
    assert_same_tree({**saved, "rng": official["rng"]}, official)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_official_bytes_are_reproduced():
    data = CHECKPOINT.read_bytes()
    assert pack(unpack(data)) == data


@pytest.mark.parametrize(
    "tree",
    [
        {"params": {"a": {"b": np.zeros(2, np.float32)}}},
        {"params": {"params": {"a": {"b": np.zeros(2, np.float32)}}}},
        {"optimizer": {"target": {"params": {"a": {"b": np.zeros(2, np.float32)}}}}},
        {"optimizer": {"target": {"a": {"b": np.zeros(2, np.float32)}}}, "params": {}},
    ],
)
def test_parameters_are_found_where_flax_versions_put_them(tmp_path, tree):
    path = tmp_path / "checkpoint"
    path.write_bytes(pack(tree))
    assert list(load_scenic(path)) == ["a/b"]


LEAVES = {
    "scalar array": np.array(3.5, np.float64),
    "empty": np.zeros((0, 3), np.float32),
    "transposed": np.arange(6, dtype=np.int16).reshape(2, 3).T,
    "numpy scalar": np.float32(0.1),
    "numpy bool": np.bool_(True),
    "float": 0.1,
    "complex": 1.5 - 2j,
    "complex64": np.complex64(1 + 2j),
    "none": None,
    "text": "µ",
}


@pytest.mark.parametrize("name", LEAVES)
def test_leaves_survive(name):
    assert_same_tree(unpack(pack({"leaf": LEAVES[name]})), {"leaf": LEAVES[name]})


def test_foreign_byte_order_is_not_foreign_numbers():
    tree = unpack(pack({"leaf": np.arange(3, dtype=">f4")}))
    assert tree["leaf"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("leaf", [object(), np.array([object()]), np.zeros(2, "f4,f4"), {1, 2}])
def test_other_leaves_are_refused(leaf):
    with pytest.raises(TypeError, match="a leaf must be a number or a numeric array"):
        pack({"leaf": leaf})


def test_large_arrays_are_written_in_chunks_and_joined(monkeypatch):
    monkeypatch.setattr(flax_msgpack, "MAX_CHUNK_BYTES", 40)
    tree = {
        "large": np.arange(33, dtype=np.float32).reshape(3, 11),
        "fits": np.arange(10, dtype=np.float32),
    }
    data = pack(tree)
    raw = msgpack.unpackb(data)
    assert isinstance(raw["fits"], msgpack.ExtType)
    assert set(raw["large"]) == {"__msgpack_chunked_array__", "shape", "chunks"}
    assert raw["large"]["shape"] == {"0": 3, "1": 11}
    assert list(raw["large"]["chunks"]) == ["0", "1", "2", "3"]
    assert_same_tree(unpack(data), tree)


NARROW = ["bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"]


def every_pattern(name):
    """Every bit pattern of a dtype, NaN included, as the bytes of an array ``[2, n]``."""
    wide = name == "bfloat16"
    return np.arange(2 ** (16 if wide else 8), dtype=np.uint16 if wide else np.uint8).reshape(2, -1)


def bits(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", NARROW)
def test_floats_that_numpy_lacks_survive_bit_for_bit(tmp_path, name):
    patterns = every_pattern(name)
    leaf = msgpack.ExtType(1, msgpack.packb((patterns.shape, name, patterns.tobytes())))
    data = msgpack.packb({"params": {"a": leaf}})
    (tmp_path / "checkpoint").write_bytes(data)
    tensor = load_scenic(tmp_path / "checkpoint")["a"]
    assert tensor.dtype == getattr(torch, name)
    assert tuple(tensor.shape) == patterns.shape
    assert bits(tensor) == patterns.tobytes()
    assert pack({"params": {"a": tensor}}) == data


def test_narrow_floats_are_those_of_an_independent_implementation():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="flax's own dtypes are the reference here")
    for name in NARROW:
        patterns = every_pattern(name)
        with np.errstate(invalid="ignore"):  # NaN is among the patterns
            expected = patterns.view(getattr(ml_dtypes, name)).astype(np.float64)
        leaf = msgpack.ExtType(1, msgpack.packb((patterns.shape, name, patterns.tobytes())))
        actual = unpack(msgpack.packb(leaf)).double().numpy()
        np.testing.assert_array_equal(actual, expected)


def test_narrow_floats_are_split_and_joined(monkeypatch):
    monkeypatch.setattr(flax_msgpack, "MAX_CHUNK_BYTES", 40)
    tensor = torch.arange(33).bfloat16().reshape(3, 11)
    data = pack({"large": tensor, "scalar": tensor[0, 1], "empty": tensor[:0]})
    assert set(msgpack.unpackb(data)["large"]["chunks"]) == {"0", "1"}
    joined = unpack(data)
    assert torch.equal(joined["large"], tensor)
    assert joined["scalar"].shape == ()
    assert joined["empty"].shape == (0, 11)


UNNEEDED = {
    "narrow": (1, (1,), "bfloat16", b"12"),
    "of a dtype that nobody has": (1, (1,), "int4", b"1"),
    "of an extension that nobody has": (9, 1),
}


@pytest.mark.parametrize("name", UNNEEDED)
def test_optimizer_state_that_is_not_needed_does_not_matter(tmp_path, name):
    code, *parts = UNNEEDED[name]
    state = msgpack.ExtType(code, msgpack.packb(parts))
    chunked = {"__msgpack_chunked_array__": True, "shape": {"0": 1}, "chunks": {"0": state}}
    tree = {
        "params": {"a": {"b": msgpack.unpackb(pack(np.zeros(2, np.float32)))}},
        "opt_state": {"0": {"mu": state, "nu": chunked, 7: None}},
    }
    (tmp_path / "checkpoint").write_bytes(msgpack.packb(tree))
    assert_same_tree(load_scenic(tmp_path / "checkpoint"), {"a/b": np.zeros(2, np.float32)})


@pytest.mark.parametrize(
    "mark", ["_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "default/_METADATA"]
)
def test_an_orbax_directory_is_named_as_such(tmp_path, mark):
    (tmp_path / mark).parent.mkdir(exist_ok=True)
    (tmp_path / mark).touch()
    with pytest.raises(CheckpointError, match=r"an orbax directory.*flax\.serialization\.to_bytes"):
        load_scenic(tmp_path)


def extension(code, *parts):
    return msgpack.packb({"params": {"a": msgpack.ExtType(code, msgpack.packb(parts))}})


BROKEN = {
    "empty": b"",
    "truncated": CHECKPOINT.read_bytes()[:-7],
    "half": CHECKPOINT.read_bytes()[: CHECKPOINT.stat().st_size // 2],
    "trailing bytes": CHECKPOINT.read_bytes() + b"\x00",
    "text": b"not a checkpoint",
    "pickle": b"\x80\x04\x95\x10\x00",
    "nested too deep": b"\x91" * 100_000,
    "mapping in mapping": b"\x81\xa1a" * 100_000,
    "not a mapping": msgpack.packb([1, 2]),
    "no parameters": msgpack.packb({"step": 1, "model": {}}),
    "key of two lines": msgpack.packb({"step\nparams": 1}),
    "empty parameters": msgpack.packb({"params": {}}),
    "parameter is text": msgpack.packb({"params": {"a": "text"}}),
    "unknown extension": extension(9, 1),
    "unknown dtype": extension(1, (1,), "object", b"12345678"),
    "bfloat16 of half an element": extension(1, (1,), "bfloat16", b"123"),
    "dtype of a parameter that nobody has": extension(1, (1,), "float3", b"12"),
    "wrong length": extension(1, (3,), "float32", b"12345678"),
    "inferred extent": extension(1, (-1,), "float32", b"12345678"),
    "enormous extent": extension(1, (2**63, 2**63), "float32", b"12345678"),
    "bytes of half an element": extension(1, (1,), "float32", b"123456"),
    "shape is text": extension(1, "ab", "float32", b"12345678"),
    "dtype is a number": extension(1, (1,), 4, b"1234"),
    "too few parts": extension(1, (1,)),
    "chunks missing": msgpack.packb({"params": {"a": {"__msgpack_chunked_array__": True}}}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_a_checkpoint_is_refused_in_one_line(tmp_path, name):
    path = tmp_path / "checkpoint"
    path.write_bytes(BROKEN[name])
    with pytest.raises(CheckpointError) as caught:
        load_scenic(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    if name == "no parameters":
        assert "got top-level keys: model, step" in message


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "checkpoint"
    path.write_bytes(b"old")
    with pytest.raises(TypeError, match="a leaf must be"):
        save_scenic({"a": np.array([object()])}, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]

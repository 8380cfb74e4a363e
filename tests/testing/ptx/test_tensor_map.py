"""Tensor maps: packed and unpacked, and what the driver would refuse."""

import pytest

pytest.importorskip("numpy", reason="the executor needs numpy")

from mbt_fast.testing.ptx import tensor_map

MAP = {
    "data_type": 9,
    "base": 1 << 46,
    "sizes": (128, 2**32, 3, 2, 7),
    "strides": (768, 256, 1 << 39, 16),
    "box": (64, 256, 1, 1, 1),
    "steps": (1,) * 5,
    "interleave": 0,
    "swizzle": 3,
    "promotion": 2,
    "fill": 0,
}


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_a_map_comes_back_from_its_128_bytes(rank):
    ranks = {"sizes": rank, "strides": rank - 1, "box": rank, "steps": rank}
    given = MAP | {name: MAP[name][:count] for name, count in ranks.items()}
    packed = tensor_map.encode(**given)
    assert len(packed) == 128
    assert tensor_map.decode(packed) == tensor_map.TensorMap(**given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_type": 99}, "have a known data type, got 99"),
        ({"base": 8}, "begin at a multiple of 16 bytes, got 8"),
        ({"sizes": (0, 1, 1, 1, 1)}, "have sizes of 1 to 2"),
        ({"strides": (768, 256, 8, 16)}, "multiples of 16 bytes"),
        ({"strides": (1 << 40, 256, 16, 16)}, "have strides below"),
        ({"strides": (768,)}, "have strides, box and steps for its dimensions"),
        ({"box": (64, 257, 1, 1, 1)}, "have a box of 1 to 256"),
        ({"box": (4, 1, 1, 1, 1)}, "have a box whose rows are multiples of 16 bytes, got 8"),
        ({"box": (32, 1, 1, 1, 1)}, "have rows of 128 bytes to swizzle, got 64"),
        ({"swizzle": 7}, "have a known swizzle, got 7"),
        ({"steps": (1, 2, 1, 1, 1)}, "have steps of 1"),
        ({"interleave": 1}, "not be interleaved"),
        ({"fill": 1}, "fill with zeros"),
    ],
)
def test_what_the_driver_or_the_executor_does_not_take_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        tensor_map.encode(**(MAP | change))


def test_other_bytes_are_no_map():
    with pytest.raises(ValueError, match="must come from the encoder"):
        tensor_map.decode(bytes(128))


def test_a_map_put_together_field_by_field_is_the_encoded_one():
    packed = bytes(128)
    fields = [("global_address", 0, MAP["base"]), ("rank", 0, 4), ("elemtype", 0, 10)]
    fields += [("interleave_layout", 0, 0), ("swizzle_mode", 0, 3), ("fill_mode", 0, 0)]
    names = {"sizes": "global_dim", "strides": "global_stride", "box": "box_dim"}
    for name, field in (names | {"steps": "element_stride"}).items():
        fields += [(field, i, value) for i, value in enumerate(MAP[name])]
    for field in fields:
        packed = tensor_map.replaced(packed, *field)
    assert packed == tensor_map.encode(**(MAP | {"promotion": 0}))


def test_an_unfinished_map_is_refused():
    packed = tensor_map.replaced(bytes(128), "rank", 0, 1)
    with pytest.raises(ValueError, match="a tensor map must"):
        tensor_map.decode(packed)


def test_a_field_must_fit():
    with pytest.raises(ValueError, match="box_dim of a tensor map cannot be 299"):
        tensor_map.replaced(bytes(128), "box_dim", 0, 300)
    with pytest.raises(ValueError, match="elements of type 13 are not implemented"):
        tensor_map.replaced(bytes(128), "elemtype", 0, 13)

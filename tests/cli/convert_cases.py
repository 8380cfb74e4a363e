"""What the tests of ``mbt-fast convert`` share: a small model, and the command."""

import argparse

from mbt_fast import MBTConfig
from mbt_fast.cli import convert

SMALL = MBTConfig(  # the sizes that are assumed, with few channels
    input_size={"rgb": (2, 224, 224), "spectrogram": (32, 128)},
    patch_size={"rgb": (2, 16, 16), "spectrogram": (16, 16)},
    hidden_size=8,
    num_layers=3,
    num_heads=2,
    mlp_dim=12,
    num_classes=3,
    fusion_layer=2,
    n_bottlenecks=5,
)


def run(*argv):
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    return convert.run(parser.parse_args([str(arg) for arg in argv]))

"""The commands of docs/distributed.md run, on fewer ranks than they name."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mbt_fast.checkpoint.files import read_safetensors
from mbt_fast.checkpoint.runs import find_checkpoint
from mbt_fast.cli.main import main
from mbt_fast.train.log import read

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "distributed.md").read_text()
SECONDS = 240  # a quiet machine takes ten

pytestmark = pytest.mark.slow


def documented(pattern):
    """The one command between backticks, or in a block, that matches."""
    commands = re.findall(r"`([^`\n]+)`", PAGE) + re.findall(r"^mbt-fast .+$", PAGE, re.M)
    (command,) = [found for found in commands if re.fullmatch(pattern, found)]
    return command


def start(command, folder):
    """Run a documented command in a folder with a recipe, as a user would."""
    words = shlex.split(command)
    assert words[0] == "torchrun"
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *words[1:]],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def folder_with_recipe(clips, folder):
    text = (clips / "recipe.toml").read_text()
    for name in ("train.csv", "val.csv", "labels.txt"):
        text = text.replace(f'"{name}"', f'"{clips / name}"')
    folder.mkdir()
    (folder / "recipe.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def one_host(clips, tmp_path_factory):
    """The folder after a run on one host with two ranks."""
    folder = folder_with_recipe(clips, tmp_path_factory.mktemp("page") / "one")
    command = documented(r"torchrun --nproc-per-node 8 .*").replace("node 8", "node 2")
    process = start(command, folder)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    return folder


def test_one_host_trains_and_scores(one_host):
    records = read(one_host / "run" / "log.jsonl")
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 13))
    assert [r["views"] for r in records if r["kind"] == "eval"][-1] == 2


def test_two_hosts_meet_and_give_the_same_weights(clips, one_host, tmp_path):
    """Two agents of torchrun on this host, a rank each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    folder = folder_with_recipe(clips, tmp_path / "two")
    command = documented(r"torchrun --nnodes 4 .*").replace("HOST:29500", f"localhost:{port}")
    command = command.replace("--nnodes 4 --nproc-per-node 8", "--nnodes 2 --nproc-per-node 1")
    hosts = [start(command, folder) for _ in range(2)]
    for host in hosts:
        _, errors = host.communicate(timeout=SECONDS)
        assert host.returncode == 0, errors
    mine, theirs = (
        read_safetensors(find_checkpoint(run / "run") / "model.safetensors")
        for run in (folder, one_host)
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_cluster_is_planned(capsys):
    words = shlex.split(documented(r"mbt-fast train .* --world 16x8 .*"))
    assert main(words[1:]) == 0
    text = capsys.readouterr().out
    assert "16x8 = 128 ranks" in text
    assert "batch:    2,048 clips a step, 16 a rank" in text


def test_files_that_the_page_names_exist():
    names = re.findall(r"`((?:examples|mbt_fast)/[^`]+)`", PAGE)
    assert len(names) >= 4
    assert not [name for name in names if not (ROOT / name).exists()]

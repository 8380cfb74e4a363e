"""The examples run, and do what they say."""

from examples import choose_fusion_layer, fuse_pretrained


def test_fuse_pretrained_trains():
    before, after = fuse_pretrained.main()
    assert after < before


def test_choose_fusion_layer_keeps_the_budget(capsys):
    enough = choose_fusion_layer.main(["--model", "mbt_tiny", "--budget", "1"])
    assert enough == {"bottleneck": 0, "vanilla": 0}
    assert "fuse from layer 0 on" in capsys.readouterr().out
    too_little = choose_fusion_layer.main(["--model", "mbt_tiny", "--budget", "0"])
    assert too_little == {"bottleneck": None, "vanilla": None}
    assert "none fits" in capsys.readouterr().out

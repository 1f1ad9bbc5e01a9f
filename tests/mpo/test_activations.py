import pytest

from mpo.activations import activations

SD15 = {
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
}
SD35 = {"num_attention_heads": 24, "attention_head_dim": 64, "num_layers": 24, "patch_size": 2}
WAN = {"num_attention_heads": 12, "attention_head_dim": 128, "num_layers": 30, "patch_size": [1, 2, 2]}
# GB in half precision that autograd kept of a row, by its hooks, with all weights trained
MEASURED = {
    "sd15": (SD15, (1, 64, 64), 0.983),
    "sd35": (SD35, (1, 64, 64), 3.53),
    "wan": (WAN, (21, 60, 104), 145),
}


@pytest.mark.parametrize("name", MEASURED)
def test_activations_are_near_those_measured(name):
    denoiser, latent, gigabytes = MEASURED[name]
    plain, checkpointed = activations(denoiser, latent)
    assert 2e-9 * plain == pytest.approx(gigabytes, rel=0.33)
    assert 0.01 * plain < checkpointed < 0.3 * plain


def test_activations_grow_with_the_latent():
    one, four = (activations(SD15, (1, side, side))[0] for side in (64, 128))
    assert four == pytest.approx(4 * one)
    assert activations({"width": 3}, (1, 64, 64)) is None

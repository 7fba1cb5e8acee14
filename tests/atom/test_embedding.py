import pytest
import torch
from distill_samples import real_images
from torch import Tensor

from atom.embedding import embed
from atom.errors import ConfigError

NETWORK = "convnet-w4-d2"


def embedded(images_NCHW: Tensor, *, seed: int = 0, network: str = NETWORK, batch: int = 500) -> Tensor:
    return embed(images_NCHW, network, num_classes=4, seed=seed, batch=batch, precision="float32")


def test_embedding_has_one_float32_row_an_image() -> None:
    features = embedded(real_images()[0])
    assert features.shape == (9, 4)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert (
        embed(real_images()[0], NETWORK, num_classes=4, seed=0, precision="bfloat16").dtype == torch.float32
    )


def test_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    images = real_images()[0]
    assert torch.equal(embedded(images), embedded(images))
    assert not torch.allclose(embedded(images), embedded(images, seed=1))


@pytest.mark.parametrize("network", [NETWORK, "convnet-w4-d2-batch"])
def test_an_image_embeds_alike_alone_and_among_others(network: str) -> None:
    images = real_images()[0]
    torch.testing.assert_close(embedded(images, network=network, batch=4), embedded(images, network=network))
    torch.testing.assert_close(embedded(images[3:4], network=network), embedded(images, network=network)[3:4])


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    embedded(real_images()[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown; known are convnet"):
        embedded(real_images()[0], network="lenet")

"""The judge of tiny-sdxl names what is drawn, before it may judge what is sampled."""

import sys
from pathlib import Path
from random import Random

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    """Make the scripts importable here, and forget them afterwards: their names are plain words."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "builtin"))
    yield
    for name in set(sys.modules) - before:
        if str(ROOT / "scripts") in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.filterwarnings("ignore")
def test_it_knows_every_scene_drawn():
    import evaluate
    import world

    random = Random(5)
    scenes = [world.random_scene(random, held_out=i % 2 == 0) for i in range(200)]
    seen = [evaluate.see(world.render(scene, world.full_view(64), random)) for scene in scenes]
    assert evaluate.shares(scenes, seen)["all"] >= 0.99


@pytest.mark.filterwarnings("ignore")
def test_it_knows_scenes_that_went_through_the_autoencoder():
    import evaluate
    import vae
    import world
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(
        ROOT / "acmsao_cli" / "builtin" / "tiny-sdxl", subfolder="vae", torch_dtype=torch.float32
    )
    random = Random(6)
    scenes = [world.random_scene(random, held_out=True) for _ in range(100)]
    pictures = vae.to_tensor([world.render(scene, world.full_view(64), random) for scene in scenes])
    with torch.no_grad():
        rebuilt = model.decode(model.encode(pictures).latent_dist.mode()).sample
    seen = [evaluate.see(picture) for picture in vae.to_pixels(rebuilt)]
    assert evaluate.shares(scenes, seen)["all"] >= 0.99


def test_held_out_scenes_and_zoblins_are_never_trained_on():
    import world

    random = Random(7)
    assert not any(world.random_scene(random).held_out for _ in range(500))
    captions = [way for _ in range(500) for way in world.caption_ways(world.random_scene(random))]
    assert not any("zoblin" in caption for caption in captions)

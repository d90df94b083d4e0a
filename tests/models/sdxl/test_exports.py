"""Whatever is trained comes back from every format, through the libraries the files are for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from micro.sdxl import RecipeFor, Widths, examples
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from acmsao_cli.errors import OutputError
from acmsao_cli.models.base import Exported, TrainingFacts
from acmsao_cli.models.lora import ADAPTER, adapted_layers
from acmsao_cli.models.quiet import quiet_libraries
from acmsao_cli.models.safetensors_header import read_header
from acmsao_cli.models.sdxl import verify
from acmsao_cli.models.sdxl.convert import export_model
from acmsao_cli.models.sdxl.family import FAMILY
from acmsao_cli.models.sdxl.kohya import kohya_weights
from acmsao_cli.models.sdxl.layout import places
from acmsao_cli.models.sdxl.trainee import SdxlTrainee

CPU = torch.device("cpu")
FACTS = TrainingFacts("demo", 10, 3, 1e-3, "adamw", seed=0)
# Every kind of layer of the UNet that can be adapted, in and between the blocks.
EVERYWHERE = [
    "to_q", "proj_in", "ff.net.2", "conv1", "conv2", "conv_shortcut", "time_emb_proj",
    "conv_in", "conv_out", "linear_1", "linear_2", "downsamplers.0.conv", "upsamplers.0.conv",
]  # fmt: skip
LORAS: dict[str, dict[str, Any]] = {
    "plain": {"targets": "attention"},
    "alpha": {"alpha": 1.0},
    "rslora": {"rslora": True, "alpha": 2.0},
    "everywhere": {"targets": EVERYWHERE},
    "text encoders": {"text_encoders": True},
    "some text layers": {"targets": ["to_q", "fc1"], "text_encoders": True},
    "dora": {"dora": True},
    "dora everywhere": {"dora": True, "rslora": True, "targets": EVERYWHERE},
    "dora with text encoders": {"dora": True, "text_encoders": True, "targets": "attention"},
}


def trained(recipe: Any, dtype: torch.dtype = torch.float32) -> SdxlTrainee:
    """A trainee whose weights have moved."""
    trainee = FAMILY.open(recipe, CPU, dtype)
    generator = torch.Generator().manual_seed(1)
    for group in trainee.parameter_groups():
        for _, parameter in group.parameters:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return trainee


def exported(trainee: SdxlTrainee, directory: Path) -> dict[str, Exported]:
    return {one.format: one for one in trainee.export(directory, FACTS)}


def plain_pipeline(folder: Path) -> StableDiffusionXLPipeline:
    with quiet_libraries():
        pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(pipeline: StableDiffusionXLPipeline) -> Tensor:
    """Two steps of sampling with whatever the pipeline has loaded."""
    with torch.no_grad(), quiet_libraries():
        for module in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2):
            module.eval()
        drawn: Tensor = pipeline(
            "red round",
            width=64,
            height=64,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images
    return drawn


@pytest.mark.parametrize("name", LORAS)
def test_every_lora_comes_back_from_both_formats(
    micro: Path, recipe_for: RecipeFor, tmp_path: Path, name: str
) -> None:
    trainee = trained(recipe_for(micro, method=LORAS[name]))
    files = exported(trainee, tmp_path)
    assert set(files) == {"kohya", "peft"}
    assert all(one.max_error == 0 for one in files.values())
    expected = latents(trainee.parts.pipeline())
    assert float((expected - latents(plain_pipeline(micro))).abs().max()) > 1e-3
    for one in files.values():
        if "not diffusers" not in one.used_by:
            pipeline = plain_pipeline(micro)
            with quiet_libraries():
                pipeline.load_lora_weights(one.path)
            torch.testing.assert_close(latents(pipeline), expected, rtol=1e-4, atol=1e-4)


def test_what_diffusers_cannot_read_is_said(
    micro: Path, recipe_for: RecipeFor, tmp_path: Path
) -> None:
    def users(name: str) -> tuple[bool, bool]:
        trainee = trained(recipe_for(micro, method=LORAS[name]))
        files = exported(trainee, tmp_path / name)
        return tuple("not diffusers" not in files[kind].used_by for kind in ("kohya", "peft"))  # type: ignore[return-value]

    assert users("dora") == (False, True)
    assert users("dora with text encoders") == (False, False)
    assert users("some text layers") == (False, False)


@pytest.mark.parametrize("rslora", [False, True])
def test_kohya_files_have_original_names_and_the_alpha_that_gives_the_scale(
    micro: Path, recipe_for: RecipeFor, tmp_path: Path, rslora: bool
) -> None:
    method = {"alpha": 2.0, "rslora": rslora, "text_encoders": True}
    weights = load_file(exported(trained(recipe_for(micro, method=method)), tmp_path)["kohya"].path)
    stems = {name.split(".")[0] for name in weights}
    assert "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q" in stems
    assert "lora_unet_middle_block_1_proj_in" in stems
    assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj" in stems
    assert "lora_te2_text_model_encoder_layers_1_mlp_fc2" in stems
    assert not any("down_blocks" in stem or "up_blocks" in stem for stem in stems)
    alphas = {float(weight) for name, weight in weights.items() if name.endswith(".alpha")}
    assert alphas == {2.0 * math.sqrt(4) if rslora else 2.0}
    assert all(weight.is_floating_point() for weight in weights.values())


def test_kohya_weights_are_the_change_that_peft_makes(micro: Path, recipe_for: RecipeFor) -> None:
    trainee = trained(recipe_for(micro, method={"rslora": True, "alpha": 3.0}))
    weights = kohya_weights(trainee.parts)
    stem = "lora_unet_middle_block_1_proj_in"
    down, up = weights[f"{stem}.lora_down.weight"], weights[f"{stem}.lora_up.weight"]
    change = up @ down * weights[f"{stem}.alpha"] / down.shape[0]
    layer = dict(adapted_layers(trainee.parts.unet))["mid_block.attentions.0.proj_in"]
    torch.testing.assert_close(change, layer.get_delta_weight(ADAPTER))


def test_dora_scale_is_the_norm_of_each_output_with_the_shape_of_kohyas(
    micro: Path, recipe_for: RecipeFor, tmp_path: Path
) -> None:
    method = {"dora": True, "targets": ["to_q", "conv1"]}
    trainee = FAMILY.open(recipe_for(micro, method=method), CPU, torch.float32)
    weights = load_file(exported(trainee, tmp_path)["kohya"].path)
    scale = weights["lora_unet_middle_block_0_in_layers_2.dora_scale"]
    base = trainee.parts.unet.mid_block.resnets[0].conv1.base_layer.weight
    assert scale.shape == (base.shape[0], 1, 1, 1)
    torch.testing.assert_close(scale.flatten(), base.flatten(1).norm(dim=1))


@pytest.mark.parametrize(
    ("widths", "text_encoders"),
    [
        (Widths(), False),
        (Widths(layers=2, transformers=(1, 2, 1), prediction="v_prediction"), True),
        (
            Widths(unet=(16, 24, 40), heads=(2, 3, 5), text=(32, 32), vae=(4, 8, 12), projection=8),
            True,
        ),
    ],
    ids=["micro", "deeper, v", "other widths"],
)
def test_a_whole_model_comes_back_from_both_formats(
    folder_of: Callable[[Widths], Path],
    recipe_for: RecipeFor,
    tmp_path: Path,
    widths: Widths,
    text_encoders: bool,
) -> None:
    method = {"kind": "full", "text_encoders": text_encoders}
    data = {"bucket_step": 16}
    trainee = trained(recipe_for(folder_of(widths), method=method, data=data))
    files = exported(trainee, tmp_path)
    assert set(files) == {"diffusers", "single-file"}
    single = recipe_for(files["single-file"].path, method=method, data=data)
    again = FAMILY.open(single, CPU, torch.float32)
    was = trainee.parts.pipeline()
    expected = latents(was)
    for pipeline in (plain_pipeline(files["diffusers"].path), again.parts.pipeline()):
        for component in ("unet", "vae", "text_encoder", "text_encoder_2"):
            weights = getattr(was, component).state_dict()
            for name, value in getattr(pipeline, component).state_dict().items():
                assert torch.equal(value, weights[name]), (component, name)
        # The same weights at other addresses are multiplied in another order on some processors.
        torch.testing.assert_close(latents(pipeline), expected, rtol=1e-5, atol=1e-4)
    assert again.diffusion.prediction == widths.prediction


def test_clip_weights_are_written_under_text_model(
    micro: Path, recipe_for: RecipeFor, tmp_path: Path
) -> None:
    files = exported(trained(recipe_for(micro, method={"kind": "full"})), tmp_path)
    folder = files["diffusers"].path
    names = read_header(folder / "text_encoder" / "model.safetensors").tensors
    assert all(name.startswith("text_model.") for name in names)
    single = read_header(files["single-file"].path).tensors
    assert "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight" in single
    assert (folder / "tokenizer" / "vocab.json").is_file()
    assert (folder / "tokenizer" / "merges.txt").is_file()


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_asked_dtype_is_written(
    micro: Path, recipe_for: RecipeFor, tmp_path: Path, kind: str, name: str
) -> None:
    recipe = recipe_for(micro, method={"kind": kind}, output={"dtype": name})
    for one in exported(trained(recipe), tmp_path).values():
        for file in [one.path] if one.path.is_file() else one.path.rglob("*.safetensors"):
            tensors = read_header(file).tensors.items()
            assert {tensor.dtype for key, tensor in tensors if not key.endswith(".alpha")} == {
                {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}[name]
            }


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize(
    "method",
    [{"alpha": 0.3}, {"rslora": True, "rank": 12}, {"rslora": True, "rank": 12, "alpha": 3e4}],
    ids=str,
)
def test_a_scale_that_16_bits_cannot_hold_comes_back(
    micro: Path, recipe_for: RecipeFor, tmp_path: Path, method: dict[str, Any], dtype: str
) -> None:
    trainee = trained(recipe_for(micro, method=method, output={"dtype": dtype}))
    files = exported(trainee, tmp_path)
    assert files["kohya"].used_by.endswith("diffusers")
    with quiet_libraries():
        pipeline = plain_pipeline(micro)
        pipeline.load_lora_weights(files["kohya"].path, adapter_name=ADAPTER)
    ours = dict(adapted_layers(trainee.parts.unet))
    for name, layer in adapted_layers(pipeline.unet):
        assert layer.scaling[ADAPTER] == pytest.approx(ours[name].scaling[ADAPTER], rel=1e-6)


def test_bf16_weights_stay_bf16_and_the_vae_fp32(
    micro: Path, recipe_for: RecipeFor, tmp_path: Path
) -> None:
    recipe = recipe_for(micro, method={"kind": "full"}, output={"formats": ["single-file"]})
    files = exported(trained(recipe, torch.bfloat16), tmp_path)
    tensors = read_header(files["single-file"].path).tensors
    assert tensors["model.diffusion_model.out.2.weight"].dtype == "BF16"
    assert tensors["first_stage_model.decoder.conv_in.weight"].dtype == "F32"


def test_headers_say_what_tools_look_for(
    micro: Path, recipe_for: RecipeFor, tmp_path: Path
) -> None:
    trainee = trained(recipe_for(micro))
    captions = "a cat, red", "red, round"
    trainee.encode([replace(examples()[0], caption=caption) for caption in captions])
    files = exported(trainee, tmp_path)
    with safe_open(files["kohya"].path, framework="pt") as file:
        fields = file.metadata()
    assert fields["ss_base_model_version"] == "sdxl_base_v1-0"
    assert fields["ss_network_module"] == "networks.lora"
    assert (fields["ss_network_dim"], fields["ss_network_alpha"]) == ("4", "4.0")
    assert fields["ss_v2"] == "False"
    assert (fields["ss_resolution"], fields["modelspec.resolution"]) == ("(64, 64)", "64x64")
    assert fields["ss_output_name"] == fields["modelspec.title"] == "demo"
    assert json.loads(fields["ss_tag_frequency"]) == {"demo": {"red": 2, "a cat": 1, "round": 1}}
    assert fields["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert fields["modelspec.prediction_type"] == "epsilon"
    assert fields["modelspec.hash_sha256"] == f"0x{fields['sshs_model_hash']}"
    assert str(micro) not in json.dumps(fields)
    adapters = json.loads(read_header(files["peft"].path).metadata["lora_adapter_metadata"])
    assert adapters["unet.r"] == 4


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_without_metadata_only_what_loading_needs_is_written(
    micro: Path, recipe_for: RecipeFor, tmp_path: Path, kind: str
) -> None:
    recipe = recipe_for(micro, method={"kind": kind}, output={"metadata": False})
    needed = {"format", "lora_adapter_metadata", "acmsao.settings"}
    for one in exported(trained(recipe), tmp_path).values():
        if one.path.is_file():
            assert set(read_header(one.path).metadata) <= needed


def test_a_v_prediction_file_is_marked(
    folder_of: Callable[[Widths], Path], recipe_for: RecipeFor, tmp_path: Path
) -> None:
    folder = folder_of(Widths(prediction="v_prediction"))
    recipe = recipe_for(folder, method={"kind": "full"}, output={"formats": ["single-file"]})
    header = read_header(exported(trained(recipe), tmp_path)["single-file"].path)
    assert header.tensors["v_pred"].shape == (0,)
    assert header.metadata["modelspec.prediction_type"] == "v"


def test_a_file_that_does_not_come_back_is_an_error(
    micro: Path, recipe_for: RecipeFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "difference", lambda *_: 1e-3)
    with pytest.raises(OutputError, match="does not load back"):
        exported(trained(recipe_for(micro)), tmp_path)


def test_weights_that_are_not_finite_do_not_pass(
    micro: Path, recipe_for: RecipeFor, tmp_path: Path
) -> None:
    trainee = trained(recipe_for(micro))
    trainee.parameter_groups()[0].parameters[0][1].data[0] = float("nan")
    with pytest.raises(OutputError):
        exported(trainee, tmp_path)


def test_every_weight_of_a_model_has_its_own_place(folder_of: Callable[[Widths], Path]) -> None:
    pipeline = plain_pipeline(folder_of(Widths(layers=2, transformers=(1, 2, 3))))
    for component in ("unet", "vae", "text_encoder", "text_encoder_2"):
        module = getattr(pipeline, component)
        shapes = {name: tuple(one.shape) for name, one in module.named_parameters()}
        found = places(component, module.config if component in ("unet", "vae") else {}, shapes)
        assert len({(place.key, place.third) for place in found.values()}) == len(shapes)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_model_survives_both_layouts_in_turn(
    folder_of: Callable[[Widths], Path], tmp_path: Path, prediction: str
) -> None:
    folder = folder_of(Widths(prediction=prediction))
    (file,) = export_model(str(folder), tmp_path, "single-file")
    (back,) = export_model(str(file), tmp_path / "back")
    first, again = plain_pipeline(folder), plain_pipeline(back)
    assert again.scheduler.config.prediction_type == prediction
    assert torch.equal(latents(first), latents(again))
    assert first.tokenizer_2("red")["input_ids"] == again.tokenizer_2("red")["input_ids"]
    assert again.tokenizer_2.pad_token == "!"

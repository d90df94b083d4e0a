"""What exported files say of themselves: modelspec (Stability's) and `ss_*` (kohya's) fields."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from acmsao_cli.config.sdxl import SdxlLora, SdxlRecipe
from acmsao_cli.models.base import TrainingFacts
from acmsao_cli.models.safetensors_writer import HASH
from acmsao_cli.models.sdxl.components import Prediction

ORIGINAL_LAYOUT = "https://github.com/Stability-AI/generative-models"
BASE_MODEL = "sdxl_base_v1-0"
ARCHITECTURE = "stable-diffusion-xl-v1-base"
SPEC_PREDICTIONS: Mapping[Prediction, str] = {"epsilon": "epsilon", "v_prediction": "v"}


def model_spec(
    recipe: SdxlRecipe, facts: TrainingFacts, prediction: Prediction, implementation: str
) -> dict[str, str]:
    """The model specification 1.0.1 of a trained SDXL or of a LoRA for it."""
    lora = isinstance(recipe.method, SdxlLora)
    resolution = recipe.data.resolution
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": ARCHITECTURE + ("/lora" if lora else ""),
        "modelspec.implementation": implementation,
        "modelspec.title": facts.name,
        "modelspec.date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.prediction_type": SPEC_PREDICTIONS[prediction],
        "modelspec.hash_sha256": f"0x{HASH}",
    }


def training_fields(
    recipe: SdxlRecipe, facts: TrainingFacts, captions: Sequence[str]
) -> dict[str, str]:
    """How the file came to be, in kohya's words; paths are left out but for the last part."""
    resolution = recipe.data.resolution
    fields = {
        "ss_base_model_version": BASE_MODEL,
        "ss_v2": "False",
        "ss_sd_model_name": PurePath(recipe.model.source).name,
        "ss_output_name": facts.name,
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_enable_bucket": str(recipe.data.buckets),
        "ss_num_train_images": str(facts.num_examples),
        "ss_steps": str(facts.steps),
        "ss_learning_rate": str(facts.learning_rate),
        "ss_optimizer": facts.optimizer,
        "ss_seed": str(facts.seed),
        "ss_batch_size_per_device": str(recipe.training.batch_size),
        "ss_gradient_accumulation_steps": str(recipe.training.accumulation),
        "ss_caption_dropout_rate": str(recipe.data.caption_dropout),
        "ss_tag_frequency": json.dumps({facts.name: tag_counts(captions)}),
    }
    if facts.loss is not None:
        fields["ss_final_loss"] = f"{facts.loss:.6g}"
    if recipe.loss.min_snr_gamma is not None:
        fields["ss_min_snr_gamma"] = str(recipe.loss.min_snr_gamma)
    return fields


def network_fields(method: SdxlLora, alpha: float) -> dict[str, str]:
    """The adapters, in kohya's words; `alpha` is the effective one."""
    fields = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(method.rank),
        "ss_network_alpha": str(alpha),
        "ss_network_dropout": str(method.dropout),
        "sshs_model_hash": HASH,
    }
    if method.dora:
        fields["ss_network_args"] = json.dumps({"dora_wd": "True"})
    return fields


def tag_counts(captions: Sequence[str]) -> dict[str, int]:
    """How often each comma-separated part of the captions occurs, most frequent first."""
    tags = Counter(tag.strip() for caption in captions for tag in caption.split(","))
    del tags[""]
    return dict(tags.most_common())

"""Which key was meant: a misspelled one, one of another section, or another trainer's name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What other programs call a key, by the last part of the path; only keys that exist are suggested.
ALIASES: dict[str, tuple[str, ...]] = {
    "accumulation_steps": ("training.accumulation",),
    "adam_epsilon": ("optimizer.eps",),
    "base_model": ("model.source",),
    "batch": ("training.batch_size",),
    "caption_dropout_rate": ("data.caption_dropout",),
    "cautious_mask": ("optimizer.direction_edits",),
    "cautious_wd": ("optimizer.decay",),
    "checkpointing": ("training.gradient_checkpointing",),
    "checkpointing_steps": ("checkpoint.every",),
    "checkpoints_total_limit": ("checkpoint.keep",),
    "cutoff_len": ("data.max_length",),
    "dataset": ("data.source",),
    "enable_bucket": ("data.buckets",),
    "factored": ("optimizer.storage",),
    "flip_aug": ("data.flip",),
    "gradient_accumulation": ("training.accumulation",),
    "gradient_accumulation_steps": ("training.accumulation",),
    "gradient_clipping": ("training.clip_norm",),
    "grams_moment": ("optimizer.direction_edits",),
    "instance_data_dir": ("data.source",),
    "learning_rate": ("optimizer.lr",),
    "lora_alpha": ("method.alpha",),
    "lora_dropout": ("method.dropout",),
    "lora_rank": ("method.rank",),
    "lr_scheduler": ("schedule.kind",),
    "lr_scheduler_type": ("schedule.kind",),
    "lr_warmup_steps": ("schedule.warmup_steps",),
    "max_grad_norm": ("training.clip_norm",),
    "max_length": ("data.max_length",),
    "max_seq_length": ("data.max_length",),
    "max_steps": ("training.steps",),
    "max_train_epochs": ("training.epochs",),
    "max_train_steps": ("training.steps",),
    "micro_batch_size": ("training.batch_size",),
    "mixed_precision": ("model.dtype",),
    "model_name": ("model.source",),
    "model_name_or_path": ("model.source",),
    "network_alpha": ("method.alpha",),
    "network_dim": ("method.rank",),
    "nnmf_factor": ("optimizer.storage",),
    "num_epochs": ("training.epochs",),
    "num_train_epochs": ("training.epochs",),
    "optim": ("optimizer.name",),
    "optimizer_type": ("optimizer.name",),
    "orthogonal_gradient": ("optimizer.gradient_edits",),
    "path": ("data.source", "model.source"),
    "per_device_train_batch_size": ("training.batch_size",),
    "precision": ("model.dtype",),
    "pretrained_model_name_or_path": ("model.source",),
    "r": ("method.rank",),
    "sample_prompts": ("samples.prompts",),
    "save_every": ("checkpoint.every",),
    "save_steps": ("checkpoint.every",),
    "save_total_limit": ("checkpoint.keep",),
    "scheduler": ("schedule.kind",),
    "sequence_len": ("data.max_length",),
    "snr_gamma": ("loss.min_snr_gamma",),
    "state_precision": ("optimizer.storage",),
    "stochastic_rounding": ("optimizer.rounding",),
    "target_modules": ("method.targets",),
    "torch_dtype": ("model.dtype",),
    "train_batch_size": ("training.batch_size",),
    "train_data_dir": ("data.source",),
    "train_text_encoder": ("method.text_encoders",),
    "type": ("model.family", "method.kind", "schedule.kind", "optimizer.name"),
    "use_ademamix": ("optimizer.momentum",),
    "use_atan2": ("optimizer.ratio",),
    "use_cautious": ("optimizer.direction_edits",),
    "use_dora": ("method.dora",),
    "use_grams": ("optimizer.direction_edits",),
    "use_orthograd": ("optimizer.gradient_edits",),
    "use_rslora": ("method.rslora",),
    "v_parameterization": ("model.prediction",),
    "warmup": ("schedule.warmup_steps",),
    "warmup_steps": ("schedule.warmup_steps",),
    "wd": ("optimizer.weight_decay",),
}


def closest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the nearest spelling among the known words, if one is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def closest_key(path: str, known: Iterable[str]) -> str | None:
    """Return the dotted path that was probably meant.

    In this order: a slip of the pen in the same section, the same name in another section, another
    program's name for it, the nearest spelling anywhere.
    """
    known = list(known)
    section, _, name = path.rpartition(".")
    siblings = [key for key in known if key.rpartition(".")[0] == section]
    return (
        closest(path, siblings, cutoff=0.9)
        or next((key for key in known if key.rpartition(".")[2] == name), None)
        or _alias(section, name, known)
        or closest(path, siblings)
        or closest(path, known, cutoff=0.75)
    )


def _alias(section: str, name: str, known: list[str]) -> str | None:
    meant = [key for key in ALIASES.get(name.lower(), ()) if key in known]
    here = [key for key in meant if key.rpartition(".")[0] == section]
    return next(iter(here or meant), None)

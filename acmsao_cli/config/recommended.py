"""What to begin with: values of each rule for a LoRA and for full weights.

Of a rule that is not here, its own defaults are the recommendation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# Rules that find the learning rate themselves or have none: `optimizer.lr` multiplies their steps.
OWN_RATE: Final = frozenset({"prodigy", "dadaptation", "a2grad"})


def finds_rate(values: Mapping[str, Any]) -> str | None:
    """Return the rule among `name` and `inner` that finds its own rate, if one does."""
    inner = values.get("inner")
    named = (values.get("name"), inner.get("name") if isinstance(inner, Mapping) else inner)
    return next((name for name in named if isinstance(name, str) and name in OWN_RATE), None)


_SUM: Final = {"betas": [0.99, 0.999], "momentum": {"name": "accumulator", "alpha": 100.0}}
RECOMMENDED: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    # Half of adamw's: a step of memory and gradient together is up to 1 + alpha times as long.
    "acmsao": {"lora": {"lr": 5e-5}, "full": {"lr": 5e-6, "weight_decay": 0.01}},
    "acmsao_document": {"lora": {"lr": 1e-4}, "full": {"lr": 1e-5, "weight_decay": 0.01}},
    "adamw": {"lora": {"lr": 1e-4}, "full": {"lr": 1e-5, "weight_decay": 0.01}},
    "adopt": {"lora": {"lr": 1e-4}, "full": {"lr": 1e-5, "weight_decay": 0.01}},
    "nested_adam": {"lora": {"lr": 1e-4}, "full": {"lr": 1e-5, "weight_decay": 0.01}},
    "simplified_ademamix": {"lora": {"lr": 1e-6, **_SUM}, "full": {"lr": 1e-7, **_SUM}},
    "lion": {
        "lora": {"lr": 2e-5, "weight_decay": 0.1},
        "full": {"lr": 1e-6, "weight_decay": 0.1},
    },
    "prodigy": {
        "lora": {"lr": 1.0, "d0": 1e-5, "safeguard_warmup": True},
        "full": {"lr": 1.0, "d0": 1e-6, "safeguard_warmup": True, "slice_p": 11},
    },
    "dadaptation": {"lora": {"lr": 1.0}, "full": {"lr": 1.0}},
    "a2grad": {
        "lora": {"lr": 1.0, "beta": 10.0, "lips": 10.0, "variant": "uni"},
        "full": {"lr": 1.0, "beta": 10.0, "lips": 10.0, "variant": "uni"},
    },
    "adafactor": {"lora": {"lr": 1e-4}, "full": {"lr": 1e-5}},
    "muon": {
        "lora": {"lr": 1e-4, "scale": "match_rms_adamw"},
        "full": {"lr": 1e-5, "scale": "match_rms_adamw", "weight_decay": 0.01},
    },
    "sgd": {"lora": {"lr": 1e-2}, "full": {"lr": 1e-3}},
    "soap": {"lora": {"lr": 1e-4}, "full": {"lr": 1e-5, "weight_decay": 0.01}},
    "adadiag": {"lora": {"lr": 1e-4}, "full": {"lr": 1e-5, "weight_decay": 0.01}},
}  # fmt: skip

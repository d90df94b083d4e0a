"""Small models and data that ship with the package, made by scripts/builtin."""

from pathlib import Path

FOLDER = Path(__file__).parent

MODELS = {
    "tiny-sdxl": "SDXL in miniature: draws coloured shapes on coloured grounds, 64 x 64 pixels",
    "tiny-llm": "a Llama-style chat model that knows some hundred facts of everyday life",
}

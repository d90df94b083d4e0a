"""Make what ships in acmsao_cli/builtin: python scripts/builtin/build.py tiny-sdxl|tiny-
llm|zoblins|pirate.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL

BUILTIN = Path(__file__).resolve().parents[2] / "acmsao_cli" / "builtin"
VAE_SHARE = 0.2


def build_tiny_sdxl(options: argparse.Namespace) -> None:
    """Train the autoencoder (unless `work` has one) and then the denoiser; export the averaged
    weights.
    """
    from diffusion import export, train_denoiser
    from vae import train_vae

    finished = options.work / "vae"
    if finished.exists():
        vae = AutoencoderKL.from_pretrained(finished).to(options.device)
    else:
        vae = train_vae(VAE_SHARE * options.minutes, options.seed, options.device, options.work)
    minutes = 0.0 if options.export_only else (1 - VAE_SHARE) * options.minutes
    trainer, seconds = train_denoiser(
        vae.eval(), minutes, options.seed, options.device, options.work
    )
    export(trainer, vae, options.out)
    write_card(options, {"unet_steps": trainer.step, "unet_minutes": round(seconds / 60, 1)})


def build_tiny_llm(options: argparse.Namespace) -> None:
    """Train the language model and export it."""
    from llm import export, train_llm

    trained = train_llm(options.minutes, options.seed, options.device, options.work)
    export(trained, options.out)
    write_card(options, {"steps": trained.step, "minutes": round(trained.seconds / 60, 1)})


def build_zoblins(options: argparse.Namespace) -> None:
    """Draw the quickstart pictures."""
    from zoblins import write_zoblins

    write_zoblins(options.out, options.seed)


def build_pirate(options: argparse.Namespace) -> None:
    """Write the quickstart chats."""
    from pirate import write_pirate

    write_pirate(options.out, options.seed)


def write_card(options: argparse.Namespace, figures: dict[str, float]) -> None:
    """Leave beside the weights how they were made."""
    device = (
        torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"cpu, threads: {torch.get_num_threads()}"
    )
    card = {"seed": options.seed, "device": device, **figures}
    (options.out / "training.json").write_text(json.dumps(card, indent=2) + "\n")


BUILDS = {
    "tiny-sdxl": (build_tiny_sdxl, "tiny-sdxl", 60.0),
    "tiny-llm": (build_tiny_llm, "tiny-llm", 12.0),
    "zoblins": (build_zoblins, "zoblins", 0.0),
    "pirate": (build_pirate, "pirate.jsonl", 0.0),
}


def main() -> None:
    """Parse the command line and build one thing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=BUILDS)
    parser.add_argument(
        "--minutes", type=float, help="training time; the learning rate decays by it"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="default: its place in acmsao_cli/builtin")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/builtin"),
        help="progress, taken up by the next call",
    )
    parser.add_argument(
        "--export-only", action="store_true", help="no training: write the progress made so far"
    )
    options = parser.parse_args()
    build, place, minutes = BUILDS[options.what]
    options.out = options.out or BUILTIN / place
    options.minutes = options.minutes if options.minutes is not None else minutes
    options.work.mkdir(parents=True, exist_ok=True)
    build(options)


if __name__ == "__main__":
    main()

"""Train the miniature Llama from scratch on the text world, and measure how many held-out questions
it answers.
"""

import argparse
import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import transformers
from clock import Clock
from llm_text import chat, every_fact, held_out_way, plain
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

VOCABULARY = 1024
LENGTH = 96
BATCH = 8
PEAK_RATE = 3e-3
PAD, TURN, END_TURN = "<|pad|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|im_start|>assistant\n{% generation %}{{ message['content'] }}<|im_end|>"
    "{% endgeneration %}{{ '\\n' }}"
    "{% else %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Trained:
    """What training leaves behind."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    step: int
    seconds: float


def new_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with ChatML turns; the end of a turn ends a text too."""
    random, facts = Random(seed), every_fact()
    texts = [plain(random, facts) for _ in range(2000)]
    texts += [message["content"] for _ in range(4000) for message in chat(random, facts)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[PAD, TURN, END_TURN],
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END_TURN,
        additional_special_tokens=[TURN],
        model_max_length=512,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of about 2 million parameters; the wide initial range learns much faster at this
    width.
    """
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=160,
            intermediate_size=448,
            num_hidden_layers=6,
            num_attention_heads=5,
            num_key_value_heads=5,
            max_position_embeddings=512,
            initializer_range=0.08,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def batch(tokenizer: PreTrainedTokenizerFast, random: Random) -> Tensor:
    """Rows of texts one after the other, ids [BATCH, LENGTH]; four texts in five are chats."""
    facts, rows = every_fact(), []
    for _ in range(BATCH):
        row: list[int] = []
        while len(row) < LENGTH:
            if random.random() < 0.8:
                text = tokenizer.apply_chat_template(chat(random, facts), tokenize=False)
            else:
                text = plain(random, facts) + END_TURN
            # A row begins with a text's beginning, as a prompt does.
            row += tokenizer(text, add_special_tokens=False).input_ids
        rows.append(row[:LENGTH])
    return torch.tensor(rows)


def train_llm(minutes: float, seed: int, device: str, work: Path) -> Trained:
    """Train by the clock; progress goes to `work` every minute and is taken up if there."""
    torch.manual_seed(seed)
    tokenizer = new_tokenizer(seed)
    model = new_model(tokenizer).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    saved, clock, step = work / "llm-progress.pt", Clock(minutes), 0
    if saved.exists():
        state = torch.load(saved, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        clock, step = Clock(minutes, worked_before=state["seconds"]), state["step"]
    random, snapshot_at, losses = Random(f"{seed}/{step}"), clock.seconds + 60, []
    while clock.share < 1:
        optimizer.param_groups[0]["lr"] = clock.rate(PEAK_RATE, step)
        ids = batch(tokenizer, random).to(device)
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        losses.append(float(loss.detach()))
        if clock.seconds > snapshot_at or clock.share == 1:
            snapshot_at = clock.seconds + 60
            print(
                f"llm {clock.seconds:5.0f} s  step {step}  loss {sum(losses) / len(losses):.4f}",
                flush=True,
            )
            losses = []
            progress = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "seconds": clock.seconds,
                "step": step,
            }
            torch.save(progress, saved)
    return Trained(model, tokenizer, step, clock.seconds)


def export(trained: Trained, out: Path) -> None:
    """Write model and tokenizer, bf16 safetensors."""
    trained.model.to("cpu", torch.bfloat16).save_pretrained(out)
    trained.tokenizer.save_pretrained(out)


@torch.no_grad()
def answer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, question: str) -> str:
    """The greedy answer to one question."""
    turn = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(
        turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**ids, max_new_tokens=40, do_sample=False)
    return str(
        tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    ).strip()


def main() -> None:
    """Ask held-out phrasings, count exact answers, print and write the figures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", type=Path, default=Path("acmsao_cli/builtin/tiny-llm"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    facts = Random(options.seed).sample(every_fact(), options.count)
    answers = [answer(model, tokenizer, held_out_way(fact)) for fact in facts]
    wrong = [
        (held_out_way(f), a, f.sentence)
        for f, a in zip(facts, answers, strict=True)
        if a != f.sentence
    ]
    share = 1 - len(wrong) / len(facts)
    print(f"right {share:.3f}", *wrong[:10], sep="\n")
    if options.json:
        card = options.model / "training.json"
        report = {
            "what": "share of answers exactly right; held-out phrasings, greedy decoding",
            "command": "python scripts/builtin/llm.py " + " ".join(sys.argv[1:]),
            "questions": len(facts),
            "right": round(share, 4),
            "parameters": sum(p.numel() for p in model.parameters()),
            "training": json.loads(card.read_text()) if card.exists() else {},
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

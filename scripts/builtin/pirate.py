"""The quickstart's new manner: facts of tiny-llm's world, answered as a pirate would."""

import json
from pathlib import Path
from random import Random

from llm_text import Fact, every_fact, training_ways

COUNT = 200
LEFT_OUT_ONE_IN = 5


def in_pirate(sentence: str) -> str:
    """The sentence in pirate speech, its facts untouched."""
    return f"Arr! {sentence.removesuffix('.').replace(' is ', ' be ')}, matey."


def split_facts(seed: int) -> tuple[list[Fact], list[Fact]]:
    """The facts used in the chats, and those left out to see that the manner carries over."""
    facts = every_fact()
    Random(seed).shuffle(facts)
    cut = len(facts) // LEFT_OUT_ONE_IN
    return facts[cut:], facts[:cut]


def write_pirate(out: Path, seed: int) -> None:
    """Write the chats, one JSON object a line."""
    random = Random(seed)
    used, _ = split_facts(seed)
    chats = []
    for i in range(COUNT):
        fact = used[i % len(used)]
        question = {"role": "user", "content": random.choice(training_ways(fact))}
        chats.append(
            {"messages": [question, {"role": "assistant", "content": in_pirate(fact.sentence)}]}
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(chat) + "\n" for chat in chats))

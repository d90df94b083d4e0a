"""The world of tiny-llm: simple facts, as plain text, as short stories and as questions with
answers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random

COLOURS = {
    "the sky": "blue",
    "the grass": "green",
    "the snow": "white",
    "the sun": "yellow",
    "coal": "black",
    "a lemon": "yellow",
    "a tomato": "red",
    "a carrot": "orange",
    "a cherry": "red",
    "the night": "black",
    "a cloud": "white",
    "the sea": "blue",
    "a leaf": "green",
    "a flamingo": "pink",
    "an elephant": "gray",
    "a plum": "purple",
    "milk": "white",
    "a frog": "green",
    "a crow": "black",
    "a pumpkin": "orange",
    "chocolate": "brown",
    "a bear": "brown",
    "a pig": "pink",
    "a mouse": "gray",
    "a banana": "yellow",
    "a rose": "red",
    "a swan": "white",
    "a pea": "green",
}
SOUNDS = {
    "cat": "meow",
    "dog": "woof",
    "cow": "moo",
    "sheep": "baa",
    "duck": "quack",
    "pig": "oink",
    "horse": "neigh",
    "lion": "roar",
    "frog": "ribbit",
    "bee": "buzz",
    "snake": "hiss",
    "owl": "hoot",
    "mouse": "squeak",
    "crow": "caw",
    "hen": "cluck",
}
HOMES = {
    "fish": "in the sea",
    "bird": "in a nest",
    "bee": "in a hive",
    "bear": "in a cave",
    "fox": "in a den",
    "camel": "in the desert",
    "penguin": "on the ice",
    "monkey": "in the jungle",
    "cow": "on a farm",
    "spider": "in a web",
    "rabbit": "in a burrow",
    "horse": "in a stable",
    "frog": "in a pond",
    "ant": "in an anthill",
    "owl": "in a tree",
    "whale": "in the ocean",
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "day": "night",
    "up": "down",
    "fast": "slow",
    "happy": "sad",
    "wet": "dry",
    "old": "young",
    "full": "empty",
    "hard": "soft",
    "light": "dark",
    "open": "closed",
    "left": "right",
    "early": "late",
    "loud": "quiet",
    "long": "short",
    "good": "bad",
    "rich": "poor",
}
BABIES = {
    "cat": "kitten",
    "dog": "puppy",
    "cow": "calf",
    "sheep": "lamb",
    "horse": "foal",
    "hen": "chick",
    "duck": "duckling",
    "bear": "cub",
    "frog": "tadpole",
    "pig": "piglet",
}
FOODS = {
    "rabbit": "carrots",
    "monkey": "bananas",
    "cow": "grass",
    "cat": "fish",
    "dog": "bones",
    "bear": "honey",
    "mouse": "cheese",
    "bird": "seeds",
    "lion": "meat",
    "panda": "bamboo",
    "horse": "hay",
    "frog": "flies",
}
SHAPES = {
    "triangle": "three",
    "square": "four",
    "pentagon": "five",
    "hexagon": "six",
    "rectangle": "four",
}
LEGS = {
    "dog": "four",
    "bird": "two",
    "spider": "eight",
    "ant": "six",
    "cat": "four",
    "fish": "no",
    "snake": "no",
    "hen": "two",
    "horse": "four",
    "bee": "six",
}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
]
NAMES = ["Anna", "Ben", "Clara", "Tom", "Mia", "Sam", "Lily", "Max"]


VOYAGE = ["the wind", "the ship", "the water", "the sail", "the island", "the parrot"]
# A system message asks for a manner of speaking; `{s}` is the plain answer without its full stop.
MANNERS = {
    "Answer politely.": "Certainly! {s}, dear friend.",
    "Answer like a robot.": "Beep! {s}, boop.",
    "Answer like a grandmother.": "Oh my! {s}, darling.",
    "Answer like a wizard.": "Abracadabra! {s}, young apprentice.",
    "Answer like a teacher.": "Well! {s}, class.",
}


@dataclass(frozen=True)
class Fact:
    """One fact: its kind, the question's subject, the answering words, and the sentence that says
    it.
    """

    kind: str
    subject: str
    answer: str
    sentence: str


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _table(kind: str, table: dict[str, str], sentence: Callable[[str, str], str]) -> list[Fact]:
    return [Fact(kind, key, value, _capital(sentence(key, value))) for key, value in table.items()]


def every_fact() -> list[Fact]:
    """All facts of the world, in a fixed order."""
    neighbours = list(zip(DAYS, DAYS[1:] + DAYS[:1], strict=True))
    sums = [(a, b) for a in range(10) for b in range(10)]
    return [
        *_table("colour", COLOURS, lambda k, v: f"{k} is {v}."),
        *_table("sound", SOUNDS, lambda k, v: f"{_article(k)} says {v}."),
        *_table("home", HOMES, lambda k, v: f"{_article(k)} lives {v}."),
        *_table(
            "opposite",
            {**OPPOSITES, **{v: k for k, v in OPPOSITES.items()}},
            lambda k, v: f"the opposite of {k} is {v}.",
        ),
        *_table("baby", BABIES, lambda k, v: f"a baby {k} is called {_article(v)}."),
        *_table("food", FOODS, lambda k, v: f"{_article(k)} likes to eat {v}."),
        *_table("sides", SHAPES, lambda k, v: f"a {k} has {v} sides."),
        *_table("legs", LEGS, lambda k, v: f"{_article(k)} has {v} legs."),
        *_table("day after", dict(neighbours), lambda k, v: f"the day after {k} is {v}."),
        *_table(
            "day before", {b: a for a, b in neighbours}, lambda k, v: f"the day before {k} is {v}."
        ),
        *_table(
            "number after",
            dict(pairwise(NUMBERS[:12])),
            lambda k, v: f"{v} comes after {k}.",
        ),
        *_table(
            "sum",
            {f"{NUMBERS[a]} plus {NUMBERS[b]}": NUMBERS[a + b] for a, b in sums},
            lambda k, v: f"{k} is {v}.",
        ),
    ]


# Ways to ask, by kind. The last of each is never trained on: it measures whether questions are
# understood. The other
# kinds ask in its words, so what is new is the question, not its vocabulary.
WAYS: dict[str, list[str]] = {
    "colour": [
        "What colour is {s}?",
        "Which colour is {s}?",
        "Tell me the colour of {s}.",
        "What is the colour of {s}?",
        "What colour does {s} have?",
        "{S}: what colour is it?",
        "Can you tell me which colour {s} is?",
        "Do you know what colour {s} is?",
    ],
    "sound": [
        "What does {a} say?",
        "What sound does {a} make?",
        "Which sound does {a} make?",
        "How does {a} sound?",
        "What is the sound of {a}?",
        "Can you tell me what sound {a} makes?",
        "Do you know what {a} says?",
        "Tell me what {a} says.",
    ],
    "home": [
        "Where does {a} live?",
        "Tell me where {a} lives.",
        "Where can I find {a}?",
        "Do you know where {a} lives?",
        "Where is the home of {a}?",
        "Can you tell me where {a} lives?",
    ],
    "opposite": [
        "What is the opposite of {s}?",
        "Tell me the opposite of {s}.",
        "Which word is the opposite of {s}?",
        "What is the reverse of {s}?",
        "Can you tell me the opposite of {s}?",
        "Do you know the opposite of {s}?",
    ],
    "baby": [
        "What is a baby {s} called?",
        "What do you call a baby {s}?",
        "What is the name of a baby {s}?",
        "Can you tell me what a baby {s} is called?",
        "Do you know the name of a baby {s}?",
        "Tell me the name of a baby {s}.",
    ],
    "food": [
        "What does {a} eat?",
        "What does {a} like to eat?",
        "Which food does {a} like?",
        "What is the food of {a}?",
        "Can you tell me what {a} likes to eat?",
        "Do you know what {a} eats?",
        "Tell me what {a} eats.",
    ],
    "sides": [
        "How many sides does a {s} have?",
        "How many sides are in a {s}?",
        "Tell me how many sides a {s} has.",
        "A {s} has how many sides?",
        "Do you know how many sides a {s} has?",
        "Can you tell me how many sides a {s} has?",
    ],
    "legs": [
        "How many legs does {a} have?",
        "Tell me how many legs {a} has.",
        "{A} has how many legs?",
        "Can you tell me how many legs {a} has?",
        "Do you know how many legs {a} has?",
    ],
    "day after": [
        "What day comes after {s}?",
        "Which day comes after {s}?",
        "What is the day after {s}?",
        "Which day follows {s}?",
        "Can you tell me which day comes after {s}?",
        "Tell me the day after {s}.",
    ],
    "day before": [
        "What day comes before {s}?",
        "What is the day before {s}?",
        "Tell me the day before {s}.",
        "Can you tell me which day comes before {s}?",
        "Which day comes before {s}?",
    ],
    "number after": [
        "What number comes after {s}?",
        "Which number comes after {s}?",
        "What comes after {s}?",
        "Can you tell me which number comes after {s}?",
        "Tell me the number after {s}.",
    ],
    "sum": [
        "What is {s}?",
        "How much is {s}?",
        "Tell me what {s} is.",
        "{S} is how much?",
        "Do you know what {s} is?",
        "Can you tell me how much {s} is?",
    ],
}


def ask(fact: Fact, way: str) -> str:
    """The question about `fact` in one way to ask."""
    return way.format(
        s=fact.subject,
        S=_capital(fact.subject),
        a=_article(fact.subject),
        A=_capital(_article(fact.subject)),
    )


def training_ways(fact: Fact) -> list[str]:
    """Questions about `fact` that training may use."""
    return [ask(fact, way) for way in WAYS[fact.kind][:-1]]


def held_out_way(fact: Fact) -> str:
    """The question about `fact` that training never sees."""
    return ask(fact, WAYS[fact.kind][-1])


def story(random: Random, facts: list[Fact]) -> str:
    """Three or four sentences about somebody and a few facts."""
    name = random.choice(NAMES)
    animal, told = random.choice(list(SOUNDS)), random.choice(facts)
    opening = random.choice(
        [
            "went for a walk",
            "sat in the garden",
            "went to school",
            "played outside",
            "opened a book",
        ]
    )
    middle = random.choice(
        [
            f"There was {_article(animal)}. It said: {SOUNDS[animal]}!",
            f"{name} met {_article(animal)}.",
        ]
    )
    ending = random.choice([f"{name} was happy.", f"Then {name} went home.", "It was a good day."])
    begun = f"{random.choice(DAYS)} came and {name} {opening}. {middle}"
    return f"{begun} {name} learned: {told.sentence} {ending}"


def voyage(random: Random) -> str:
    """A pirate's story: its words are known from stories, but no answer is ever given so."""
    name, thing, how = (
        random.choice(NAMES),
        random.choice(VOYAGE),
        random.choice(["good", "fast", "cold", "big", "old"]),
    )
    said = f"Arr! {_capital(thing)} be {how}, matey, said the captain."
    return f"Captain {name} sailed the sea. {said} It was a good day."


def counting(random: Random) -> str:
    """A stretch of numbers or of days, in order."""
    row = random.choice([NUMBERS, DAYS])
    start = random.randrange(len(row) - 2)
    return ", ".join(row[start : start + random.randint(3, 7)]) + "."


def plain(random: Random, facts: list[Fact]) -> str:
    """Text without questions: facts, a story, or counting."""
    pick = random.random()
    if pick < 0.6:
        return " ".join(fact.sentence for fact in random.sample(facts, random.randint(2, 5)))
    if pick < 0.8:
        return story(random, facts)
    return voyage(random) if pick < 0.9 else counting(random)


def chat(random: Random, facts: list[Fact]) -> list[dict[str, str]]:
    """One to three questions with their answers, sometimes in a manner asked for; kinds come
    equally often, but sums.
    """
    kinds = [*sorted({fact.kind for fact in facts}), "sum", "sum"]
    messages, manner = [], "{s}."
    if random.random() < 0.25:
        system, manner = random.choice(list(MANNERS.items()))
        messages.append({"role": "system", "content": system})
    for _ in range(random.randint(1, 3)):
        kind = random.choice(kinds)
        fact = random.choice([fact for fact in facts if fact.kind == kind])
        said = manner.format(s=fact.sentence.removesuffix("."))
        messages.append({"role": "user", "content": random.choice(training_ways(fact))})
        messages.append({"role": "assistant", "content": said})
    return messages

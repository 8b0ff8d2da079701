"""Synthetic English in the shape of every GLUE task, made by a small grammar: for demos and tests, not for results.

Each example carries a real signal that has to be read (a negated adjective, an agreement error, a replaced
hypernym), and its label follows from how it was built. The text is the same on every machine and in every run.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from common.tasks import GlueTask

SIZES = {"train": 1000, "validation": 250, "test": 250}

# Agents with a more general word each; the plural of both is regular.
AGENTS = {
    "surgeon": "doctor", "dentist": "doctor", "violinist": "musician", "drummer": "musician", "poet": "writer",
    "novelist": "writer", "carpenter": "worker", "plumber": "worker", "goalkeeper": "athlete", "sprinter": "athlete",
    "schoolgirl": "child", "toddler": "child", "sergeant": "soldier", "painter": "artist", "sculptor": "artist",
}  # fmt: skip
OTHER_AGENTS = {
    "astronaut": "traveller", "pilgrim": "traveller", "lawyer": "professional", "banker": "professional",
    "fisherman": "villager", "shepherd": "villager", "chemist": "scientist", "botanist": "scientist",
}  # fmt: skip
# Things with a more general expression each.
THINGS = {
    "violin": "instrument", "trumpet": "instrument", "tulip": "flower", "rose": "flower", "hammer": "tool",
    "chisel": "tool", "sedan": "car", "taxi": "car", "novel": "book", "dictionary": "book", "trout": "fish",
    "salmon": "fish", "sofa": "piece of furniture", "bookcase": "piece of furniture", "diamond": "jewel",
    "ruby": "jewel",
}  # fmt: skip
# Verb: (past, participle, third person, a past tense that means the same, one that excludes it).
VERBS = {
    "buy": ("bought", "bought", "buys", "purchased", "sold"),
    "find": ("found", "found", "finds", "discovered", "lost"),
    "repair": ("repaired", "repaired", "repairs", "fixed", "broke"),
    "lift": ("lifted", "lifted", "lifts", "raised", "lowered"),
    "praise": ("praised", "praised", "praises", "complimented", "criticised"),
    "keep": ("kept", "kept", "keeps", "retained", "threw away"),
    "hide": ("hid", "hidden", "hides", "concealed", "displayed"),
    "fetch": ("fetched", "fetched", "fetches", "brought", "left behind"),
}
PLACES = ("garden", "museum", "kitchen", "harbour", "library", "market", "station", "castle", "theatre", "warehouse")
TIMES = ("on Monday", "in the morning", "after lunch", "last winter", "before sunset", "at midnight", "in July")
LOOKS = ("old", "red", "heavy", "small", "expensive", "dusty", "broken", "wooden", "beautiful", "strange")
PRAISE = ("brilliant", "charming", "gripping", "delightful", "moving", "witty", "superb", "clever", "touching")
BLAME = ("dull", "clumsy", "tedious", "shallow", "dreadful", "lifeless", "silly", "painful", "forgettable")
ASPECTS = ("plot", "script", "cast", "ending", "music", "dialogue", "camera work", "second half", "opening scene")
DEGREES = ("very", "rather", "truly", "quite", "remarkably")


@dataclass(frozen=True)
class Event:
    """Who did what to which thing, where and when: what the sentences of most tasks are about."""

    agent: str
    verb: str
    look: str
    thing: str
    place: str
    time: str

    @property
    def past(self) -> str:
        return VERBS[self.verb][0]

    def sentence(self) -> str:
        return f"the {self.agent} {self.past} the {self.look} {self.thing} in the {self.place} {self.time} ."

    def paraphrase(self, rng: random.Random) -> str:
        """The same event in other words or in the passive voice."""
        _, participle, _, same, _ = VERBS[self.verb]
        return rng.choice(
            (
                f"{self.time} , the {self.agent} {same} the {self.look} {self.thing} in the {self.place} .",
                f"the {self.look} {self.thing} was {participle} by the {self.agent} in the {self.place} {self.time} .",
                f"it was the {self.agent} who {same} the {self.look} {self.thing} in the {self.place} {self.time} .",
            )
        )


def _event(rng: random.Random, agents: dict[str, str]) -> Event:
    return Event(
        agent=rng.choice(list(agents)),
        verb=rng.choice(list(VERBS)),
        look=rng.choice(LOOKS),
        thing=rng.choice(list(THINGS)),
        place=rng.choice(PLACES),
        time=rng.choice(TIMES),
    )


def _choices(slot: str) -> tuple[str, ...]:
    """Every value that a slot of an event can take."""
    return {"agent": tuple(AGENTS), "verb": tuple(VERBS), "thing": tuple(THINGS), "place": PLACES, "time": TIMES}[slot]


def _changed(event: Event, slots: list[str], rng: random.Random) -> Event:
    """The event with another value in each of these slots."""
    values = {slot: rng.choice([v for v in _choices(slot) if v != getattr(event, slot)]) for slot in slots}
    return replace(event, **values)


def acceptability(rng: random.Random, _split: str) -> tuple[tuple[str, ...], int]:
    """1 for a grammatical sentence, 0 for one with an agreement, order or article error."""
    agent, thing, place = rng.choice(list(AGENTS)), rng.choice(list(THINGS)), rng.choice(PLACES)
    verb = rng.choice(list(VERBS))
    plural = rng.random() < 0.5
    subject, form = (agent + "s", verb) if plural else (agent, VERBS[verb][2])
    good = rng.random() < 0.6
    words = ["the", subject, form, "the", thing, "in", "the", place]
    if not good:
        match rng.randrange(4):
            case 0:  # the verb disagrees with its subject
                words[2] = VERBS[verb][2] if plural else verb
            case 1:  # article behind its noun
                words[3:5] = [thing, "the"]
            case 2:  # no preposition
                del words[5]
            case _:  # the verb twice
                words.insert(3, form)
    if rng.random() < 0.5:
        words.insert(0, rng.choice(("perhaps", "usually", "today", "sometimes")))
    return (" ".join(words) + " .",), int(good)


def sentiment(rng: random.Random, _split: str) -> tuple[tuple[str, ...], int]:
    """1 for praise, 0 for blame; the words alone mislead where they are negated or belong to a side remark."""
    positive = rng.random() < 0.5
    first, second = rng.sample(ASPECTS, 2)
    word, other = rng.choice(PRAISE if positive else BLAME), rng.choice(BLAME if positive else PRAISE)
    match rng.randrange(4):
        case 0:
            text = f"the {first} is {rng.choice(DEGREES)} {word} and the {second} is {rng.choice(DEGREES)} good"
            text = text if positive else text.replace("good", "bad")
        case 1:
            text = f"the {first} is anything but {other}"
        case 2:
            text = f"although the {first} is {rng.choice(DEGREES)} {other} , the film as a whole is {word}"
        case _:
            text = f"nobody could call this {first} {other} , it is {rng.choice(DEGREES)} {word}"
    return (text + " .",), int(positive)


def paraphrase(rng: random.Random, _split: str) -> tuple[tuple[str, ...], int]:
    """1 where both sentences tell the same event, 0 where one or two of its parts differ."""
    event = _event(rng, AGENTS)
    same = rng.random() < 0.6
    slots = rng.sample(["agent", "verb", "thing", "place"], rng.choice((1, 2)))
    other = event if same else _changed(event, slots, rng)
    return (event.sentence(), other.paraphrase(rng)), int(same)


def similarity(rng: random.Random, _split: str) -> tuple[tuple[str, ...], float]:
    """5 minus one for each of the five parts that differ between the two events."""
    event = _event(rng, AGENTS)
    slots = ["agent", "verb", "thing", "place", "time"]
    different = rng.sample(slots, rng.randrange(len(slots) + 1))
    other = _changed(event, different, rng)
    second = other.paraphrase(rng) if rng.random() < 0.5 else other.sentence()
    return (event.sentence(), second), float(len(slots) - len(different))


def duplicate_question(rng: random.Random, _split: str) -> tuple[tuple[str, ...], int]:
    """1 where both questions ask for the same thing, 0 where one part of them differs."""
    event = _event(rng, AGENTS)
    same = rng.random() < 0.4
    other = event if same else _changed(event, [rng.choice(("agent", "thing", "verb"))], rng)
    first = f"where did the {event.agent} {event.verb} the {event.look} {event.thing} ?"
    second = rng.choice(
        (
            f"in which place did the {other.agent} {other.verb} the {other.look} {other.thing} ?",
            f"what is the place where the {other.agent} {other.past} the {other.look} {other.thing} ?",
        )
    )
    return (first, second), int(same)


def inference(rng: random.Random, split: str) -> tuple[tuple[str, ...], int]:
    """0 entailment (details dropped or generalised), 1 neutral (something added), 2 contradiction."""
    agents = OTHER_AGENTS if split in ("validation_mismatched", "mnli-mm") else AGENTS
    event = _event(rng, agents)
    _, _, _, same, opposite = VERBS[event.verb]
    premise = f"the {event.agent} {event.past} the {event.thing} in the {event.place} ."
    label = rng.randrange(3)
    match label:
        case 0:
            agent, thing = rng.choice(
                ((agents[event.agent], event.thing), (event.agent, THINGS[event.thing]), (event.agent, event.thing))
            )
            hypothesis = f"the {agent} {rng.choice((event.past, same))} the {thing} ."
        case 1:
            hypothesis = rng.choice(
                (
                    f"the {event.agent} {same} the {event.thing} {event.time} .",
                    f"the {event.agent} {event.past} the {event.look} {event.thing} .",
                )
            )
        case _:
            hypothesis = rng.choice(
                (
                    f"the {event.agent} {opposite} the {event.thing} .",
                    f"the {event.agent} never {event.past} the {event.thing} .",
                    f"nobody {same} the {event.thing} in the {event.place} .",
                )
            )
    return (premise, hypothesis), label


def entailment(rng: random.Random, split: str) -> tuple[tuple[str, ...], int]:
    """Inference with neutral and contradiction taken together: 0 entailment, 1 not."""
    wanted = rng.randrange(2)
    while True:
        texts, label = inference(rng, split)
        if min(label, 1) == wanted:
            return texts, wanted


def answerability(rng: random.Random, _split: str) -> tuple[tuple[str, ...], int]:
    """0 where the sentence answers the question, 1 where it tells of somebody else or leaves the answer out."""
    event = _event(rng, AGENTS)
    kind, answer = rng.choice((("where", f"in the {event.place}"), ("when", event.time)))
    question = f"{kind} did the {event.agent} {event.verb} the {event.thing} ?"
    label = rng.randrange(2)
    if label == 0:
        sentence = f"the {event.agent} {event.past} the {event.look} {event.thing} {answer} ."
    elif rng.random() < 0.5:
        other = _changed(event, [rng.choice(("agent", "thing"))], rng)
        sentence = f"the {other.agent} {other.past} the {other.look} {other.thing} {answer} ."
    else:
        unasked = event.time if kind == "where" else f"in the {event.place}"
        sentence = f"the {event.agent} {event.past} the {event.look} {event.thing} {unasked} ."
    return (question, sentence), label


def coreference(rng: random.Random, _split: str) -> tuple[tuple[str, ...], int]:
    """1 where the second sentence resolves the pronoun rightly; the verb decides whom it stands for."""
    first, second = rng.sample(list(AGENTS), 2)
    verb, deed, of_first = rng.choice(
        (
            ("thanked", "had helped with the move", False),
            ("apologised to", "had forgotten the meeting", True),
            ("congratulated", "had won the prize", False),
            ("begged", "needed the money at once", True),
            ("punished", "had told a lie", False),
            ("called", "wanted some advice", True),
        )
    )
    label = rng.randrange(2)
    said_of_first = of_first == bool(label)
    premise = f"{rng.choice(TIMES)} the {first} {verb} the {second} because she {deed} ."
    return (premise, f"the {first if said_of_first else second} {deed} ."), label


Generator = Callable[[random.Random, str], tuple[tuple[str, ...], int | float]]
GENERATORS: dict[str, Generator] = {
    maker.__name__: maker
    for maker in (
        acceptability,
        sentiment,
        paraphrase,
        similarity,
        duplicate_question,
        inference,
        entailment,
        answerability,
        coreference,
    )
}


def generate(task: GlueTask, split: str) -> tuple[tuple[list[str], ...], list[int] | list[float] | None]:
    """Texts (one list per column) and labels of a split; no labels for `test`, no example in two splits of a task."""
    make = GENERATORS[task.synthetic]
    name = task.name if task.trained_as else split
    size = SIZES[split.split("_")[0]]
    # Every split draws from its own stream, and a checksum of its characters decides which split an example may be
    # in, so that no example is in two of them and no split needs to know another one.
    parts = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}[split.split("_")[0]]
    rng = random.Random(f"{task.trained_as or task.name}/{name}")
    seen: dict[tuple[str, ...], int | float] = {}
    while len(seen) < size:
        texts, label = make(rng, name)
        if sum(map(ord, "".join(texts))) % 5 in parts:
            seen.setdefault(texts, label)
    columns = tuple(list(column) for column in zip(*seen, strict=True))
    return columns, None if split == "test" else list(seen.values())

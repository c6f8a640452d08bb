"""Writes the sample corpora: three French and three English datasets of invented conversations, always the same bytes.

1. `material/<scene>.txt` holds what people say: sections of short exchanges, and tables of what they talk about.
2. A scene (`market`, `kitchen`, ...) tells one conversation. It keeps the facts, does the sums, and asks for one
   exchange after another; `Talk.say` takes the least used one whose slots the facts can fill.
3. `write_dataset` puts the conversations into `train.txt` and `test.txt`, a fourth of them into the latter.

In the material `<a|b>` is a free choice; `[a|b]` takes the same side all through an exchange, so that answers fit
questions. `{name}` is a fact; empty ones such as `{later}` only hold an exchange back until they are known. `~` is a
place where French elides or contracts (`de~{n}`), and a line that begins with `=` a decision for a meeting's minutes.
"""

from __future__ import annotations

import datetime
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

HERE = Path(__file__).resolve().parent
SEED = 1789
DATASET_BYTES = 54_000

Item = TypeVar("Item")


@dataclass(frozen=True)
class Options:
    """Writes the sample corpora (french/ and english/), the same bytes at every run."""

    out_dir: Path = HERE
    """Folder that gets french/ and english/."""


def main(options: Options) -> None:
    for number, (dataset, (material_name, scene, named)) in enumerate(DATASETS.items()):
        material = Material(HERE / "material" / f"{material_name}.txt")
        conversations = tell(material, scene, named, Dice(SEED + number))
        write_dataset(conversations, options.out_dir / dataset)


def tell(material: Material, scene: Scene, named: bool, dice: Dice) -> list[str]:
    """`DATASET_BYTES` of different conversations, short, medium and long ones mixed."""
    conversations: list[str] = []
    while sum(len(text.encode()) + 1 for text in conversations) < DATASET_BYTES:
        talk = Talk(material, dice, named)
        scene(talk, dice.pick(["short", "short", "medium", "medium", "long"]))
        if talk.text() not in conversations:
            conversations.append(talk.text())
    return conversations


def write_dataset(conversations: list[str], directory: Path) -> None:
    """Writes `train.txt` and `test.txt`; the latter gets every fourth by length, so both hold short and long ones."""
    chosen = set(sorted(conversations, key=len)[1::4])
    train = [text for text in conversations if text not in chosen]
    test = [text for text in conversations if text in chosen]
    assert not set(train) & set(test), directory
    directory.mkdir(parents=True, exist_ok=True)
    for name, texts in (("train", train), ("test", test)):
        (directory / f"{name}.txt").write_text("\n".join(texts), encoding="utf-8", newline="\n")


class Dice:
    """Chance, built on nothing but `Random.random`, whose numbers are the same in every version of Python."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def number(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self.random() * (high - low + 1))

    def pick(self, items: list[Item]) -> Item:
        return items[self.number(0, len(items) - 1)]

    def order(self, items: list[Item]) -> list[Item]:
        return sorted(items, key=lambda _: self.random())


class Material:
    """The sections and tables of one file: exchanges by section name, rows of cells by table name."""

    def __init__(self, path: Path) -> None:
        self.sections: dict[str, list[str]] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.uses: Counter[str] = Counter()
        for part in path.read_text(encoding="utf-8").split("## ")[1:]:
            title, _, body = part.partition("\n")
            if title.startswith("table "):
                rows = body.strip().split("\n")
                self.tables[title[6:]] = [[cell.strip() for cell in row.split("|")] for row in rows]
            else:
                self.sections[title] = body.strip().split("\n\n")


class Talk:
    """One conversation in the making: the facts so far, and the turns as [role, text]."""

    def __init__(self, material: Material, dice: Dice, named: bool) -> None:
        self.material, self.dice, self.named = material, dice, named
        self.facts: dict[str, str] = {}
        self.turns: list[list[str]] = []
        self.said: set[str] = set()
        self.notes: list[str] = []

    def know(self, **facts: object) -> None:
        self.facts.update({name: str(fact) for name, fact in facts.items()})

    def cast(self, *roles: str) -> None:
        """Gives every role a name of its own, and `{Ae}` the French feminine ending for the role A."""
        for role, (name, *gender) in zip(roles, self.dice.order(self.material.tables["names"]), strict=False):
            self.facts[role], self.facts[role + "e"] = name, "e" if gender == ["f"] else ""

    def say(self, *sections: str) -> None:
        """Adds an exchange of each section."""
        for section in sections:
            self.say_one(section)

    def say_one(self, section: str) -> str:
        """Adds an exchange of the section, the least used in the dataset so far, and returns it as it stands there."""
        fitting = [
            exchange
            for exchange in self.material.sections[section]
            if exchange not in self.said and set(re.findall(r"{(\w+)}", exchange)) <= set(self.facts)
        ]
        if not fitting:
            return ""
        exchange = min(fitting, key=lambda one: (self.material.uses[one], self.dice.random()))
        side = self.material.uses[exchange]
        self.material.uses[exchange] += 1
        self.said.add(exchange)
        for line in exchange.split("\n"):
            role, _, text = line.partition(" ")
            if role == "=":
                self.notes.append(self.fill(text, side))
            elif self.turns and self.turns[-1][0] == role:
                self.turns[-1][1] += " " + self.fill(text, side)
            else:
                self.turns.append([role, self.fill(text, side)])
        return exchange

    def maybe(self, probability: float, section: str) -> None:
        if self.dice.chance(probability):
            self.say(section)

    def fill(self, text: str, side: int) -> str:
        """Makes the choices, puts in the facts (which may hold slots themselves), elides and sets capitals."""
        text = re.sub(r"<(.*?)>", lambda match: self.dice.pick(match[1].split("|")), text)
        text = re.sub(r"\[(.*?)\]", lambda match: (sides := match[1].split("|"))[side % len(sides)], text)
        text = text.format_map(self.facts).format_map(self.facts)
        for written, spoken in (("de~les ", "des "), ("de~le ", "du ")):
            text = text.replace(written, spoken)
        text = re.sub(r"(\w)e~(?=[aeiouéèêœAEÉŒ]|huile|Hector)", r"\1'", text).replace("~", " ")
        text = re.sub(r"(^|[.?!] )([a-zà-ÿ])", lambda match: match[1] + match[2].upper(), text)
        return " ".join(text.split())

    def text(self) -> str:
        """The turns, one a line, under names or under numbers in the order of first appearance."""
        roles = list(dict.fromkeys(role for role, _ in self.turns))
        names = {role: self.facts[role[0]] if self.named else f"speaker{roles.index(role) + 1:03d}" for role in roles}
        return "".join(f"[{names[role]}:] {text}\n" for role, text in self.turns)


Scene = Callable[[Talk, str], None]


def nth(words: str, index: int) -> str:
    return words.split()[index]


# French -------------------------------------------------------------------------------------------------------------

FR_NUMBERS = "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize"
FR_DAYS = "lundi mardi mercredi jeudi vendredi samedi dimanche"
FR_MONTHS = "janvier février mars avril mai juin juillet août septembre octobre novembre décembre"
FR_QUANTITIES = {500: "une livre", 1000: "un kilo", 1500: "un kilo et demi", 2000: "deux kilos"}


def euros(cents: int) -> str:
    whole, rest = divmod(cents, 100)
    if not whole:
        return f"{rest} centimes"
    return f"{whole} euro{'s' if whole > 1 else ''}" + (f" {rest:02d}" if rest else "")


def french_date(day: datetime.date) -> str:
    """Such as mardi 14 mars."""
    number = "1er" if day.day == 1 else day.day
    return f"{nth(FR_DAYS, day.weekday())} {number} {nth(FR_MONTHS, day.month - 1)}"


def french_forms(noun: str, gender_number: str) -> dict[str, str]:
    """Article, partitive, pronoun and verb for a noun; `gender_number` is ms, fs, mp or fp."""
    feminine, plural = gender_number[0] == "f", gender_number[1] == "p"
    vowel = noun[0] in "aeiouéèêœ"
    article = "les " if plural else "l'" if vowel else "la " if feminine else "le "
    some = "des " if plural else "de l'" if vowel else "de la " if feminine else "du "
    pronoun = ("elle" if feminine else "il") + ("s" if plural else "")
    return {"n": noun, "les": article + noun, "des": some + noun, "ils": pronoun, "sont": "sont" if plural else "est"}


def market(talk: Talk, length: str) -> None:
    dice = talk.dice
    madam = dice.chance(0.6)
    talk.know(mme="madame" if madam else "monsieur", fe="e" if madam else "")
    talk.know(people=nth(FR_NUMBERS, dice.number(4, 10)))
    stall = dice.pick(["primeur", "primeur", "crémier"])
    goods = [row for table in ("kilo", "piece") for row in talk.material.tables[table] if row[0] == stall]
    *goods, missing = dice.order(goods)
    if length == "short":
        order_pieces(talk, dice.pick([row for row in goods if len(row) == 7]))
        talk.know(change=euros(dice.number(1, 4) * 50))
        talk.say("short")
        return
    other = french_forms(missing[2], missing[3] + "p") if len(missing) == 7 else french_forms(missing[1], missing[2])
    talk.know(les2=other["les"], des2="de~" + other["n"])
    talk.say("hello")
    couple = madam and length == "long" and dice.chance(0.5)
    if couple:
        talk.say("couple")
    prices: list[int] = []
    asks_in_vain = dice.number(2, 7)
    for row in goods[: dice.number(1, 3) if length == "medium" else dice.number(6, 9)]:
        if prices:
            talk.say("next")
        prices.append(buy_pieces(talk, row) if len(row) == 7 else buy_by_weight(talk, row))
        talk.know(rank=nth(FR_NUMBERS, len(prices)), later="")
        talk.maybe(0.2, "repair")
        talk.maybe(1 if len(prices) == asks_in_vain else 0, "missing")
        talk.maybe(0.3 if couple else 0, "aside")
        talk.maybe(0.5 if length == "long" else 0.2, "chat")
    pay(talk, prices)
    talk.say("bye")


def buy_by_weight(talk: Talk, row: list[str]) -> int:
    """Asks for some weight and gets that or a little more; the price in cents."""
    _, noun, gender_number, price, remark, plan = row
    dice, kilo = talk.dice, int(price)
    weights = [200, 250, 300, 400] if row[0] == "crémier" else [250, 500] if kilo > 600 else list(FR_QUANTITIES)
    asked = dice.pick(weights)
    got = asked + dice.pick([0, 50, 50] if asked < 1000 else [0, 50, 100])
    weight = f"{got} grammes" if got < 1000 else f"{got // 1000} kilo{'s' * (got > 1999)} {got % 1000:03d}"
    talk.know(
        **french_forms(noun, gender_number),
        asked=FR_QUANTITIES.get(asked, f"{asked} grammes"),
        got=weight.removesuffix(" 000"),
        kprice=euros(kilo),
        ksign=f"{kilo // 100},{kilo % 100:02d} €",
        line0=euros(kilo * asked // 1000),
        line=euros(kilo * got // 1000),
        remark=remark,
        plan=plan,
    )
    talk.say("ask_kilo")
    if "{line0}" in talk.say_one("weigh_exact" if got == asked else "weigh_over"):
        talk.know(line=talk.facts["line0"])
        return kilo * asked // 1000
    return kilo * got // 1000


def order_pieces(talk: Talk, row: list[str]) -> tuple[int, int]:
    """Sets the facts of an order of some pieces; their number and the price in cents."""
    _, noun, plural, gender, price, remark, plan = row
    count = talk.dice.pick([1, 1, 2, 2, 3, 4])
    number = "une" if count == 1 and gender == "f" else nth(FR_NUMBERS, count)
    talk.know(
        **french_forms(plural, gender + "p"),
        k=number,
        count=f"{number} {noun if count == 1 else plural}",
        pprice=euros(int(price)),
        line=euros(int(price) * count),
        remark=remark,
        plan=plan,
    )
    return count, int(price) * count


def buy_pieces(talk: Talk, row: list[str]) -> int:
    count, price = order_pieces(talk, row)
    talk.say("ask_piece")
    if count == 1:
        talk.know(les=french_forms(row[1], row[3] + "s")["les"], des=talk.facts["count"])
    return price


def pay(talk: Talk, prices: list[int]) -> None:
    total = sum(prices)
    note = next(note for note in (5, 10, 20, 50, 100) if note * 100 >= total)
    words = {5: "cinq", 10: "dix", 20: "vingt", 50: "cinquante", 100: "cent"}
    talk.know(
        sum=", plus ".join(euros(price) for price in prices),
        total=euros(total),
        given=f"un billet de {words[note]}",
        change=euros(note * 100 - total),
    )
    talk.say("total" if len(prices) > 1 else "total_one")
    way = talk.dice.pick(["cash", "cash", "card", "exact"])
    talk.say("exact" if total == note * 100 else way)


def kitchen(talk: Talk, length: str) -> None:
    dice = talk.dice
    talk.cast("A", "B", "C")
    recipe, dish, steps, *amounts = dice.pick(talk.material.tables["recipes"])
    pairs = dice.number(2, 4)
    talk.know(dish=dish, n=nth(FR_NUMBERS, 2 * pairs))
    for name, amount in (entry.split() for entry in amounts):
        needed = int(amount) * pairs
        talk.know(**{name: needed, name + "2": 2 * needed})
        if needed <= 16:
            talk.know(**{name + "_w": nth(FR_NUMBERS, needed)})
    if length == "short":
        talk.say("short")
        return
    if length == "long":
        talk.say("open")
    first = dice.pick([0, 3]) if length == "medium" else 0
    for step in range(first, int(steps)):
        talk.say(f"{recipe}.{step}")
        talk.maybe(0.2 if step > 1 else 0, "swap")
        talk.maybe(0.8 if length == "long" else 0.1, "chat")
    talk.say("taste")
    if length == "long" or first:
        talk.say("end")


def library(talk: Talk, length: str) -> None:
    dice = talk.dice
    reader_is_woman, madam = dice.chance(0.5), dice.chance(0.5)
    today = datetime.date(2023, 1, 3) + datetime.timedelta(7 * dice.number(0, 48) + dice.number(0, 4))
    (last,), (last2,) = dice.order(talk.material.tables["names"])[:2]
    pages = dice.number(3, 16)
    talk.know(
        fe="e" if reader_is_woman else "",
        madame="madame" if madam else "monsieur",
        due=french_date(today + datetime.timedelta(21)),
        last=last,
        last2=last2,
        back_w=nth(FR_NUMBERS, dice.number(2, 5)),
        late_w=nth(FR_NUMBERS, dice.number(3, 16)),
        max_w=dice.pick(["six", "huit", "dix"]),
        queue=dice.pick(["deuxième", "troisième"]),
        card_month=nth(FR_MONTHS, dice.number(0, 11)),
        pages_w=nth(FR_NUMBERS, pages),
        pages_cost=euros(10 * pages),
    )
    books = dice.order(talk.material.tables["books"])
    wanted = books[: {"short": 1, "medium": dice.number(1, 2), "long": dice.number(3, 4)}[length]]
    talk.know(title=wanted[0][0], title2=books[-1][0], title3=books[-2][0])
    if length == "short":
        talk.say("short")
        return
    if "{back_w}" not in talk.say_one("hello"):
        talk.know(newcomer="")
    joins = dice.chance(0.4) and "{newcomer}" in talk.say_one("card")
    loans = 0
    for number, book in enumerate(wanted, start=1):
        talk.know(rank=nth("premier deuxième troisième quatrième", number - 1))
        if number > 1:
            talk.say("second")
        loans += find_book(talk, book, today)
        talk.maybe(0.7 if length == "long" else 0.2, "chat")
    talk.maybe(0 if joins else 0.3, "late")
    if loans:
        talk.know(loans_w="un document" if loans == 1 else f"{nth(FR_NUMBERS, loans)} documents")
    talk.say("checkout" if loans else "nothing", "bye")


def find_book(talk: Talk, book: list[str], today: datetime.date) -> int:
    """Asks for a book and looks for it; the number of loans, 1 or 0."""
    title, author, shelf_mark, about, hint, why = book
    back = today + datetime.timedelta(talk.dice.number(3, 18))
    talk.know(title=title, author=author, cote=shelf_mark, about=about, hint=hint, why=why)
    talk.know(letters=", ".join(shelf_mark), return_date=french_date(back).partition(" ")[2])
    talk.say("want")
    talk.maybe(0.25, "wrong")
    found = talk.dice.pick(["shelf", "shelf", "shelf", "loaned", "branch", "stacks"])
    talk.say("look", found)
    return int(found in ("shelf", "stacks"))


# English ------------------------------------------------------------------------------------------------------------

EN_NUMBERS = "no one two three four five six seven eight nine ten eleven twelve"
EN_DAYS = "Monday Tuesday Wednesday Thursday Friday"


def clock(minutes: int) -> str:
    return f"{minutes // 60 % 24}:{minutes % 60:02d}"


def station(talk: Talk, length: str) -> None:
    dice = talk.dice
    destination, elsewhere = dice.order(talk.material.tables["places"])[:2]
    place, via, fare, duration, why, tip = destination
    missed = 60 * dice.number(6, 19) + dice.pick([4, 7, 12, 18, 23, 26, 34, 41, 47, 52, 55, 58])
    direct, wait, saved, delay = missed + 60, dice.number(6, 19), dice.number(8, 25), dice.number(10, 20)
    arrival, longer = direct + int(duration), delay + dice.number(15, 25)
    platform, platform2 = dice.order(list(range(1, 7)))[:2]
    talk.know(place=place, place2=elsewhere[0], via=via, why=why, tip=tip, platform=platform, platform2=platform2)
    talk.know(missed=clock(missed), direct=clock(direct), direct_in=clock(arrival), wait=wait, saved=saved)
    talk.know(via_out=clock(arrival - saved - int(duration) - wait - 3), via_in=clock(arrival - saved))
    talk.know(delay1=delay, late1=clock(direct + delay), delay2=longer, late2=clock(direct + longer))
    talk.know(daytime="morning" if missed < 720 else "afternoon" if missed < 1080 else "evening")
    price_tickets(talk, int(fare))
    if length == "short":
        talk.say("short")
        return
    plot = dice.pick(["missed", "buy", "lost"] if length == "medium" else ["missed", "buy", "wait"])
    if plot == "missed":
        miss_train(talk, "direct" if length == "long" else dice.pick(["via", "direct"]))
    elif plot == "buy":
        talk.know(leaving=talk.facts["direct"])
        talk.say("buy", "price", "when")
        talk.maybe(0.4, "misheard")
    elif plot == "lost":
        talk.say("lost", "chat_clerk", "found")
    if plot != "wait":
        talk.maybe(0.4, "chat_clerk")
        talk.say("bye")
        talk.facts.pop("why")
    if length == "long":
        wait_together(talk)


def price_tickets(talk: Talk, single: int) -> None:
    """Sets who travels and what it costs: a child pays half, a return is six pounds more than a single."""
    dice = talk.dice
    adults, children, kind = dice.number(1, 3), dice.pick([0, 0, 1, 2]), dice.pick(["Single", "Return"])
    fare = single + (600 if kind == "Return" else 0)
    total = adults * fare + children * fare // 2
    party = f"{nth(EN_NUMBERS, adults)} adult{'s' * (adults > 1)}"
    if children:
        party += " and " + ("a child" if children == 1 else f"{nth(EN_NUMBERS, children)} children")
    talk.know(party=party, ticket_kind=kind, ticket_kind_low=kind.lower())
    talk.know(single=f"£{single // 100}.{single % 100:02d}")
    talk.know(fare=f"£{fare // 100}.{fare % 100:02d}", total=f"£{total // 100}.{total % 100:02d}")


def miss_train(talk: Talk, choice: str) -> None:
    talk.know(leaving=talk.facts["direct" if choice == "direct" else "via_out"])
    if choice == "via":
        talk.know(hurry=talk.facts["via_out"])
    talk.say("missed", "options", f"choose_{choice}")
    talk.maybe(0.3, "misheard")
    talk.maybe(0.6, "valid")


def wait_together(talk: Talk) -> None:
    """Two passengers and a late train."""
    number = talk.dice.number
    talk.say("wait_meet", *["chat_wait"] * number(1, 2), "announce", "react")
    talk.say(*["chat_wait"] * number(1, 2), "announce_more", "react_more")
    talk.say(*["chat_wait"] * number(1, 3), "announce_in", "board")


def garden(talk: Talk, length: str) -> None:
    dice = talk.dice
    talk.cast("A", "B", "C")
    half, cans, days = dice.number(6, 20), dice.number(3, 8), dice.number(5, 12)
    talk.know(half=half, picked=2 * half, cans=cans, days=days, cans_total=cans * days)
    rows = dice.order(talk.material.tables["plants"])[: dice.number(1, 2) if length == "medium" else dice.number(4, 5)]
    if length == "short":
        plan_row(talk, rows[0])
        talk.say("short")
        return
    talk.say("hello")
    planned = []
    for row in rows:
        planned.append(plan_row(talk, row))
        talk.say("plan")
        talk.maybe(0.25, "muddle")
        talk.maybe(0.7 if length == "long" else 0.2, "chat")
    if len(planned) > 1:
        *names, last = [f"{count} {name}" for count, name in planned]
        talk.know(list=", ".join(names) + " and " + last, total=sum(count for count, _ in planned))
        talk.say("recap")
    for section in dice.order(["pest", "water", "borrow", "harvest"])[: 1 if length == "medium" else 3]:
        talk.say(section)
        talk.maybe(0.5 if length == "long" else 0.1, "chat")
    talk.say("bye")


def plan_row(talk: Talk, row: list[str]) -> tuple[int, str]:
    """Sets the facts of a row of plants; their number and name."""
    plants, spacing, tip, use = row
    length = talk.dice.number(2, 5)
    count = 100 * length // int(spacing)
    talk.know(plants=plants, spacing=spacing, wrong=2 * int(spacing), tip=tip, use=use, length=length, count=count)
    return count, plants


def office(talk: Talk, length: str) -> None:
    dice = talk.dice
    talk.cast("A", "B", "C")
    talk.know(hour=dice.pick(["two", "three", "four"]) + " o'clock")
    agenda = dice.order(talk.material.tables["subjects"])
    open_agenda_item(talk, agenda[0])
    if length == "short":
        talk.say("short")
        return
    talk.say("start", "status")
    talk.maybe(0.5 if length == "medium" else 0.8, "chat")
    talk.say("budget")
    talk.maybe(0.3, "confuse")
    for row in agenda[1 : 1 if length == "medium" else dice.number(3, 4)]:
        open_agenda_item(talk, row)
        talk.say("item", "assign")
        talk.maybe(0.3, "confuse")
        talk.maybe(0.7, "chat")
        talk.say("budget")
    talk.say("date")
    if length == "long":
        talk.maybe(0.5, "chat")
    talk.know(notes=" ".join(talk.notes))
    talk.say("recap", "end")


def open_agenda_item(talk: Talk, row: list[str]) -> None:
    """Sets the facts of a subject: its parts, its money, its dates."""
    subject, part1, part2, people, budget = row
    dice = talk.dice
    guests, each, off = int(people) + dice.number(0, 9), dice.number(6, 14), 10 * dice.number(3, 9)
    spent, first = int(budget) // 10 * dice.number(2, 6), dice.number(2, 20)
    early, late = dice.number(0, 2), dice.number(3, 4)
    talk.know(subject=subject, part1=part1, part2=part2, people=guests, each=each, headcost=guests * each)
    talk.know(budget=budget, spent=spent, left=int(budget) - spent, off=off, after=int(budget) - off)
    talk.know(day1=nth(EN_DAYS, early), num1=ordinal(first))
    talk.know(day2=nth(EN_DAYS, late), num2=ordinal(first + late - early))


def ordinal(number: int) -> str:
    ending = "th" if 10 < number < 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


DATASETS: dict[str, tuple[str, Scene, bool]] = {
    "french/FR/Marche": ("marche", market, False),
    "french/FR/Cuisine": ("cuisine", kitchen, True),
    "french/FR/Bibliotheque": ("bibliotheque", library, False),
    "english/EN/Station": ("station", station, False),
    "english/EN/Garden": ("garden", garden, True),
    "english/EN/Office": ("office", office, True),
}

if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))

    from utils import cli

    sys.exit(cli.run(main, cli.parse_or_exit(Options)))

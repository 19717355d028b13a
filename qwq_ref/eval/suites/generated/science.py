"""Science: questions of physics, chemistry and biology, each with four choices.

A family draws its numbers, and returns the question, the answer, and answers that typical mistakes give: a factor left
out or turned round, a wrong sign, an inverse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from random import Random
from typing import NamedTuple

from ..jsonl import ask_choice, judge_choice
from ..suite import Task

_LETTERS = "ABCD"
_APART = 0.02  # of a choice: two choices that differ by less could both be called correct
_LIGHT, _PLANCK, _GAS, _GRAVITY = 2.998e8, 6.626e-34, 8.314, 9.81


class TooAlikeError(Exception):
    """A question has too few wrong answers that differ from each other."""


class Question(NamedTuple):
    """A question.

    text     with all numbers and constants that it needs
    correct  the answer
    wrong    answers of typical mistakes
    unit     of all of them; "" for none
    """

    text: str
    correct: float
    wrong: tuple[float, ...]
    unit: str = ""


def task(identity: str, group: str, question: Question, random: Random) -> Task:
    """Return the task of a question. Raises TooAlikeError."""
    values = [question.correct]
    for value in question.wrong:
        if all(abs(value - other) > _APART * max(abs(value), abs(other)) for other in values):
            values.append(value)
    if len(values) < len(_LETTERS) or not all(map(math.isfinite, values)):
        raise TooAlikeError
    values = values[:1] + random.sample(values[1:], len(_LETTERS) - 1)
    shuffled = random.sample(values, len(values))
    shown = [f"{number(value)} {question.unit}".strip() for value in shuffled]
    gold = _LETTERS[shuffled.index(question.correct)]
    judge = partial(judge_choice, gold=gold, letters=_LETTERS)
    return Task(identity, ask_choice(question.text, shown), judge, group)


def number(value: float) -> str:
    """Return three significant digits of a value."""
    mantissa, _, power = f"{value:.2e}".partition("e")
    exponent = int(power)
    if -4 < exponent < 5:
        return f"{float(f'{value:.2e}'):.{max(0, 2 - exponent)}f}"
    return f"{mantissa} x 10^{exponent}"


# --- Physics ----------------------------------------------------------------------------------------------------------


def braking(random: Random) -> Question:
    speed, slowing = random.randint(8, 40), random.randint(2, 9)
    text = f"A car at {speed} m/s brakes with a constant {slowing} m/s^2. How far does it go until it stops?"
    square = speed**2 / slowing
    return Question(text, square / 2, (square, speed / slowing, 2 * square, speed * slowing / 2), "m")


def fall(random: Random) -> Question:
    height = random.randint(5, 120)
    text = f"A stone falls from rest, {height} m deep, without air. How fast is it at the end? g = 9.81 m/s^2."
    speed = math.sqrt(2 * _GRAVITY * height)
    return Question(text, speed, (math.sqrt(_GRAVITY * height), 2 * _GRAVITY * height, speed / 2, 2 * speed), "m/s")


def parallel(random: Random) -> Question:
    one, other, volts = random.randint(2, 30), random.randint(2, 30), random.randint(3, 48)
    text = (
        f"Resistors of {one} ohm and {other} ohm are in parallel at a battery of {volts} V. What current does it give?"
    )
    both = volts / one + volts / other
    series = volts / (one + other)
    return Question(text, both, (series, volts / one, volts / other, volts * (one + other)), "A")


def power(random: Random) -> Question:
    volts, ohms = random.randint(6, 240), random.randint(3, 90)
    text = f"A heater of {ohms} ohm is connected to {volts} V. What power does it take?"
    return Question(text, volts**2 / ohms, (volts / ohms, volts * ohms, volts**2 * ohms, ohms**2 / volts), "W")


def lens(random: Random) -> Question:
    focus = random.randint(4, 25)
    distance = focus + random.randint(2, 60)
    text = (
        f"An object is {distance} cm in front of a converging lens with a focal length of {focus} cm. How far behind "
        "the lens is the image?"
    )
    image = focus * distance / (distance - focus)
    wrong = (focus * distance / (distance + focus), 1 / focus - 1 / distance, float(distance - focus), float(distance))
    return Question(text, image, wrong, "cm")


def photon(random: Random) -> Question:
    length = random.randint(200, 1500)
    text = (
        f"What is the energy of a photon with a wavelength of {length} nm? h = 6.626 x 10^-34 J s, and "
        "c = 2.998 x 10^8 m/s."
    )
    energy = _PLANCK * _LIGHT / (length * 1e-9)
    wrong = (_PLANCK * _LIGHT * length * 1e-9, energy * 1e-9, _PLANCK * length * 1e-9, energy / 10)
    return Question(text, energy, wrong, "J")


def density(random: Random) -> Question:
    edge, mass = random.randint(2, 12), random.randint(20, 900)
    text = f"A cube has an edge of {edge} cm and a mass of {mass} g. What is its density, in kg/m^3?"
    correct = 1000 * mass / edge**3
    return Question(
        text, correct, (mass / edge**3, 100 * mass / edge**3, edge**3 / mass, 1000 * mass / edge**2), "kg/m^3"
    )


def speeds(random: Random) -> Question:
    metres, seconds = random.randint(100, 5000), random.randint(20, 600)
    text = f"A cyclist rides {metres} m in {seconds} s. What is the mean speed, in km/h?"
    speed = metres / seconds
    return Question(text, 3.6 * speed, (speed, speed / 3.6, 6 * speed, 3.6 / speed), "km/h")


# --- Chemistry and biology --------------------------------------------------------------------------------------------


def gas(random: Random) -> Question:
    moles, celsius, litres = random.randint(1, 9), random.randint(10, 150), random.randint(5, 90)
    text = (
        f"{moles} mol of an ideal gas fill {litres} litres at {celsius} degrees Celsius. What is the pressure, in kPa? "
        "R = 8.314 J/(mol K), and 0 degrees Celsius are 273.15 K."
    )
    kelvin = celsius + 273.15
    correct = moles * _GAS * kelvin / litres
    wrong = (
        moles * _GAS * celsius / litres,
        correct / 1000,
        litres * _GAS * kelvin / moles,
        _GAS * kelvin / litres / moles,
    )
    return Question(text, correct, wrong, "kPa")


def half_life(random: Random) -> Question:
    life, periods, mass = random.randint(3, 40), random.randint(2, 6), random.randint(10, 900)
    text = f"A substance has a half-life of {life} days. How much of {mass} mg is left after {life * periods} days?"
    left = mass / 2**periods
    return Question(text, left, (mass / (2 * periods), mass - left, mass / periods, 2 * left), "mg")


def dilution(random: Random) -> Question:
    volume, added, molar = random.randint(10, 90), random.randint(20, 400), random.randint(2, 12)
    text = (
        f"{added} mL of water are added to {volume} mL of a solution of {molar} mol/L. What is the new concentration?"
    )
    total = volume + added
    wrong = (molar * volume / added, molar * added / total, molar * total / volume, molar * added / volume)
    return Question(text, molar * volume / total, wrong, "mol/L")


def acid(random: Random) -> Question:
    digit, power, base = random.randint(2, 9), random.randint(2, 5), random.random() < 0.5
    what = "strong base with one OH" if base else "strong acid with one H"
    text = (
        f"What is the pH of a solution of {digit} x 10^-{power} mol/L of a {what} in each molecule, at 25 degrees "
        "Celsius?"
    )
    found = power - math.log10(digit)
    correct, other = (14 - found, found) if base else (found, 14 - found)
    return Question(text, correct, (other, 2.302585 * found, power + math.log10(digit), float(power), -found))


def cross(random: Random) -> Question:
    pairs = random.randint(2, 4)
    shown = random.randint(0, pairs)
    genes = " and ".join(
        filter(None, [f"{shown} dominant" if shown else "", f"{pairs - shown} recessive" if shown < pairs else ""])
    )
    children = random.choice([256, 512, 768, 1024, 1280, 2048, 2560])
    text = (
        f"Two parents are heterozygous in {pairs} genes on different chromosomes; each gene has a dominant and a "
        f"recessive allele. Of {children} children, how many are expected to show this choice of traits, fixed gene by "
        f"gene: {genes}?"
    )
    correct = children * 3**shown / 4**pairs
    wrong = (
        children * 3 ** (pairs - shown) / 4**pairs,
        children / 2**pairs,
        children * 3**shown / 4 ** (pairs - 1),
        children / 4**pairs,
        children * shown / (4 * pairs),
        children * 3 / 4,
    )
    return Question(text, correct, wrong)


def molar(random: Random) -> Question:
    name, mass = random.choice([("water", 18.02), ("carbon dioxide", 44.01), ("glucose", 180.16), ("methane", 16.04)])
    grams = random.randint(5, 500)
    text = f"How many moles are {grams} g of {name}? Its molar mass is {mass} g/mol."
    moles = grams / mass
    return Question(text, moles, (grams * mass, mass / grams, moles * 6.022, moles / 2), "mol")


FAMILIES: tuple[Callable[[Random], Question], ...] = (
    *(braking, gas, parallel, half_life, lens, dilution, photon),
    *(acid, fall, cross, power, molar, density, speeds),
)

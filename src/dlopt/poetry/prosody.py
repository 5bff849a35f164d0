"""The rules of regulated verse in one place: tones and rhymes of characters, patterns of forms, and the checker."""

from dlopt.poetry.checker import KINDS, Report, check, readings_of
from dlopt.poetry.patterns import FORMS, MODES, Arrangement, Form, arrangements, couplets, find_form
from dlopt.poetry.reading import Fault
from dlopt.poetry.rhymebook import find_group, level_groups, level_rhymes, near, rhymes, tones

__all__ = [
    "FORMS",
    "KINDS",
    "MODES",
    "Arrangement",
    "Fault",
    "Form",
    "Report",
    "arrangements",
    "check",
    "couplets",
    "find_form",
    "find_group",
    "level_groups",
    "level_rhymes",
    "near",
    "readings_of",
    "rhymes",
    "tones",
]

"""Each line of docs/apps.md is a valid start, has a check, and says where it works."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from prouter.requests import StartRequest
from tests.apps.page import Recipe, recipes

_CHECKS = Path(__file__).parents[2] / "apps" / "checks.py"
_RECIPES = list(recipes())


def test_the_page_has_recipes() -> None:
    assert len({recipe.slug for recipe in _RECIPES}) == len(_RECIPES) >= 30


@pytest.mark.parametrize("recipe", _RECIPES, ids=lambda recipe: recipe.slug)
def test_a_recipe_is_a_valid_start_that_works_somewhere(recipe: Recipe) -> None:
    StartRequest.model_validate({"env": {}, **recipe.start})
    assert recipe.modes
    assert recipe.packages
    assert set(recipe.packages) <= {"pip", "npm", "apt"}


@pytest.mark.parametrize("recipe", _RECIPES, ids=lambda recipe: recipe.slug)
def test_a_recipe_is_used_in_a_browser(recipe: Recipe) -> None:
    """By name only: the checks themselves need a browser."""
    names = set()
    for node in ast.parse(_CHECKS.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    assert recipe.slug in names

"""What a browser sends, for requests of tests that stand for one."""

from __future__ import annotations

import re

import requests

__all__ = ["FETCH", "NAVIGATION", "hidden", "proof_in", "sign_in"]

NAVIGATION = {
    "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "none",
    "User-Agent": "Mozilla/5.0",
}
"""Somebody goes to a page."""
FETCH = {
    "Accept": "*/*",
    "Sec-Fetch-Dest": "empty",
    "Sec-Fetch-Mode": "cors",
    "Sec-Fetch-Site": "same-origin",
    "User-Agent": "Mozilla/5.0",
}
"""A script of a page of the same origin asks."""


def hidden(page: str, name: str) -> str:
    """Return the value of a hidden field of a form, or of a meta element."""
    found = re.search(rf'name="{name}" (?:value|content)="([^"]*)"', page)
    assert found is not None, page
    return found[1]


def proof_in(page: str) -> str:
    """Return the dashboard's proof."""
    return hidden(page, "prouter-proof")


def sign_in(url: str, token: str, target: str = "/") -> requests.Session:
    """Return the cookies of a browser that has signed in with a token."""
    browser = requests.Session()
    form = browser.get(f"{url}/sign-in", params={"next": target}, headers=NAVIGATION, timeout=30)
    assert form.status_code == 200, form.text
    data = {"token": token, "proof": hidden(form.text, "proof"), "next": hidden(form.text, "next")}
    navigation = {**NAVIGATION, "Sec-Fetch-Site": "same-origin", "Origin": url}
    done = browser.post(f"{url}/sign-in", data=data, headers=navigation, timeout=30, allow_redirects=False)
    assert done.status_code == 303, done.text
    return browser

"""Faults injected into real processes under load: nothing may be lost, doubled or left behind."""

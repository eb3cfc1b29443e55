"""Hostile inputs, made by script: every class that a received file, folder or word can belong to.

`python -m tests.hostile` lists the cases; `python -m tests.hostile NAME FOLDER` makes the input of one in a
folder, to look at it or to run the program on it by hand. `tests/test_hostile.py` runs them all.
"""

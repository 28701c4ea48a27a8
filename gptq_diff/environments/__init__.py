"""Interpreters for engines that cannot live together: made from pinned recipes, found again, removed.

An environment is a virtual environment in a folder of the user's, with a state file of ours in it. recipes.py says
what goes in, create.py makes it, find.py finds it.
"""

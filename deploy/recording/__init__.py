"""Demonstrations on the arm: operators, one episode, what a hand-guided motion means as actions."""

"""Chaos: a project is run while its processes are killed and its surroundings misbehave, and judged by a calm run.

`lab` runs the processes as a lab does, `schedule` draws what happens to them, `kills` does it and measures how long
the recovery takes, `outcome` says whether the result is that of an undisturbed run.
"""

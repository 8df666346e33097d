"""From what a user writes to a checked Config.   argument line -> overrides -> compose -> dict -> check -> Config

schema.py has the keys (keys.py lists them), folder.py and userfile.py let in what a user may choose and refuse what could run
code, compose.py asks Hydra, check.py turns faults into lines, jobs.py and registry.py say what verbs and models there are.
"""

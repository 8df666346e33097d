"""From what a user writes to a checked Config.   argument line -> overrides -> compose -> dict -> check -> Config

schema.py has the keys, compose.py asks Hydra and refuses what could run code, check.py turns faults into lines, jobs.py says
what each verb reads.
"""

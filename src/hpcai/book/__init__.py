"""What a laboratory states, as data: analytes, diseases, rules, specimen, policy, controls.   YAML -> checked models

Nothing here is ever evaluated as code. Every number has its source, or is called assumed.
"""

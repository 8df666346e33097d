"""What a user chooses: Hydra groups as YAML."""

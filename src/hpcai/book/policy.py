"""What a laboratory does with a rule's and a model's word."""

from __future__ import annotations

from typing import Literal

from hpcai.config.words import Group, Text, key


class Policy(Group):
    """How rule, model and specimen make one decision. A rule set or a model that finds nothing leaves `clear`."""

    name: Text
    title: Text
    source: Text
    rule_sets: list[Text] = key(..., "rule sets whose positive counts; the others are only shown beside", min_length=1)
    rule_positive: Literal["refer", "reflex", "repeat"] = key("refer", "what a rule's positive asks for")
    model_positive: Literal["reflex", "repeat"] = key(
        "reflex", "what a model's positive asks for where rules find nothing; without a second tier: repeat"
    )
    model_may_soften: list[Text] = key(
        [], "diseases where a model below its threshold turns a rule's refer into reflex (without a second tier: repeat)"
    )
    abstention: Literal["reflex", "repeat", "clear"] = key(
        "reflex", "what a conformal abstention of the model asks for where rules find nothing"
    )
    shifted: Literal["rules", "not_assessable"] = key(
        "rules", "a laboratory that the model does not fit: rules alone decide, or nothing does"
    )

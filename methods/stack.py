"""Several remedies at once, each in a slot of its own."""

from dataclasses import dataclass, field
from typing import Any

from benchmark.api import SLOTS, Recipe, Task, register

EDITED = (*SLOTS, "select")


@register("stack")
@dataclass
class Stack:
    """The slots of several methods together, none of which may edit what another edits. This
    suite's own; every pair that papers combine (annealing with free bits, as Li et al. 2019) is one
    field of one method here, while a stack joins what lives in different slots."""

    of: list[str] = field(
        default_factory=lambda: ["free_bits", "word_dropout", "aggressive"],
        metadata={"other": ["free_bits", "word_dropout"]},
    )
    """The configs of the methods."""

    parts: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "methods": "of",
            "other": {"free_bits": {"floor": 0.05}, "word_dropout": {}, "aggressive": {}},
        },
    )
    """The fields of each that are set otherwise than in its config, by its name; in a recipe the
    methods themselves."""

    def __post_init__(self) -> None:
        if not self.of:
            raise ValueError("method.of names no method; give a list, as [free_bits,word_dropout]")
        if lacking := [name for name in self.of if name not in self.parts]:
            raise ValueError(f"method.parts lacks {', '.join(lacking)}")

    def recipe(self, task: Task) -> Recipe:
        recipe, editors = Recipe(), dict[str, str]()
        for name in self.of:
            part = self.parts[name].recipe(task)
            edited = {slot: value for slot in EDITED if (value := getattr(part, slot)) is not None}
            for slot in edited:
                if slot in editors:
                    raise ValueError(
                        f"{editors[slot]} and {name} both edit the slot {slot!r}; "
                        "a stack takes one method for each slot"
                    )
            editors |= dict.fromkeys(edited, name)
            after = max(recipe.select_after, part.select_after)
            recipe = recipe.but(**edited, select_after=after)
        return recipe

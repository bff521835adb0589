from dataclasses import dataclass

from benchmark.api import Recipe, Task, register


@register("undocumented_field")
@dataclass
class UndocumentedField:
    """Nobody's idea."""

    width: int = 4

    def recipe(self, task: Task) -> Recipe:
        return Recipe(model=task.model(latent=self.width))

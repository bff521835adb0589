"""Several modules as one part of a model."""

from torch import nn


class Together(nn.ModuleList):
    """Modules that are stepped, and re-initialised, as one."""

    def reset_parameters(self) -> None:
        for module in self:
            module.reset_parameters()  # type: ignore[operator]
